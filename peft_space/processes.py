"""Several processes that do one job: started by a launcher, all run the same lines and hold the same values.

Work that falls into batches is shared out (`share`), and what each process made of its own is put together again
(`gathered` and what is built on it), so that all go on with the same. This happens inside `together()` only, which the
stages of an erasure open for themselves. A single process takes its way through all of it unchanged.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from torch import Tensor, distributed, nn
from transformers import TrainingArguments

T = TypeVar("T")
K = TypeVar("K")

_SPLITTING = {"FSDP": ("ACCELERATE_USE_FSDP", "fsdp"), "DeepSpeed": ("ACCELERATE_USE_DEEPSPEED", "deepspeed")}
"""What can split a model: the variable by which a launcher asks for it, and the training argument that does."""

_joined: ContextVar[bool] = ContextVar("joined", default=False)


class ProcessFailed(RuntimeError):
    """Another process of the same job failed, so that this one cannot go on either."""


@dataclass(frozen=True)
class _Failure:
    what: str


def place() -> tuple[int, int]:
    """The number of this process, from 0, and how many there are."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def leads() -> bool:
    """Whether it is this process that writes files and talks to the user."""
    return place()[0] == 0


@contextmanager
def together() -> Iterator[None]:
    """All processes do what is inside, each its share; none leaves before the others have done theirs.

    Where one of them fails, the others learn of it as soon as they next need something of it. Stands around a block,
    or, as a decorator, around a function; inside another one it does nothing more.

    Raises:
        ProcessFailed: another process raised an error.
    """
    _join()
    if place()[1] == 1 or _joined.get():
        yield
        return
    token = _joined.set(True)
    try:
        yield
        gathered(None)
    except ProcessFailed:
        raise
    except Exception as error:
        with suppress(RuntimeError):  # there may be nobody left to tell
            _exchanged(_Failure(f"{type(error).__name__}: {error}"))
        raise
    finally:
        _joined.reset(token)


def share(items: Iterable[T]) -> Iterator[T]:
    """Those of the items that are this process's own: every n-th of them for n processes."""
    number, n_processes = place() if _joined.get() else (0, 1)
    return islice(items, number, None, n_processes)


def gathered(value: T) -> list[T]:
    """What each process gives, in order, the same for all of them. Tensors have to be on the CPU.

    Raises:
        ProcessFailed: another process raised an error.
    """
    if not _joined.get():
        return [value]
    said = _exchanged(value)
    for number, one in enumerate(said):
        if isinstance(one, _Failure):
            raise ProcessFailed(f"process {number} of {len(said)} failed: {one.what}")
    return said


def merged(found: dict[K, T]) -> dict[K, T]:
    """What was found by all processes, each of which has its own keys."""
    return {key: value for part in gathered(found) for key, value in part.items()}


def added(x: Tensor) -> Tensor:
    """The sum over all processes."""
    parts = gathered(x)
    return x if len(parts) == 1 else torch.stack(parts).sum(0)


def all_rows(rows: Tensor) -> Tensor:
    """The rows of all processes, `(n, ...)`. Gradients flow to those of this process only."""
    if not _joined.get():
        return rows
    parts = gathered(rows.detach().cpu())
    return torch.cat([rows if number == place()[0] else part.to(rows.device) for number, part in enumerate(parts)])


def add_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Sums the gradients of all processes, in place; a process that has none gives zeros."""
    if not _joined.get():
        return
    # a process that failed on its way here says so now, and nobody waits for its gradients
    gathered(None)
    begun = []
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        begun.append(distributed.all_reduce(parameter.grad, async_op=True))
    for work in begun:
        work.wait()


def begin_alike(parameters: Iterable[nn.Parameter]) -> None:
    """Gives the parameters of all processes the values that they have in the first."""
    if _joined.get():
        gathered(None)
        for parameter in parameters:
            distributed.broadcast(parameter.data, src=0)


def agree(**values: Any) -> None:
    """Raises where the processes were called with different values.

    Raises:
        ValueError: with the first that differs.
    """
    said = gathered(values)
    for name in values:
        for number, other in enumerate(said):
            if other[name] != said[0][name]:
                raise ValueError(
                    f"`{name}` must be the same in all processes that do one job; got {said[0][name]!r} in the first "
                    f"and {other[name]!r} in number {number}. For separate jobs launch one process each."
                )


def check_whole(model: nn.Module, args: TrainingArguments | None = None) -> None:
    """Raises where the model is split over processes.

    Args:
        model: what every process needs as a whole.
        args: settings that may ask for it to be split.

    Raises:
        ValueError: it is, or the launcher is about to do it.
    """
    by = [
        name
        for name, (variable, setting) in _SPLITTING.items()
        if os.environ.get(variable, "").lower() == "true" or getattr(args, setting, None)
    ]
    if any(hasattr(parameter, "device_mesh") for parameter in model.parameters()):
        by.append("DTensor")
    if by:
        raise ValueError(
            f"`model` must be whole in every process; got one that is split by {' and '.join(by)}. Launch without it "
            "(`accelerate launch --multi_gpu`, or torchrun). Where one device's memory is too small, load the model "
            "with `load_in_4bit=True` and pass `low_memory=True`. docs/distributed.md says what can be done by hand."
        )


def check_joined(args: TrainingArguments) -> None:
    """Raises where settings do not know of all processes: each would train, and write, as if it were alone.

    Raises:
        ValueError: with what makes them known.
    """
    n_processes = place()[1]
    if args.world_size != n_processes:
        raise ValueError(
            f"`args` must know of all {n_processes} processes; got settings for {args.world_size}. Where "
            "the processes are on CPUs, pass `use_cpu=True`."
        )


def _join() -> None:
    """Joins the processes that a launcher has started, if that was not done yet."""
    asked = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("true", "1")
    PartialState(cpu=asked or not torch.accelerator.is_available())


def _exchanged(value: Any) -> list[Any]:
    said: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(said, value)
    return said
