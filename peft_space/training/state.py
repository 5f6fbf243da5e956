"""The training's state on disk, from which a run that was stopped goes on to the very same adapter."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file, save_file
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME

from ..anchors.lessons import Lesson
from ..concepts.images import content_key
from ..tuner import base_fingerprint
from .dose import Reading

if TYPE_CHECKING:
    from .trainer import SpaceTrainer

_ADAPTER, _DOSE = "adapter.safetensors", "dose.json"


class TrainingState(TrainerCallback):
    """Keeps the state after every reading of the dose; the latest one is there as a whole.

    What PEFT saves of an adapter has the projection folded in, and a Trainer that goes on from it rounds otherwise: so
    the factors are kept as they are trained.

    Args:
        folder: where to.
        key: what tells this training from others, as of `training_key`; the state of another one is passed over.
    """

    def __init__(self, trainer: SpaceTrainer, folder: Path, key: str) -> None:
        self.trainer, self.folder, self.key = trainer, folder, key
        self._kept = 0

    def latest(self) -> Path | None:
        """The state to go on from, if there is one of this training."""
        found = sorted(self.folder.glob("step-*"))
        if not found or json.loads((found[-1] / _DOSE).read_text(encoding="utf-8"))["key"] != self.key:
            return None
        return found[-1]

    def restore(self, folder: Path) -> None:
        """Gives the trainer the adapter and the dose that it had; what else there is the `Trainer` reads."""
        kept = load_file(folder / _ADAPTER)
        for name, parameter in self.trainer.model.named_parameters():
            if name in kept:
                parameter.data.copy_(kept[name])
        self.trainer.keep()
        told = json.loads((folder / _DOSE).read_text(encoding="utf-8"))
        self.trainer.readings = [Reading(**row | {"levels": tuple(row["levels"])}) for row in told["readings"]]
        self.trainer.terms = told["terms"]
        self._kept = len(self.trainer.readings)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Here all is done that belongs to the last step, what is logged of it too."""
        readings = self.trainer.readings
        # what cannot be read must not be gone on from
        if len(readings) > self._kept and readings[-1].finite and state.global_step == readings[-1].step:
            self._write()
        self._kept = len(readings)

    def _write(self) -> None:
        trainer, draft = self.trainer, self.folder / "draft"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        save_file(trainer.good, draft / _ADAPTER)
        trainer._save_optimizer_and_scheduler(str(draft))
        trainer._save_scaler(str(draft))
        trainer._save_rng_state(str(draft))
        trainer.state.save_to_json(str(draft / TRAINER_STATE_NAME))
        told = {"key": self.key, "readings": [asdict(row) for row in trainer.readings], "terms": trainer.terms}
        (draft / _DOSE).write_text(json.dumps(told), encoding="utf-8")
        older = list(self.folder.glob("step-*"))
        os.replace(draft, self.folder / f"step-{trainer.state.global_step:08d}")
        for folder in older:
            shutil.rmtree(folder, ignore_errors=True)


def training_key(model: nn.Module, args: TrainingArguments, lessons: Sequence[Lesson], *more: Any) -> str:
    """What tells one training from another: the base, where the adapter begins, what it learns and how.

    Args:
        more: what else it depends on, as JSON takes it.
    """
    told = hashlib.sha256()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            told.update(name.encode())
            told.update(parameter.detach().float().cpu().numpy().tobytes())
    # of the retained subspace the ranks: on a GPU its numbers differ by rounding from run to run
    ranks = [list(buffer.shape) for name, buffer in model.named_buffers() if name.endswith(".U")]
    settings = {name: value for name, value in args.to_dict().items() if not name.endswith("_dir")}
    about = [base_fingerprint(model), ranks, settings, *more]
    told.update(json.dumps(about, sort_keys=True, default=str).encode())
    for lesson in lessons:
        told.update(json.dumps([lesson.prompt.question, lesson.answer, lesson.about, lesson.begun]).encode())
        if lesson.prompt.image is not None:
            told.update(content_key(lesson.prompt.image).encode())
    return told.hexdigest()
