"""What happens in a pool, as lines of JSON."""

import json
import logging
import sqlite3

import millpond
from millpond import logs

PLAIN = vars(logging.makeLogRecord({})).keys()


class Json(logging.Formatter):
    """Any formatter that shows what is `extra` does; python-json-logger is one."""

    def format(self, record: logging.LogRecord) -> str:
        extra = {name: value for name, value in vars(record).items() if name not in PLAIN}
        return json.dumps({"level": record.levelname, "message": record.getMessage(), **extra})


def main() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(Json())
    logging.basicConfig(level=logging.DEBUG, handlers=[handler])
    logs.install()
    with millpond.Pool[sqlite3.Connection].from_url("sqlite:///:memory:", name="orders", max_size=5) as pool:
        with pool.connection() as conn:
            conn.execute("select 1")
        pool.resize(max_size=10)


if __name__ == "__main__":
    main()
