"""Where the servers' wheels have put their programs, and a place for them that the server's user may read."""

from __future__ import annotations

import importlib.util
import os
import shutil
import stat
from pathlib import Path

__all__ = ["installed", "readable_by_all", "share"]


def installed(package: str) -> Path:
    """Return the directory of a server's wheel; raise ImportError, naming the extra, if it is not installed.

    The package is found, not imported: what it does on import is not wanted here.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(f"{package} is not installed; pip install 'millpond[testing]' brings it", name=package)
    return Path(spec.submodule_search_locations[0]).resolve()


def readable_by_all(path: Path) -> bool:
    """Tell whether any user may reach and read what lies at `path`."""
    reachable = all(each.stat().st_mode & stat.S_IXOTH for each in path.parents)
    return reachable and bool(path.stat().st_mode & stat.S_IROTH)


def share(source: Path, target: Path, *without: str) -> None:
    """Lay the tree at `source` out at `target`, for any user to read, without what has one of the names.

    Files are linked where that is possible, which takes 20 ms for PostgreSQL's; else copied.
    """
    shutil.copytree(source, target, copy_function=_share_file, ignore=shutil.ignore_patterns(*without))
    for directory, _, _ in os.walk(target):
        os.chmod(directory, 0o755)


def _share_file(source: str, target: str) -> None:
    mode = os.stat(source).st_mode
    if mode & stat.S_IROTH:
        try:
            os.link(source, target)
            return
        except OSError:  # another file system
            pass
    shutil.copyfile(source, target)
    os.chmod(target, 0o755 if mode & stat.S_IXUSR else 0o644)
