"""Measure one workload without a pool and with millpond, while the server is killed and restarted under it.

    make demo

It starts a PostgreSQL of its own, takes less than a minute, and leaves nothing behind but demo.png. It exits with 1 if
millpond has broken its promise, with 2 if it could not run here.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import Final, NoReturn

ROOM: Final = 300
"""Megabytes that the server needs for a while in the directory for temporary files."""
PICTURE: Final = Path("demo.png")


def main() -> int:
    """Run it all, and turn what can be expected to go wrong into a sentence."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _leave)
    try:
        _look_around()
        with tempfile.TemporaryDirectory(prefix="millpond-") as scratch:
            os.environ["MPLCONFIGDIR"] = scratch  # matplotlib writes down which fonts there are
            from demo.play import play

            return play(PICTURE)
    except KeyboardInterrupt:
        print("\nInterrupted; the server has been stopped and removed.", file=sys.stderr)
        return 130
    except ImportError as error:
        return _excuse(error, "`make demo` installs what is needed; if it did, there may be no wheel for this platform")
    except OSError as error:
        return _excuse(error, f"see to it that {tempfile.gettempdir()} has room and that ports of 127.0.0.1 can be used")
    except RuntimeError as error:
        return _excuse(error, "the end of the server's log should say why; it listens on 127.0.0.1 only")


def _look_around() -> None:
    """Raise OSError now for what would go wrong later."""
    directory = tempfile.gettempdir()
    room = shutil.disk_usage(directory).free // 2**20
    if room < ROOM:
        raise OSError(f"{directory} has {room} MB of room, and the server needs {ROOM}; TMPDIR=... names another")
    if not os.access(PICTURE if PICTURE.exists() else Path.cwd(), os.W_OK):
        raise OSError(f"{PICTURE} cannot be written in {Path.cwd()}")


def _leave(number: int, _: object) -> NoReturn:
    sys.exit(128 + number)


def _excuse(error: Exception, hint: str) -> int:
    print(f"\nThe demo cannot run here. {type(error).__name__}: {error}\n  hint: {hint}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
