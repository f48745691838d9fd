"""Whatever a borrower leaves behind, the next one gets a connection that owes nothing and is as it began."""

from __future__ import annotations

import enum
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import redis
from redis.connection import PythonRespSerializer

from millpond import Pool
from millpond.connectors._tally import record
from millpond.connectors.redis import Redis
from millpond.testing import Valkey

from .conftest import Face

PARSERS = [
    pytest.param(options, id=name)
    for name, options in {
        "hiredis-resp3": {},
        "hiredis-resp2": {"protocol": 2},
        "python-resp3": {"protocol": 3, "python": True},
        "python-resp2": {"protocol": 2, "python": True},
    }.items()
]


def make(face: Face, options: dict[str, Any], **more: Any) -> Any:
    options = {**options, **more}
    if options.pop("python", False):
        from redis._parsers import _AsyncRESP2Parser, _AsyncRESP3Parser, _RESP2Parser, _RESP3Parser

        three = options["protocol"] == 3
        parsers = {
            "threads": _RESP3Parser if three else _RESP2Parser,
            "tasks": _AsyncRESP3Parser if three else _AsyncRESP2Parser,
        }
        options["parser_class"] = parsers[face.world]
    return face.pool(max_connections=1, **options)


Act = Callable[[Face, Any], object]


def two_and_one(face: Face, conn: Any) -> None:
    face.send(conn, "PING")
    face.send(conn, "PING")
    face.read(conn)


def packed(*commands: tuple[Any, ...]) -> Act:
    return lambda face, conn: face.run(conn.send_packed_command(conn.pack_commands(commands)))


def by_hand(data: bytes) -> Act:
    return lambda face, conn: face.run(conn.send_packed_command([data]))


def asked(*words: Any) -> Act:
    return lambda face, conn: face.ask(conn, *words)


def all_of(*acts: Act) -> Act:
    return lambda face, conn: [act(face, conn) for act in acts]


def read(count: int) -> Act:
    return lambda face, conn: [face.read(conn) for _ in range(count)]


def read_error(face: Face, conn: Any) -> None:
    with pytest.raises(redis.ResponseError):
        face.read(conn)


def tried(*words: Any) -> Act:
    """Ask for what may be refused."""

    def act(face: Face, conn: Any) -> None:
        with suppress(redis.ResponseError, redis.AuthenticationError):
            face.ask(conn, *words)

    return act


class Word(str, enum.Enum):  # noqa: UP042 (a StrEnum is written as it is sent)
    """Words as many programs write them; redis-py sends the value, and `str` says something else."""

    SELECT = "SELECT"
    MULTI = "MULTI"
    GET = "GET"
    CLIENT = "CLIENT"
    NO_TOUCH = "NO-TOUCH"


class Sent(str):
    """A name that is sent as another than it seems to be."""

    def encode(self, *_: Any) -> bytes:
        return b"SELECT"


LEFT_BEHIND = {
    "SELECT as a member of an enumeration": asked(Word.SELECT, 1),
    "CLIENT NO-TOUCH as members of an enumeration": asked(Word.CLIENT, Word.NO_TOUCH, "ON"),
    "a packed MULTI as a member of an enumeration": all_of(packed((Word.MULTI,), (Word.GET, "key")), read(2)),
    "SELECT as something that seems to be harmless": asked(Sent("a name that nobody has sent"), 1),
    "a command that was not answered": lambda face, conn: face.send(conn, "PING"),
    "two commands and one answer": two_and_one,
    "a pipeline that was not read": packed(("PING",), ("PING",)),
    "a pipeline half read": all_of(packed(("PING",), ("PING",), ("PING",)), read(2)),
    "bytes packed by hand": all_of(by_hand(b"*1\r\n$4\r\nPING\r\n*1\r\n$4\r\nPING\r\n"), read(1)),
    "bytes that are no RESP": all_of(by_hand(b"PING\r\n"), read(1)),
    "a disconnect": lambda face, conn: face.run(conn.disconnect()),
    "MULTI": asked("MULTI"),
    "MULTI and a queued command": all_of(asked("MULTI"), asked("GET", "key")),
    "a packed MULTI without EXEC": all_of(packed(("MULTI",), ("GET", "key")), read(2)),
    "MULTI by hand": all_of(by_hand(b"*1\r\n$5\r\nmulti\r\n"), read(1)),
    "WATCH": asked("WATCH", "key"),
    "watch in bytes and small letters": asked(b"watch", b"key"),
    "a WATCH after an UNWATCH": all_of(asked("WATCH", "key"), asked("UNWATCH"), asked("WATCH", "key")),
    "UNWATCH in MULTI": all_of(asked("MULTI"), asked("UNWATCH")),
    "a DISCARD that failed": all_of(asked("MULTI"), tried("DISCARD", "what")),
    "SELECT": asked("SELECT", 1),
    "SELECT in one word": asked("SELECT 1"),
    "CLIENT REPLY OFF": lambda face, conn: face.send(conn, "CLIENT", "REPLY", "OFF"),
    "CLIENT REPLY SKIP": lambda face, conn: face.send(conn, "CLIENT", "REPLY", "SKIP"),
    "CLIENT NO-EVICT": asked("CLIENT", "NO-EVICT", "ON"),
    "CLIENT NO-EVICT in one word": asked("CLIENT NO-EVICT", "ON"),
    "client no-evict in bytes and small letters": asked(b"client no-evict", b"on"),
    "a packed CLIENT NO-EVICT": all_of(packed(("client", b"no-evict", "ON")), read(1)),
    "CLIENT TRACKING": lambda face, conn: face.ask(conn, "CLIENT", "TRACKING", *tracking(conn)),
    "SCRIPT DEBUG": tried("SCRIPT DEBUG", "what"),
    "another login": asked("HELLO"),
    "AUTH": tried("AUTH", "nobody", "secret"),
    "READONLY": tried("READONLY"),
    "RESET": asked("RESET"),
    "QUIT": asked("QUIT"),
    "MONITOR": asked("MONITOR"),
    "SUBSCRIBE": lambda face, conn: face.send(conn, "SUBSCRIBE", "one", "two"),
    "PSUBSCRIBE by hand": by_hand(b"*2\r\n$10\r\nPSUBSCRIBE\r\n$1\r\n*\r\n"),
    "ASKING": tried("ASKING"),
}


def tracking(conn: Any) -> list[str]:
    return ["ON", "BCAST"] if str(conn.get_protocol()) == "3" else ["OFF"]


@pytest.mark.parametrize("options", PARSERS)
@pytest.mark.parametrize("what", LEFT_BEHIND)
def test_what_was_left_behind_reaches_nobody(face: Face, options: dict[str, Any], what: str) -> None:
    pool = make(face, options)
    conn = face.borrow(pool)
    former = face.number(conn)
    LEFT_BEHIND[what](face, conn)
    face.give_back(pool, conn)
    del conn
    conn = face.borrow(pool)
    assert face.ask(conn, "ECHO", "mine") == b"mine"
    assert face.number(conn) != former
    face.give_back(pool, conn)
    assert pool.stats().size == 1


NOTHING_LEFT = {
    "a command": tried("PING"),
    "an error": tried("GET", "too", "many"),
    "a transaction": all_of(packed(("MULTI",), ("GET", "key"), ("EXEC",)), read(3)),
    "a transaction that was aborted": all_of(asked("MULTI"), tried("NO-SUCH-COMMAND"), tried("EXEC")),
    "a transaction that was discarded": all_of(asked("MULTI"), asked("DISCARD")),
    "WATCH and UNWATCH": all_of(asked("WATCH", "key"), asked("UNWATCH")),
    "WATCH and a transaction": all_of(asked("WATCH", "key"), asked("MULTI"), asked("EXEC")),
    "WATCH, MULTI, UNWATCH, EXEC": all_of(asked("WATCH", "key"), asked("MULTI"), asked("UNWATCH"), asked("EXEC")),
    "a pipeline": all_of(packed(("SET", "key", "x"), (b"get", "key"), ("GET", "a", "b")), read(2), read_error),
    "a pipeline by hand": all_of(by_hand(b"*1\r\n$4\r\nPING\r\n*2\r\n$4\r\necho\r\n$2\r\n\r\n\r\n"), read(2)),
    "commands in pieces": all_of(
        lambda face, conn: face.run(conn.send_packed_command([b"*1\r\n$4\r\nP", b"ING\r\n"])), read(1)
    ),
    "a big value": all_of(asked("SET", "big", b"x" * 100_000), asked("GET", "big")),
    "questions to CLIENT": all_of(asked("CLIENT", "ID"), asked("CLIENT GETNAME"), asked(b"client", b"info")),
    "a name": asked("CLIENT", "SETNAME", "somebody"),
    "a packed name": all_of(packed(("client", b"setname", "somebody")), read(1)),
    "what the library is called": asked("CLIENT", "SETINFO", "LIB-NAME", "something"),
    "a script": all_of(asked("SCRIPT LOAD", "return 1"), asked("SCRIPT", "EXISTS", "x"), asked("EVAL", "return 1", 0)),
    "ASKING and what it was for": all_of(tried("ASKING"), asked("GET", "key")),
}


@pytest.mark.parametrize("options", PARSERS)
@pytest.mark.parametrize("what", NOTHING_LEFT)
def test_a_connection_of_which_nothing_is_left_is_lent_again(face: Face, options: dict[str, Any], what: str) -> None:
    pool = make(face, options)
    conn = face.borrow(pool)
    former = face.number(conn)
    NOTHING_LEFT[what](face, conn)
    face.give_back(pool, conn)
    again = face.borrow(pool)
    assert again is conn
    assert face.number(again) == former
    face.give_back(pool, again)


def assert_lends(face: Face, pool: Any, *, the: int | None = None, not_the: int | None = None) -> None:
    """Borrow, see which of the server's clients that is, and return."""
    conn = face.borrow(pool)
    number = face.number(conn)
    face.give_back(pool, conn)
    assert the in (None, number)
    assert number != not_the


def test_a_command_is_judged_by_what_is_sent_whatever_somebody_else_has_written_before(face: Face) -> None:
    pools = [face.pool(max_connections=1) for _ in range(2)]
    for command in [(Word.SELECT, 1), (Sent("GET"), 1), ("SELECT", 1), (b"SELECT", 1), ("Select 1 ",)]:
        for pool in pools:
            conn = face.borrow(pool)
            former = face.number(conn)
            face.ask(conn, *command)
            face.give_back(pool, conn)
            assert_lends(face, pool, not_the=former)


HIDING: dict[str, tuple[tuple[Any, ...], tuple[Any, ...]]] = {
    "nothing": (("", "PING"), ("", "SELECT", 1)),
    "a space": ((b" ", "PING"), (b" ", "SELECT", 1)),
}


@pytest.mark.parametrize("name", HIDING)
def test_a_name_that_leaves_the_command_to_what_follows_is_judged_each_time(face: Face, name: str) -> None:
    pool = face.pool(max_connections=1)
    conn = face.borrow(pool)
    former = face.number(conn)
    harmless, spoiling = HIDING[name]
    face.ask(conn, *harmless)
    face.give_back(pool, conn)
    conn = face.borrow(pool)
    assert face.number(conn) == former
    face.ask(conn, *spoiling)
    face.give_back(pool, conn)
    assert_lends(face, pool, not_the=former)


def test_a_command_of_two_words_that_was_packed_by_hand_does_not_hide_another(face: Face) -> None:
    pool = face.pool(max_connections=1)
    conn = face.borrow(pool)
    by_hand(b"*1\r\n$8\r\nSELECT 1\r\n")(face, conn)
    read_error(face, conn)
    former = face.number(conn)
    face.ask(conn, b"SELECT 1")
    face.give_back(pool, conn)
    assert_lends(face, pool, not_the=former)


def test_what_is_changed_after_it_was_packed_hides_nothing(face: Face) -> None:
    pool = face.pool(max_connections=1)
    conn = face.borrow(pool)
    former = face.number(conn)
    commands: list[list[Any]] = [["PING"], ["SELECT", 1]]
    data = conn.pack_commands(commands)
    commands[1][:] = ["PING"]
    face.run(conn.send_packed_command(data))
    read(2)(face, conn)
    face.give_back(pool, conn)
    conn = face.borrow(pool)
    assert face.number(conn) != former
    former = face.number(conn)
    data = conn.pack_commands([["PING"]])
    data[:] = conn.pack_command("SELECT", 1)
    face.run(conn.send_packed_command(data))
    face.read(conn)
    face.give_back(pool, conn)
    assert_lends(face, pool, not_the=former)


class Renaming:
    """A packer that sends other names than are written."""

    def __init__(self, **names: str) -> None:
        self.names = names
        self.packer = PythonRespSerializer(6000, redis._parsers.Encoder("utf-8", "strict", False).encode)

    def pack(self, *words: Any) -> list[bytes]:
        packed: list[bytes] = self.packer.pack(self.names.get(words[0], words[0]), *words[1:])
        return packed


def test_what_one_packer_sends_tells_nothing_of_what_another_sends(valkey: Valkey) -> None:
    for name, kept in (("GET", True), ("SELECT", False), ("GET", True)):
        with Pool(Redis(valkey.url, command_packer=Renaming(USE=name)), max_size=1) as pool:
            for _ in range(2):
                with pool.connection() as conn:
                    conn.send_command("USE", 1)
                    conn.read_response()
                with pool.connection() as again:
                    assert (again is conn) is kept


def test_names_that_never_end_cost_no_memory_and_no_speed_of_others(
    face: Face, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "MOST_NAMES", 8)
    pool = face.pool(max_connections=1)
    conn = face.borrow(pool)
    former = face.number(conn)
    for number in range(20):
        with pytest.raises(redis.ResponseError, match="unknown command"):
            face.ask(conn, f"NOSUCH{number}")
        assert len(record._harmless) <= 8
        face.ask(conn, f"GET user:{number}")
        assert f"GET user:{number}" not in record._harmless
    face.ask(conn, "PING")
    assert "PING" in record._harmless
    face.give_back(pool, conn)
    assert_lends(face, pool, the=former)
