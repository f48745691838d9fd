"""What goes wrong, one row of the atlas each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from millpond.testing import Server
from proof.atlas.places import Address, Place

__all__ = ["ROWS", "Row"]

ALL: Final = ("postgres", "valkey", "web")
TELLS: Final = ("postgres", "valkey")
"""Those that ask for a password."""


def _nothing(place: Place) -> None:
    pass


class Row(NamedTuple):
    """A fault: how it begins, how long it lasts, how it ends."""

    name: str
    about: str
    strike: Callable[[Place], None]
    mend: Callable[[Place], None] = _nothing
    hold: float = 1.0
    """Seconds from the one to the other."""
    idle: bool = False
    """Whether all connections are idle, and nobody calls before it is over."""
    early: bool = False
    """Whether it strikes before the pool is made."""
    refusal: bool = False
    """Whether the server answers with a refusal, which is not to be asked for again and again."""
    silent: bool = False
    """Whether nothing comes back, so that callers go on waiting for what is lost."""
    places: tuple[str, ...] = ALL


def _each(change: Callable[[Address], object]) -> Callable[[Place], None]:
    def strike(place: Place) -> None:
        for address in place.addresses:
            change(address)

    return strike


def _kill(place: Place) -> None:
    Server.kill(place.server)


def _restart(place: Place) -> None:
    place.server.start()


def _kill_and_restart(place: Place) -> None:
    _kill(place)
    _restart(place)


_heal = _each(lambda address: address.proxy.heal())


def _forget_the_password(place: Place) -> None:
    for address in place.addresses:
        address.told = "wrong"


def _remember_it(place: Place) -> None:
    for address in place.addresses:
        address.told = None


def _rotate(place: Place) -> None:
    for address in place.addresses:
        # Known to the program a moment later than to the server, as it is with all that rotate.
        address.told, address.password = address.password, f"second-{address.user}"
        place.admit(address)
        place.throw_out(address)


def _limit(place: Place) -> None:
    for address in place.addresses:
        place.limit(address, 2)
        place.throw_out(address)


def _unlimit(place: Place) -> None:
    for address in place.addresses:
        place.limit(address, -1)


_reset = _each(lambda address: address.proxy.reset())


ROWS: Final = (
    Row(
        "down at start",
        "The server does not run when the pool is made, and starts 1.5 s later.",
        _kill, _restart, 1.5, early=True,
    ),
    Row(
        "restart, idle",
        "The server is killed and started again while all connections are idle.",
        _kill_and_restart, hold=0.1, idle=True,
    ),
    Row(
        "restart, in use",
        "The server is killed under load, and started again 1 s later.",
        _kill, _restart,
    ),
    Row(
        "reset, idle",
        "All connections are reset (RST) while they are idle.",
        _reset, hold=0.1, idle=True,
    ),
    Row(
        "reset, in use",
        "All connections are reset under load.",
        _reset, hold=0.0,
    ),
    Row(
        "half-closed, idle",
        "The server's side of all idle connections is closed (FIN), and the client's is not.",
        _each(lambda address: address.proxy.half_close()), hold=0.1, idle=True,
    ),
    Row(
        "dropped, idle",
        "What stands between forgets all idle connections and tells nobody, as load balancers do.",
        _each(lambda address: address.proxy.drop()), hold=2.0, idle=True, silent=True,
    ),
    Row(
        "black hole",
        "No packet comes back for 2.5 s, under load; who connects is not answered either.",
        _each(lambda address: address.proxy.black_hole(accept=False)), _heal, 2.5, silent=True,
    ),
    Row(
        "server stopped",
        "SIGSTOP of the server's processes under load, SIGCONT 2.5 s later.",
        Place.freeze, Place.thaw, 2.5, silent=True,
    ),
    Row(
        "slow",
        "Every packet takes 0.1 s longer, each way, for 2 s.",
        _each(lambda address: address.proxy.delay(0.1)), _heal, 2.0,
    ),
    Row(
        "wrong password",
        "The program has a wrong password when the pool is made, and the right one 1.5 s later.",
        _forget_the_password, _remember_it, 1.5, early=True, refusal=True, places=TELLS,
    ),
    Row(
        "password rotated",
        "The server has a new password and ends all connections; the program knows it 1 s later.",
        _rotate, _remember_it, 1.0, refusal=True, places=TELLS,
    ),
    Row(
        "limit reached",
        "The server ends all connections and grants two to four callers, for 1.5 s.",
        _limit, _unlimit, 1.5, refusal=True, places=("postgres",),
    ),
)  # fmt: skip
