"""Tells a listener how far a long stage has come, without passing a callback through every function."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Listener = Callable[[str, str, int, int], None]
"""Called with the stage's name, what is being done in it, the units done and all its units."""

_listener: ContextVar[tuple[Listener, str] | None] = ContextVar("listener", default=None)


class Stages:
    """The stages of one job: each is timed and, where there is a listener, announced.

    Attributes:
        seconds: wall time of each finished stage.
    """

    def __init__(self, listener: Listener | None = None) -> None:
        self.listener = listener
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Everything inside is part of the stage `name`."""
        token = _listener.set((self.listener, name) if self.listener is not None else None)
        advance("", 0, 1)
        began = time.perf_counter()
        try:
            yield
            self.seconds[name] = round(time.perf_counter() - began, 2)
            advance("", 1, 1)
        finally:
            _listener.reset(token)


@contextmanager
def quietly() -> Iterator[None]:
    """Nobody hears how far what is inside has come: it is a part of something that tells so itself."""
    token = _listener.set(None)
    try:
        yield
    finally:
        _listener.reset(token)


def advance(doing: str, done: int, total: int) -> None:
    """Reports to the listener of the current stage; does nothing where there is none."""
    current = _listener.get()
    if current is not None:
        listener, stage = current
        listener(stage, doing, done, total)
