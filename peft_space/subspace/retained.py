"""The directions of each layer's input whose outputs must stay as they are."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..untrusted import is_number, read_json

TENSORS_NAME = "retained_subspace.safetensors"
RECORD_NAME = "retained_subspace.json"
FORMAT = 1
METHODS = ("dense", "sketch")


@dataclass(frozen=True)
class InputRecord:
    """How the basis of one distinct input came about.

    Attributes:
        energy: share of the inputs' energy inside the basis; a lower bound where the method is "sketch".
        method: "dense" or "sketch".
        counts: tokens seen, by kind: "image", "text" (beside an image), "text_only", "other".
        spectrum: `(m,)` float32, each eigenvalue's share of the energy, largest first; empty where unknown.
    """

    energy: float
    method: str
    counts: Mapping[str, int] = field(default_factory=dict)
    spectrum: Tensor = field(default_factory=lambda: torch.zeros(0))

    def outside(self, points: int = 32) -> list[tuple[int, float]]:
        """The share of energy outside the first so many directions, at about `points` ranks from 1 to all of them."""
        if not len(self.spectrum):
            return []
        ranks = torch.logspace(0, math.log10(len(self.spectrum)), points, dtype=torch.float64).round().long().unique()
        left = [*self.spectrum.double().flip(0).cumsum(0).flip(0).tolist(), 0.0]
        return [(rank, left[rank]) for rank in ranks.tolist()]


@dataclass(frozen=True)
class RetainedSubspace:
    """An orthonormal basis of the inputs to keep for every targeted layer. Layers that read one input share one basis.

    Attributes:
        bases: by input, `(d, k)` float32 with orthonormal columns and `0 < k < d`.
        members: by layer (dotted path in the transformers model), the input it reads.
        records: by input, how its basis came about.

    Raises:
        ValueError: a basis is not orthonormal or has a wrong shape, or the three do not fit one another.
    """

    bases: Mapping[str, Tensor]
    members: Mapping[str, str]
    records: Mapping[str, InputRecord]

    def __post_init__(self) -> None:
        keys = set(self.bases)
        if not keys or keys != set(self.records) or keys != set(self.members.values()):
            raise ValueError(
                "`bases`, `records` and the values of `members` must hold the same inputs, at least one; got "
                f"{sorted(keys ^ set(self.records) ^ set(self.members.values()))[:3] or len(keys)}. "
                "Do fit the subspace again."
            )
        for key, basis in self.bases.items():
            _check_basis(key, basis)
            _check_record(key, self.records[key])

    @property
    def module_names(self) -> list[str]:
        """Dotted paths of all layers that have a basis."""
        return list(self.members)

    def basis(self, module_name: str) -> Tensor:
        """The basis `(d, k)` of the layer `module_name`: the same tensor object for layers that read one input.

        Raises:
            KeyError: the layer has none.
        """
        if module_name not in self.members:
            raise KeyError(
                f"`module_name` must be one of the {len(self.members)} layers the subspace was fitted for, such as "
                f"{next(iter(self.members))!r}; got {module_name!r}. Do fit with it among `target_modules`."
            )
        return self.bases[self.members[module_name]]

    def union(self, other: RetainedSubspace) -> RetainedSubspace:
        """A subspace that keeps what either keeps; layers that only one knows are taken over from it.

        Raises:
            ValueError: a layer has different widths in the two, or nothing would be left to train in it.
        """
        pairs = {n: (self.members.get(n), other.members.get(n)) for n in [*self.members, *other.members]}
        keys: dict[tuple[str | None, str | None], str] = {}
        for name, pair in pairs.items():
            keys.setdefault(pair, name)
        bases, records = {}, {}
        for (mine, theirs), key in keys.items():
            if theirs is None and mine is not None:
                bases[key], records[key] = self.bases[mine], self.records[mine]
            elif mine is None and theirs is not None:
                bases[key], records[key] = other.bases[theirs], other.records[theirs]
            elif mine is not None and theirs is not None:
                bases[key] = _joint_basis(key, self.bases[mine], other.bases[theirs])
                records[key] = _joint_record(self.records[mine], other.records[theirs])
        return RetainedSubspace(bases, {name: keys[pair] for name, pair in pairs.items()}, records)

    def summary(self) -> str:
        """One line for each distinct input: its width, the rank and energy kept, and the layers that read it."""
        lines = [f"{len(self.bases)} distinct inputs of {len(self.members)} layers"]
        for key, basis in self.bases.items():
            record = self.records[key]
            readers = [name for name, input_key in self.members.items() if input_key == key]
            shared = "".join(f", {name.rsplit('.', 1)[-1]}" for name in readers if name != key)
            rank = f"rank {basis.shape[1]}/{basis.shape[0]}"
            lines.append(f"{key}{shared}: {rank}, energy {record.energy:.4f}, {record.method}")
        return "\n".join(lines)

    def save(self, path: str | os.PathLike) -> None:
        """Writes `retained_subspace.safetensors` and `.json` into the folder `path`, replacing those there.

        Each file is written beside its place and then renamed, so that a failure leaves nothing half-written.
        """
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {f"basis.{key}": basis.detach().cpu().contiguous() for key, basis in self.bases.items()}
        tensors |= {f"spectrum.{key}": record.spectrum.cpu().contiguous() for key, record in self.records.items()}
        new_tensors, new_record = (folder / f"{name}.{os.getpid()}.new" for name in (TENSORS_NAME, RECORD_NAME))
        try:
            save_file(tensors, new_tensors)
            record = {
                "format": FORMAT,
                # Two files can't be renamed at once: the digest tells a pair that does not belong together.
                "sha256": _digest(new_tensors),
                "members": dict(self.members),
                "inputs": {
                    key: {"energy": r.energy, "method": r.method, "counts": dict(r.counts)}
                    for key, r in self.records.items()
                },
            }
            new_record.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
            new_tensors.replace(folder / TENSORS_NAME)
            new_record.replace(folder / RECORD_NAME)
        finally:
            new_tensors.unlink(missing_ok=True)
            new_record.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | os.PathLike) -> RetainedSubspace:
        """Reads what `save` wrote into the folder `path`.

        Raises:
            FileNotFoundError: one of the two files is missing.
            ValueError: they are damaged, do not belong together or do not describe a subspace.
        """
        folder = Path(path)
        try:
            record = read_json(folder / RECORD_NAME)
            _check_layout(record)
            if _digest(folder / TENSORS_NAME) != record["sha256"]:
                raise ValueError(f"{TENSORS_NAME} and {RECORD_NAME} do not belong together")
            tensors = load_file(folder / TENSORS_NAME)
            inputs = record["inputs"]
            expected = {f"{part}.{key}" for key in inputs for part in ("basis", "spectrum")}
            if set(tensors) != expected:
                raise ValueError(f"the tensors {sorted(set(tensors) ^ expected)[:3]} are missing or unknown")
            return cls(
                bases={key: tensors[f"basis.{key}"] for key in inputs},
                members=record["members"],
                records={key: InputRecord(spectrum=tensors[f"spectrum.{key}"], **r) for key, r in inputs.items()},
            )
        except (ValueError, SafetensorError) as error:
            raise ValueError(
                f"`path` must be a folder with a retained subspace; got {folder}, where {error}. Do fit it again."
            ) from error


def _check_basis(key: str, basis: Tensor) -> None:
    shape = tuple(basis.shape)
    if basis.dtype != torch.float32 or len(shape) != 2 or not 0 < shape[1] < shape[0]:
        raise ValueError(
            f"`bases` must be float32 of shape (d, k) with 0 < k < d; got {basis.dtype} of {shape} for {key!r}. "
            "Do keep less energy, or give `max_rank`: a basis of all directions leaves nothing to train."
        )
    gap = float((basis.T @ basis - torch.eye(shape[1], device=basis.device)).abs().max())
    if not gap < 1e-3:
        raise ValueError(
            f"`bases` must have orthonormal columns; got {gap:.1e} off for {key!r}. Do fit the subspace again."
        )


def _check_record(key: str, record: InputRecord) -> None:
    numbers = [record.energy, *record.counts.values()]
    spectrum = record.spectrum
    if (
        not all(is_number(number) and number >= 0 for number in numbers)
        or not 0 < record.energy <= 1
        or record.method not in METHODS
        or spectrum.ndim != 1
        or spectrum.dtype != torch.float32
        or not bool((spectrum >= 0).all())
    ):
        raise ValueError(
            f"`records` must hold an energy in (0, 1], a method of {METHODS}, counts and a 1-d spectrum; "
            f"got {record} for {key!r}. Do fit the subspace again."
        )


def _check_layout(record: Any) -> None:
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise ValueError(f"{RECORD_NAME} is not of format {FORMAT}")
    if set(record) != {"format", "sha256", "members", "inputs"}:
        raise ValueError(f"{RECORD_NAME} has the entries {sorted(record)}")
    members, inputs = record["members"], record["inputs"]
    if not isinstance(members, dict) or not all(isinstance(key, str) for key in members.values()):
        raise ValueError("`members` does not map names to names")
    if not isinstance(inputs, dict) or not all(
        isinstance(entry, dict) and set(entry) == {"energy", "method", "counts"} and isinstance(entry["counts"], dict)
        for entry in inputs.values()
    ):
        raise ValueError("`inputs` does not hold an energy, a method and counts for each input")


def _joint_basis(key: str, first: Tensor, second: Tensor) -> Tensor:
    if len(first) != len(second):
        raise ValueError(
            f"`other` must be fitted on the same model; got width {len(second)} against {len(first)} for {key!r}. "
            "Do fit both on one model."
        )
    mine, theirs = first.double(), second.to(first.device).double()
    rest = theirs - mine @ (mine.T @ theirs)
    directions, sizes, _ = torch.linalg.svd(rest, full_matrices=False)
    # Below 1e-4 lies what float32 rounding makes of a direction both hold.
    added = directions[:, sizes > 1e-4]
    joint = torch.cat([mine, added - mine @ (mine.T @ added)], dim=1)
    if joint.shape[1] >= len(joint):
        raise ValueError(
            f"`other` must leave a direction to train; got {joint.shape[1]} of {len(joint)} directions retained for "
            f"{key!r}. Do fit with less `energy` or a smaller `max_rank`."
        )
    return joint.float()


def _joint_record(first: InputRecord, second: InputRecord) -> InputRecord:
    kinds = dict.fromkeys([*first.counts, *second.counts])
    return InputRecord(
        # The joint basis holds at least that much of the energy of each.
        energy=min(first.energy, second.energy),
        method=first.method if first.method == second.method else "sketch",
        counts={kind: first.counts.get(kind, 0) + second.counts.get(kind, 0) for kind in kinds},
    )


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
