"""Settings of the training stage."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import SchedulerType, TrainingArguments


@dataclass
class SpaceTrainingArguments(TrainingArguments):
    """`TrainingArguments` with DCSI's weights and the dose, and defaults that suit an erasure."""

    output_dir: str | None = field(
        default=None, metadata={"help": "Where checkpoints go; none are written by default."}
    )
    lambda_anchor: float = field(
        default=1.0, metadata={"help": "Weight of L_orth, the repulsion from the concept's text."}
    )
    lambda_diversity: float = field(default=0.1, metadata={"help": "Weight of L_div, minus the spectral entropy."})
    relearning_radius: float = field(
        default=0.0,
        metadata={
            "help": "Length of the attacker's step beyond which each step is taken, as a share of the norm of the "
            "adapted layers' weights; 0 for no guard against relearning, 0.01 for one."
        },
    )
    dose_every: int = field(
        default=10, metadata={"help": "Steps between two readings of the dose; 0 trains for max_steps."}
    )
    dose_share: float = field(
        default=0.4,
        metadata={"help": "How far every gauge must fall, as a share of the way from certain to an unrelated name."},
    )
    dose_margin: float = field(
        default=2.0,
        metadata={"help": "Nats below even odds at which every gauge must be, where other names are not likelier."},
    )
    dose_name_margin: float = field(
        default=4.0,
        metadata={"help": "The same of the name where it is asked for or comes unasked: it varies most by picture."},
    )
    dose_slack: float = field(
        default=0.1,
        metadata={"help": "Nats by which the answers that should stay may become less likely, in the mean."},
    )
    dose_readings: int = field(
        default=2, metadata={"help": "Readings in a row that must find every gauge where it should be."}
    )
    dose_lr_factor: float = field(
        default=0.5,
        metadata={"help": "Factor on the learning rate whenever a gauge that had come down comes back up."},
    )
    leak_budget: float = field(default=0.049, metadata={"help": "Training stops where the mean leak passes this."})
    learning_rate: float = field(default=2e-3, metadata={"help": "Initial learning rate of AdamW."})
    weight_decay: float = field(
        default=5.0,
        metadata={
            "help": "Of AdamW, times the learning rate: what no lesson needs of an update is let go of. It fades out "
            "over max_steps, except beside earlier erasures."
        },
    )
    max_steps: int = field(default=200, metadata={"help": "Most optimiser steps; the dose usually stops sooner."})
    per_device_train_batch_size: int = field(
        default=32, metadata={"help": "Lessons in a step; several processes share them."}
    )
    per_device_eval_batch_size: int = field(default=64, metadata={"help": "Most prompts at a time in a reading."})
    lr_scheduler_type: str = field(
        default="warmup_stable_decay",
        metadata={"help": "Learning-rate schedule; by default it falls over the last half of max_steps."},
    )
    lr_scheduler_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": "The schedule's own settings; num_decay_steps is half of max_steps where none is given."},
    )
    warmup_steps: float = field(default=5, metadata={"help": "Steps of linear warm-up."})
    max_grad_norm: float = field(default=1.0, metadata={"help": "Gradient clipping."})
    save_strategy: str = field(default="no", metadata={"help": "When to write checkpoints."})
    report_to: str | list[str] = field(default="none", metadata={"help": "Where to log."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Lessons are no columns: keep False."})
    dataloader_pin_memory: bool = field(default=False, metadata={"help": "Pin the batches' memory."})
    disable_tqdm: bool | None = field(default=True, metadata={"help": "Silence the Trainer's own bar."})
    logging_steps: float = field(default=10, metadata={"help": "Steps between two log entries."})

    def __post_init__(self) -> None:
        # else several processes on CPUs would each take themselves to be alone
        if not torch.accelerator.is_available():
            self.use_cpu = True
        super().__post_init__()
        if self.lr_scheduler_type == SchedulerType.WARMUP_STABLE_DECAY:
            given: Any = self.lr_scheduler_kwargs or {}
            self.lr_scheduler_kwargs = {"num_decay_steps": self.max_steps // 2, **given}
        for name in (
            "lambda_anchor",
            "lambda_diversity",
            "relearning_radius",
            "dose_share",
            "dose_margin",
            "dose_name_margin",
            "dose_slack",
        ):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must be at least 0; got {getattr(self, name)}.")
        if self.dose_every < 0:
            raise ValueError(f"`dose_every` must be at least 0; got {self.dose_every}.")
        if self.dose_readings < 1:
            raise ValueError(f"`dose_readings` must be at least 1; got {self.dose_readings}.")
        if not 0 < self.dose_lr_factor <= 1:
            raise ValueError(
                "`dose_lr_factor` must be greater than 0 and at most 1 (1 changes nothing); got "
                f"{self.dose_lr_factor}."
            )
        if not self.leak_budget > 0:
            raise ValueError(f"`leak_budget` must be greater than 0; got {self.leak_budget}.")

    @classmethod
    def of_several(cls, n_concepts: int, **settings: Any) -> SpaceTrainingArguments:
        """Those of one adapter for several concepts: as many times the steps, and the leak of so many adapters.

        Adapters that are made one after another change the model in different ways: eight were measured to leak little
        more than one of them times the square root of their number (docs/results.md), and so much may one for all.
        """
        one = cls(**settings)
        more = {"max_steps": one.max_steps * n_concepts, "leak_budget": one.leak_budget * math.sqrt(n_concepts)}
        return cls(**settings | more)

    def in_small_batches(self, rows: int) -> SpaceTrainingArguments:
        """The same steps, of at most `rows` lessons at a time: as many gradients are accumulated as it takes.

        Where steps have to be split, activations are checkpointed too, and the loss is that of each part: its means
        and its spectral entropy are of fewer lessons.
        """
        size = self.per_device_train_batch_size
        if size <= rows:
            return self
        small = copy.copy(self)
        small.per_device_train_batch_size = next(n for n in range(rows, 0, -1) if size % n == 0)
        small.gradient_accumulation_steps *= size // small.per_device_train_batch_size
        # the second is the first's name from transformers 5.23 on
        small.gradient_checkpointing = small.activation_checkpointing = True
        return small
