"""Where a run keeps what is not finished: a hidden folder beside its output, `.NAME.unfinished` beside `NAME`.

The process that works there holds a lock on it, so that a second one is told; the operating system lets go of the lock
however the process ends. What lies there lets the same command go on after it was stopped, and goes once the output is
in place. An output folder itself is there as a whole or not at all.
"""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import ParamSpec, TypeVar

from filelock import FileLock, Timeout

from .report import check_output

P = ParamSpec("P")
R = TypeVar("R")

_LOCK = "lock"
_current: ContextVar[Path | None] = ContextVar("unfinished", default=None)


def unfinished_folder(output: str | os.PathLike[str]) -> Path:
    """Where what is not finished of `output` lies."""
    target = Path(output)
    return target.parent / f".{target.absolute().name}.unfinished"


def kept(output: str | os.PathLike[str]) -> Path | None:
    """`unfinished_folder(output)` if there is something in it to go on from."""
    folder = unfinished_folder(output)
    return folder if folder.is_dir() and any(entry.name != _LOCK for entry in folder.iterdir()) else None


def workplace() -> Path | None:
    """The folder of the innermost `unfinished` around the caller, if there is one."""
    return _current.get()


@contextmanager
def unfinished(output: str | os.PathLike[str], name: str = "output_dir", overwrite: bool = False) -> Iterator[Path]:
    """Keeps other processes from writing `output`, and gives a folder beside it for what is not finished.

    Inside another one for the same output it gives the same folder and does nothing more. Left without an error, the
    folder goes; left with one it stays, if it holds anything.

    Args:
        output: the folder to write; new or empty.
        name: what the user knows it by.
        overwrite: `output` may have files in it.

    Raises:
        ValueError: `output` is a file, has files in it, or another process is writing it.
        OSError: nothing can be written beside `output`.
    """
    folder = unfinished_folder(output)
    if not overwrite and not folder.exists():
        check_output(output, name)
    folder.mkdir(parents=True, exist_ok=True)
    lock: FileLock = FileLock(folder.absolute() / _LOCK, is_singleton=True)
    outermost = not lock.is_locked
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise ValueError(
            f"`{name}` must be a folder that no other process writes; got {str(output)!r}, which one is writing. "
            "Wait for it, or name another folder."
        ) from None
    token = _current.set(folder)
    written = False
    try:
        if not overwrite:
            # another process may have finished meanwhile, and been killed before it could clear up
            written = Path(output).is_dir() and any(Path(output).iterdir())
            check_output(output, name)
        yield folder
    except BaseException:
        if outermost and (written or kept(output) is None):
            shutil.rmtree(folder, ignore_errors=True)
        raise
    else:
        if outermost:
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        _current.reset(token)
        lock.release()


def writes_output(function: Callable[P, R]) -> Callable[P, R]:
    """The call is `unfinished` where its `output_dir` is given; of several processes the first one sees to it."""

    @functools.wraps(function)
    def inside(*args: P.args, **kwargs: P.kwargs) -> R:
        from .processes import leads

        output = kwargs.get("output_dir")
        if output is None or not leads():
            return function(*args, **kwargs)
        with unfinished(output):  # type: ignore[arg-type]
            return function(*args, **kwargs)

    return inside
