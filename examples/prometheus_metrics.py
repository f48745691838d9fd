"""What Prometheus is told of a pool, over HTTP."""

import sqlite3
import urllib.request

import prometheus_client

import millpond
from millpond import prometheus


def main() -> None:
    prometheus.install()
    server, thread = prometheus_client.start_http_server(0, "127.0.0.1")
    with millpond.Pool[sqlite3.Connection].from_url("sqlite:///:memory:", name="orders", max_size=5) as pool:
        for _ in range(3):
            with pool.connection() as conn:
                conn.execute("select 1")
        page = urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/metrics").read().decode()
    server.shutdown()
    server.server_close()
    thread.join()
    print(*(line for line in page.splitlines() if line.startswith(("millpond_loans", "millpond_max"))), sep="\n")


if __name__ == "__main__":
    main()
