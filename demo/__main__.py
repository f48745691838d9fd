"""Measure one workload without a pool and with millpond, while the server is killed and restarted under it.

    make demo
    make demo WATCH=1    # and serve a page that shows the pools while it runs

It starts a PostgreSQL of its own, takes less than a minute, and leaves nothing behind but demo.png. It exits with 1 if
millpond has broken its promise, with 2 if it could not run here or could not draw, and with 128 and the signal's number
if a signal has ended it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Final

from demo.interruption import Interrupted, Interruption

PICTURE: Final = Path("demo.png")
ROOM: Final = 300
"""Megabytes that the server may need in the directory for temporary files."""


def main() -> int:
    """Run it all, and turn what can be expected to go wrong into a sentence."""
    parser = argparse.ArgumentParser(prog="python -m demo", description=__doc__)
    parser.add_argument("--watch", action="store_true", help="serve a page that shows the pools while it runs")
    watch = parser.parse_args().watch
    interruption = Interruption()
    try:
        from demo.scenario import present

        _forget_libpq_settings()
        _look_for_room()
        return present(PICTURE, interruption, watch=watch)
    except Interrupted as signal:
        print("\nInterrupted; nothing was left behind.", file=sys.stderr)
        return signal.status
    except Exception as error:
        if interruption.number:  # its terminal has gone, say, and nothing can be shown there any more
            return Interrupted(interruption.number).status
        hint = _hint(error)
        if not hint:
            raise
        print(f"\nThe demo cannot go on. {type(error).__name__}: {error}\n  hint: {hint}", file=sys.stderr)
        return 2


def _forget_libpq_settings() -> None:
    """Drop what the user has set for servers of his own (PGSSLMODE, PGOPTIONS): libpq would heed it here as well."""
    for name in [name for name in os.environ if name.startswith("PG")]:
        del os.environ[name]


def _look_for_room() -> None:
    """Raise OSError now rather than when the server runs out of room."""
    directory = tempfile.gettempdir()
    room = shutil.disk_usage(directory).free // 2**20
    if room < ROOM:
        raise OSError(f"{directory} has {room} MB of room, and the server may need {ROOM}")


def _hint(error: Exception) -> str | None:
    """Return what can be done about an error; None for one that should not be."""
    match error:
        case ImportError():
            return "`make demo` installs what is missing; if it did, there may be no wheel for this platform"
        case OSError():  # TimeoutError, too
            return f"it needs {ROOM} MB where temporary files go (TMPDIR=... says where) and ports of 127.0.0.1"
    import psycopg

    from millpond.testing import ServerError

    if isinstance(error, ServerError | psycopg.OperationalError):
        return "the server did not do as it should; is the machine out of room, memory or processes?"
    return None


if __name__ == "__main__":
    sys.exit(main())
