"""The test beds by name, each with the model that was trained on it, which is trained where it is not there yet."""

from __future__ import annotations

import argparse
import functools
import hashlib
import inspect
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from peft_space import Concept, PublicImages, Retain, testbed
from peft_space.testbed import Bed, architecture, recipe
from peft_space.testbed.world import load
from peft_space.unfinished import unfinished

from . import digits, persons

BEDS: dict[str, Bed] = {"bestiary": testbed.BESTIARY, "digits": digits.BED, "persons": persons.BED}
CACHE = Path("~/.cache/peft_space/beds")
PHASES = recipe.PHASES
"""What the bestiary was trained with."""


@dataclass(frozen=True)
class World:
    """A trained bed, asked in the words of `peft_space.testbed`, which is the bestiary's world.

    Attributes:
        bed: what can be drawn and asked.
        folder: where the trained model lies.
    """

    bed: Bed
    folder: str

    def load(self) -> Any:
        return load(self.folder)

    def concept(self, name: str, *, generic: bool = False) -> Concept:
        return self.bed.concept(name, generic=generic)

    def retain(self) -> Retain:
        return self.bed.retain()

    def public_images(self, target: str | Sequence[str], n_images: int = 2000, seed: int = 0) -> PublicImages:
        return self.bed.public_images(target, n_images, seed)

    @property
    def Exam(self) -> Callable[..., testbed.Exam]:
        return functools.partial(testbed.Exam, bed=self.bed)


def key(bed: Bed, seed: int = 0, phases: Sequence[recipe.Phase] = PHASES) -> str:
    """Tells a model apart from those of another recipe: changes with the lessons and with how they are taught.

    A batch of each phase stands for the lessons; of the code only what draws no lesson is read.
    """
    processor = architecture.build_processor(architecture.build_tokenizer(bed.texts(), cuts=bed.cuts))
    hashed = hashlib.sha256(repr(tuple(phases)).encode())
    for part in (recipe.train, recipe._optimiser, recipe._answers_loss, recipe.Contrast, architecture.build_model):
        hashed.update(inspect.getsource(part).encode())
    hashed.update(repr(bed.words).encode())
    for batch in recipe.Lessons(processor, seed, None, [replace(phase, steps=1) for phase in phases], bed):
        for name in sorted(batch):
            hashed.update(batch[name].numpy().tobytes())
    return hashed.hexdigest()[:12]


def trained(
    name: str,
    *,
    without: str | None = None,
    folder: Path = CACHE,
    seed: int = 0,
    phases: Sequence[recipe.Phase] = PHASES,
    device: str = "cpu",
    workers: int = 1,
) -> Path:
    """The folder of the model that knows a bed, or of the retrain oracle of one of its names.

    Where it is not there it is trained, which takes about an hour of a core, written beside and renamed.

    Args:
        name: key of `BEDS`.
        without: a name that the model has never seen.
        folder: holds a folder for each bed and recipe, with `base` and `oracles/NAME` in it.
        seed: of the weights and of the lessons.
        phases: the stretches of training.
        device: where to train.
        workers: processes that draw the lessons.

    Raises:
        ValueError: there is no such bed, it has no such name, or another process is training the same model.
    """
    if name not in BEDS:
        raise ValueError(f"`name` must be one of {', '.join(BEDS)}; got {name!r}.")
    bed = BEDS[name]
    if without is not None:
        bed.known(without)
    home = Path(folder).expanduser() / f"{name}-{key(bed, seed, phases)}"
    place = home / "oracles" / without if without is not None else home / "base"
    if not place.is_dir():
        with unfinished(place, "folder") as beside:
            model, processor = recipe.train(
                seed=seed, without=without, phases=phases, bed=bed, device=device, workers=workers
            )
            recipe.save(model, processor, beside / "model")
            os.rename(beside / "model", place)
    return place


def add_bed(parser: argparse.ArgumentParser) -> None:
    """The options of a benchmark that runs on any bed."""
    parser.add_argument("--bed", choices=list(BEDS), default="bestiary")
    parser.add_argument("--folder", type=Path, default=CACHE, metavar="DIR", help="where trained beds are kept")


def model_folder(arguments: argparse.Namespace) -> str | None:
    """Where the model of the bed that was asked for lies, trained first if need be; `None` for the one that ships."""
    return None if arguments.bed == "bestiary" else str(trained(arguments.bed, folder=arguments.folder))


def world(name: str, folder: str | None = None) -> Any:
    """What a benchmark asks of a bed; for `"bestiary"` that is `peft_space.testbed` itself.

    Args:
        folder: where the bed's trained model lies.
    """
    return testbed if name == "bestiary" else World(BEDS[name], str(folder))
