"""The kinds of connections that millpond knows, one file each.

| kind | threads | tasks | extra |
|---|---|---|---|
| PostgreSQL by psycopg 3 | `psycopg.Psycopg` | `psycopg.AsyncPsycopg` | `millpond[psycopg]` |
| PostgreSQL by asyncpg | | `asyncpg.Asyncpg` | `millpond[asyncpg]` |
| Redis and Valkey by redis-py | `redis.Redis` | `redis.AsyncRedis` | `millpond[redis]`; `millpond[async,redis]` |
| SQLite | `sqlite.Sqlite` | `aiosqlite.Aiosqlite` | none; `millpond[aiosqlite]` |
| any DB-API 2 driver | `dbapi.DBAPI` | | the driver |
| TCP and TLS sockets | `sockets.Socket` | `sockets.AsyncSocket` | none; `millpond[async]` |
| what a callable makes | `factory.Factory` | `factory.AsyncFactory` | none; `millpond[async]` |

A driver is imported only by the file that needs it; nothing is imported here. `urls.connector_for` finds a connector
by URL. Write your own by following `millpond.connector.Connector`.
"""
