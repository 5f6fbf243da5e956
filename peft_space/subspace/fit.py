"""Fitting the retained subspace: one forward pass over inputs whose outputs must stay."""

from __future__ import annotations

import math
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from peft_space.processes import gathered, together
from peft_space.progress import advance
from peft_space.subspace.inputs import TokenRows, find_targets, in_width, watch
from peft_space.subspace.moments import DenseMoment, Moment, SketchedMoment, average, principal_subspace
from peft_space.subspace.retained import InputRecord, RetainedSubspace

DENSE_MAX_WIDTH = 4096
DENSE_BUDGET = 4 * 2**30
"""Bytes that all dense moments of one fit may take."""
MOMENT_BUDGET = 3 * 2**30
"""Bytes that all moments of one pass may take."""
LOW_MOMENT_BUDGET = 2**30
"""The same where memory is short."""


@together()
def fit_retained_subspace(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    target_modules: Sequence[str] | None = None,
    energy: float = 0.99,
    max_rank: int | None = None,
    method: Literal["auto", "dense", "sketch"] = "auto",
    groups: Literal["balanced", "pooled"] = "balanced",
    progress: Callable[[int], None] | None = None,
    sketch_size: int = 512,
    adapters: bool = False,
    budget: int = MOMENT_BUDGET,
) -> RetainedSubspace:
    """Finds the directions that hold most of the energy of each target layer's inputs.

    Layers are watched in one forward pass of the base model, or of the model as it is, or in several where the
    moments of all layers would take too much memory at a time. The bases are held on the CPU. Layers that read the
    same tensor, such as q, k and v, share one statistic. It is the uncentred second moment of the inputs that are not
    padding; image tokens, text beside an image and text alone are each scaled to trace 1 and then averaged, as an
    image brings hundreds of tokens and would else be all that is protected.

    Where several processes run, every one gives batches of its own, or none, and all get the subspace of all.

    Args:
        model: a transformers model, or a `PeftModel` around one.
        batches: model inputs to retain: `input_ids`, `attention_mask`, `pixel_values` and so on. They are gone over
            once for each pass.
        target_modules: full dotted paths in the transformers model. `None` stands for what the active adapters
            target, or, without an adapter, for the linear layers in the language model's blocks.
        energy: share of the inputs' energy to keep, between 0 and 1. Of each layer the fewest directions that hold it
            are kept, and never all.
        max_rank: at most so many directions for a layer.
        method: "dense" holds a `(d, d)` moment, "sketch" one of `O(d * sketch_size)`. "auto" takes dense moments up to
            a width of 4096, if those of all target layers fit into 4 GiB even if no two shared their input.
        groups: "balanced" as above, or "pooled" to let every token count the same.
        progress: called after each batch with the number done.
        sketch_size: most directions that a sketch can tell apart.
        adapters: run the model with its active adapters, for one more adapter beside them.
        budget: bytes that the moments of one pass may take, three kinds of token for every layer, as if no two layers
            shared their input. What is found does not depend on it.

    Raises:
        TypeError: `model` has no language model to target by default, a batch is not a mapping, or `batches` can be
            gone over only once and one pass is not enough.
        ValueError: an argument is out of range, there is no batch, a target layer saw no input or only zeros, an
            input is not finite, or layers that share their input in one batch do not in another.

    Warns:
        UserWarning: a sketch is too small for the energy asked of it.
    """
    _check_arguments(energy, max_rank, method, groups, sketch_size)
    targets = find_targets(model, target_modules)
    dense = _dense_widths(targets, method)

    def new_moment(x: Tensor) -> Moment:
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        if x.shape[-1] in dense:
            return DenseMoment(x.shape[-1], x.device, dtype)
        return SketchedMoment(x.shape[-1], sketch_size, x.device, dtype)

    def size(layer: nn.Module) -> int:
        width = in_width(layer) or 0
        # Up to three kinds of token, each with a matrix of 4-byte numbers.
        return 3 * 4 * width * (width if width in dense else min(sketch_size, width))

    passes = _passes(targets, size, budget)
    if len(passes) > 1 and iter(batches) is batches:
        raise TypeError(
            f"`batches` must be a list, or something else that can be gone over {len(passes)} times; got "
            f"{type(batches).__name__}. Or raise `budget` (={budget})."
        )
    bases: dict[str, Tensor] = {}
    members: dict[str, str] = {}
    records: dict[str, InputRecord] = {}
    done = 0
    for part in passes:
        statistics = _DistinctInputs(new_moment)

        def batch_done(number: int, statistics: _DistinctInputs = statistics) -> None:
            nonlocal done
            done += 1
            statistics.end_batch()
            if progress is not None:
                progress(done)

        watch(model, part, batches, statistics.see, adapters=adapters, progress=batch_done)
        statistics.add_up(part)
        unseen = [name for name in part if name not in statistics.members]
        if unseen:
            raise ValueError(
                f"`target_modules` must be layers that `batches` pass through; got {len(unseen)} that saw no input, "
                f"such as {unseen[0]!r}. Do leave them out, or add batches (images, for a vision tower) that reach "
                "them."
            )
        members |= statistics.members
        for key, basis, record in _solve(statistics, energy, max_rank, groups):
            bases[key], records[key] = basis, record
    _warn_of_short(records, bases, energy, max_rank)
    return RetainedSubspace(bases, members, records)


def _passes(
    targets: Mapping[str, nn.Module], size: Callable[[nn.Module], int], budget: int
) -> list[dict[str, nn.Module]]:
    """The layers in as few groups, in order, as have their moments within `budget`; those of one block together."""
    blocks: dict[str, dict[str, nn.Module]] = {}
    for name, layer in targets.items():
        # the path up to the block's number: layers that share their input lie in one block
        blocks.setdefault(_block(name), {})[name] = layer
    passes: list[dict[str, nn.Module]] = [{}]
    taken = 0
    for block in blocks.values():
        needed = sum(map(size, block.values()))
        if passes[-1] and taken + needed > budget:
            passes.append({})
            taken = 0
        passes[-1] |= block
        taken += needed
    return passes


def _block(name: str) -> str:
    parts = name.split(".")
    numbers = [place for place, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[: numbers[0] + 1]) if numbers else ""


@dataclass
class _Input:
    """One distinct input: its moments by kind of token, and the tensor last seen."""

    key: str
    moments: dict[str, Moment] = field(default_factory=dict)
    latest: Callable[[], Tensor | None] = lambda: None
    version: int = -1

    def holds(self, x: Tensor) -> bool:
        return self.latest() is x and self.version == x._version


class _DistinctInputs:
    """Finds out which layers read the same tensor, and keeps one statistic for each of them."""

    def __init__(self, new_moment: Callable[[Tensor], Moment]) -> None:
        self.inputs: dict[str, _Input] = {}
        self.members: dict[str, str] = {}
        self._new_moment = new_moment
        self._born: list[_Input] = []

    def see(self, name: str, module: nn.Module, x: Tensor, output: Tensor | None, rows: TokenRows) -> None:
        if name not in self.members:
            # Only an input first met in this very batch can be joined: an older one has seen what `name` has not.
            shared = next((one for one in reversed(self._born) if one.holds(x)), None)
            if shared is None:
                shared = self.inputs[name] = _Input(name)
                self._born.append(shared)
            self.members[name] = shared.key
        one = self.inputs[self.members[name]]
        if name == one.key:
            # A weak reference, so that watching does not keep the activations of a whole pass alive.
            one.latest, one.version = weakref.ref(x), x._version
            for kind, part in rows.split(name, x):
                if kind not in one.moments:
                    one.moments[kind] = self._new_moment(x)
                one.moments[kind].update(part)
        elif not one.holds(x):
            raise _parted(name, one.key)

    def add_up(self, layers: Mapping[str, nn.Module]) -> None:
        """Sums what all processes have seen. Some may not have met every layer or every kind of token."""
        seen = gathered((self.members, {key: list(one.moments) for key, one in self.inputs.items()}))
        if len(seen) == 1:
            return
        for members, _ in seen:
            for name, key in members.items():
                if self.members.setdefault(name, key) != key:
                    raise _parted(name, key)
        # in one order for all processes, so that they add up the same and come to the same sums
        kinds: dict[str, dict[str, None]] = {}
        for _, met in seen:
            for key, of_key in met.items():
                kinds.setdefault(key, {}).update(dict.fromkeys(of_key))
        own, self.inputs = self.inputs, {}
        for key, of_all in kinds.items():
            known = own[key].moments if key in own else {}
            nothing = next(layers[key].parameters()).new_empty(0, in_width(layers[key]) or 0)
            self.inputs[key] = _Input(key, {kind: known.get(kind) or self._new_moment(nothing) for kind in of_all})
            for moment in self.inputs[key].moments.values():
                moment.add_up()

    def end_batch(self) -> None:
        self._born.clear()
        for one in self.inputs.values():
            one.latest = lambda: None


def _parted(name: str, key: str) -> ValueError:
    return ValueError(
        f"`batches` must all take the same way through the model; got {name!r} and {key!r} sharing their "
        "input in one batch and not in a later one. Do fit the two in separate calls by `target_modules`."
    )


def _solve(
    statistics: _DistinctInputs, energy: float, max_rank: int | None, groups: str
) -> Iterator[tuple[str, Tensor, InputRecord]]:
    """By input its basis, on the CPU, and its record; the moments are given up one after the other."""
    keys = list(statistics.inputs)
    for number, key in enumerate(keys):
        advance("bases", number, len(keys))
        one = statistics.inputs.pop(key)
        moments: list[Any] = list(one.moments.values())
        traces = [moment.trace for moment in moments]
        if not all(map(math.isfinite, traces)) or not sum(traces):
            raise ValueError(
                f"`batches` must give every layer inputs that are finite and not all zero; got a sum of squares of "
                f"{sum(traces)} for {key!r}. Do load the model in a wider dtype, or leave the layer out."
            )
        total = average(moments) if groups == "balanced" else type(moments[0]).combine(moments, [1.0] * len(moments))
        principal = principal_subspace(total, energy, max_rank)
        record = InputRecord(
            energy=principal.energy,
            method=total.method,
            counts={kind: moment.count for kind, moment in one.moments.items()},
            spectrum=principal.spectrum.cpu(),
        )
        yield key, principal.basis.cpu(), record


def _warn_of_short(
    records: Mapping[str, InputRecord], bases: Mapping[str, Tensor], energy: float, max_rank: int | None
) -> None:
    short = [
        (record.energy, key)
        for key, record in records.items()
        if record.energy < energy and record.method == "sketch" and bases[key].shape[1] != max_rank
    ]
    if short:
        lowest, key = min(short)
        warnings.warn(
            f"`sketch_size` is too small to show an energy of {energy} for {len(short)} of {len(bases)} inputs: "
            f"at least {lowest:.4f} is kept for {key!r}. Do raise it.",
            stacklevel=4,
        )


def _dense_widths(targets: Mapping[str, nn.Module], method: str) -> set[int]:
    widths = [width for width in map(in_width, targets.values()) if width is not None]
    if method != "auto":
        return set(widths) if method == "dense" else set()
    narrow = [width for width in widths if width <= DENSE_MAX_WIDTH]
    return set(narrow) if sum(3 * 4 * width**2 for width in narrow) <= DENSE_BUDGET else set()


def _check_arguments(energy: float, max_rank: int | None, method: str, groups: str, sketch_size: int) -> None:
    if not 0 < energy < 1:
        raise ValueError(f"`energy` must be between 0 and 1, both excluded; got {energy}. Do try 0.99.")
    if max_rank is not None and max_rank < 1:
        raise ValueError(f"`max_rank` must be at least 1; got {max_rank}. Do pass `None` for no limit.")
    if sketch_size < 2:
        raise ValueError(f"`sketch_size` must be at least 2; got {sketch_size}. Do try 512.")
    if method not in ("auto", "dense", "sketch"):
        raise ValueError(f'`method` must be "auto", "dense" or "sketch"; got {method!r}. Do leave it at "auto".')
    if groups not in ("balanced", "pooled"):
        raise ValueError(f'`groups` must be "balanced" or "pooled"; got {groups!r}. Do leave it at "balanced".')
