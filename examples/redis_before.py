"""Eight threads send forty commands over three connections, with redis-py's own pool."""

from concurrent.futures import ThreadPoolExecutor

from redis import BlockingConnectionPool, Redis

from millpond.testing import Valkey  # a server to talk to


def main() -> None:
    with Valkey() as server, ThreadPoolExecutor(8) as threads:
        pool = BlockingConnectionPool.from_url(server.url, max_connections=3, timeout=5)
        with Redis.from_pool(pool) as client:
            replies = list(threads.map(lambda number: client.echo(f"reply {number}").decode(), range(40)))
    print(f"{len(replies)} replies, from {replies[0]!r} to {replies[-1]!r}")


if __name__ == "__main__":
    main()
