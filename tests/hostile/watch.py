"""Tells what is done outside of a folder while somebody's file is read: files opened or changed, programs, pickles."""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.symlink", "os.link", "os.chmod", "os.truncate")
_RUNS = (
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "pickle.find_class",
    "socket.connect",
)
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# what is imported late is read from where Python and its packages are
_LIBRARIES = {Path(sysconfig.get_path(key)).resolve() for key in ("stdlib", "platstdlib", "purelib", "platlib")}
_LIBRARIES |= {Path(sys.prefix).resolve(), Path(sys.base_prefix).resolve(), Path(__file__).parents[2].resolve()}
_LIBRARIES |= {Path("/proc"), Path("/sys"), Path("/dev/urandom"), Path("/dev/null"), Path("/etc/mime.types")}

_inside: list[Path] = []
_seen: list[str] = []
_busy = False


def _allowed(path: object, writes: bool) -> bool:
    if not isinstance(path, (str, bytes, os.PathLike)):  # a descriptor that is open already
        return True
    resolved = Path(os.path.realpath(os.fsdecode(path)))
    if any(resolved.is_relative_to(folder) for folder in _inside):
        return True
    return not writes and any(resolved.is_relative_to(folder) for folder in _LIBRARIES)


def _hook(event: str, args: tuple) -> None:
    global _busy
    if not _inside or _busy:
        return
    _busy = True
    try:
        if event in _RUNS:
            _seen.append(f"{event} {args!r:.200}")
        elif event == "open" and not _allowed(args[0], bool((args[2] or 0) & _WRITES)):
            _seen.append(f"open {args!r:.200}")
        elif event in _CHANGES and not all(
            _allowed(path, True) for path in args[:2] if isinstance(path, (str, bytes))
        ):
            _seen.append(f"{event} {args!r:.200}")
    finally:
        _busy = False


sys.addaudithook(_hook)


class EscapeError(AssertionError):
    """Something was done outside of the folder."""


@contextmanager
def kept_inside(*folders: Path) -> Iterator[None]:
    """Raises where anything but Python's own files is touched outside of `folders`, or a program or pickle is run."""
    _inside[:], _seen[:] = [Path(os.path.realpath(folder)) for folder in folders], []
    try:
        yield
    finally:
        _inside.clear()
    if _seen:
        raise EscapeError("; ".join(_seen[:5]))
