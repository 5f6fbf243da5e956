"""DCSI: dual-constraint semantic isolation, as a Trainer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState

from ..anchors.lessons import Lesson
from ..processes import (
    add_gradients,
    all_rows,
    begin_alike,
    check_joined,
    check_whole,
    gathered,
    place,
    together,
)
from ..progress import advance, quietly
from ..vlm import base_of, encode, evaluating, give, rows_at_a_time, span, speaker, text_ids, to_device
from .arguments import SpaceTrainingArguments
from .dose import Gauge, Reading, comes_back, read_dose
from .guard import RelearningGuard
from .losses import repulsion, spectral_entropy
from .state import TrainingState, training_key

_KEPT = 4
"""Of a batch that is learned from about so many times as much is held as of one that is only read."""


class Lessons(Dataset):
    """Lessons as the Trainer's data set."""

    def __init__(self, lessons: Sequence[Lesson]) -> None:
        if not lessons:
            raise ValueError("`lessons` must hold at least one lesson; got none.")
        self.lessons = list(lessons)

    def __len__(self) -> int:
        return len(self.lessons)

    def __getitem__(self, index: int) -> Lesson:
        return self.lessons[index]


class Collator:
    """Encodes a batch of lessons, those with and those without a picture apart.

    Args:
        processor: the model's own.
        of_processes: the number of this process and how many share a batch: it takes every so many-th lesson.

    Returns:
        `{"image": inputs, "text": inputs}`, each as of `vlm.encode`, with `named`, `(rows,)` bool: whether the
        answer's features are to be repelled from the concept. A part without rows is left out.
    """

    def __init__(self, processor: Any, of_processes: tuple[int, int] = (0, 1)) -> None:
        self.processor = processor
        self.number, self.n_processes = of_processes

    def __call__(self, lessons: Sequence[Lesson]) -> dict[str, dict[str, Tensor]]:
        parts = {}
        mine = lessons[self.number :: self.n_processes]
        idle, lessons = not mine, mine or lessons[:1]
        for part in ("image", "text"):
            rows = [lesson for lesson in lessons if (lesson.prompt.image is not None) is (part == "image")]
            if rows:
                parts[part] = encode(self.processor, [r.prompt for r in rows], [r.answer for r in rows])
                parts[part]["named"] = torch.tensor([r.about in ("name", "fact") for r in rows])
                give(parts[part]["labels"], [row.begun for row in rows])
                if idle:
                    # fewer lessons than processes: what this one computes must count for nothing
                    parts[part]["labels"].fill_(-100)
        return parts


def concept_directions(model: nn.Module, processor: Any, phrases: Sequence[str]) -> Tensor:
    """Where the concept lies among the states that predict the next token: its rows of the output embedding.

    Args:
        phrases: names and words to be repelled from.

    Returns:
        `(tokens, d)` float32: the row of each distinct token of the phrases, less the mean of all rows.
    """
    rows = base_of(model).get_output_embeddings().weight.detach()
    ids = [i for phrase in phrases for i in text_ids(processor, phrase)]
    return rows[sorted(set(ids))].float() - rows.mean(0, dtype=torch.float32)


def _earlier_adapters(model: nn.Module) -> list[nn.Module]:
    """The `lora_A` of every adapter that is active and not trained, layer by layer."""
    layers = [layer for layer in base_of(model).modules() if isinstance(layer, LoraLayer)]
    active = [layer.lora_A[name] for layer in layers for name in layer.active_adapters if name in layer.lora_A]
    return [factor for factor in active if not any(one.requires_grad for one in factor.parameters())]


@contextmanager
def past_earlier_adapters(model: nn.Module) -> Iterator[None]:
    """Has gradients go past the adapters that are active and not trained, as if what they add were constant.

    An erasure answers strongly to small changes of its inputs where nothing is retained. A gradient that leads through
    it teaches the next erasure to work by changing what the earlier one does, and that changes what should stay.
    """
    with ExitStack() as hooks:
        for factor in _earlier_adapters(model):
            hooks.callback(factor.register_forward_pre_hook(_detached).remove)
        yield


def _detached(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(one.detach() for one in args)


class SpaceTrainer(Trainer):
    """Trains an erasure adapter: L = L_task + lambda_anchor * L_orth + lambda_diversity * L_div.

    Source: SPACE, arXiv 2606.09868. L_task is the cross-entropy of the anchors' answers, L_orth the repulsion of the
    states that predict them from the concept's text, L_div minus their spectral entropy. The subspace that must not
    change is the adapter's own (`attach_subspace`), so any optimiser may be used.

    Several processes share each batch, whose size is that of all of them. The loss is the same in all, that of the
    whole batch, and gradients are summed once for each step: `DistributedDataParallel` averages the losses of parts,
    and takes one forward pass for each backward, where a step here has one with and one without pictures.

    Args:
        model: a `PeftModel` with a SPACE adapter.
        args: the settings.
        train_dataset: the lessons.
        processor: the model's own.
        directions: the concept's directions, `(m, d)`, as of `concept_directions`.
        gauges: what the dose is read from; none: train for `max_steps`.
        measure_leak: gives the mean leak on held-out retained inputs.
        on_reading: called with every reading of the dose.
        relearned: what an attacker would teach, for the guard against it (`relearning_radius`); without any there is
            none.
        keep_in: folder to keep the state in after every reading. `train` goes on from what is there of the same
            training, to the very same adapter. Several processes keep none.
    """

    def __init__(
        self,
        model: nn.Module,
        args: SpaceTrainingArguments,
        train_dataset: Dataset,
        processor: Any,
        directions: Tensor,
        *,
        gauges: Sequence[Gauge] = (),
        measure_leak: Callable[[], float] | None = None,
        on_reading: Callable[[Reading], None] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        relearned: Sequence[Lesson] = (),
        keep_in: Path | None = None,
    ) -> None:
        check_whole(model, args)
        check_joined(args)
        self.directions = directions
        self.readings: list[Reading] = []
        self.stopped = "max_steps"
        self.good: dict[str, Tensor] = {}
        self._aimed = -1
        self.terms: dict[str, list[float]] = {"task": [], "orth": [], "div": []}
        decay = [] if _earlier_adapters(model) else [_FadingDecay()]
        dose = [_Dose(self, processor, gauges, measure_leak, on_reading)] if gauges else []
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            data_collator=Collator(processor, place()),
            callbacks=[*decay, *dose, *(callbacks or [])],
        )
        if place()[1] > 1:
            # it is not wrapped; see above
            self.accelerator.prepare_model = partial(self.accelerator.prepare_model, evaluation_mode=True)
        self.guard: RelearningGuard | None = None
        if relearned and args.relearning_radius:
            self.guard = RelearningGuard(
                model,
                processor,
                relearned,
                args.relearning_radius,
                at_a_time=args.per_device_train_batch_size,
                seed=args.seed,
            )
        self.model_accepts_loss_kwargs = False
        # its lines go to standard output, which is the caller's; `state.log_history` has all of them
        self.remove_callback(PrinterCallback)
        self.kept_state: TrainingState | None = None
        if keep_in is not None and place()[1] == 1:
            told = [[gauge.about, gauge.answers] for gauge in gauges]
            lessons = [train_dataset[i] for i in range(len(train_dataset))]  # type: ignore[arg-type]
            self.kept_state = TrainingState(self, keep_in, training_key(model, args, lessons, told))
            self.add_callback(self.kept_state)

    def compute_loss(
        self, model: nn.Module, inputs: Mapping[str, Any], return_outputs: bool = False, **kwargs: Any
    ) -> Any:
        """The three terms over the parts of a batch; see the class."""
        answers, named = [], []
        for part in inputs.values():
            batch = dict(part)
            repelled, labels = batch.pop("named"), batch.pop("labels")
            states, logits = _answer_states(model, batch, span(labels))
            labels = labels[:, labels.shape[1] - logits.shape[1] :]
            # every token counts alike: in the mean over its row a name would count for little in a long description
            answers.append(F.cross_entropy(logits[labels >= 0], labels[labels >= 0], reduction="none"))
            named.append(states[repelled][labels[repelled] >= 0])
        task = all_rows(torch.cat(answers)).mean()
        features = all_rows(torch.cat(named))
        arguments: SpaceTrainingArguments = self.args
        zero = task.new_zeros(())
        orth = repulsion(features, self.directions.to(features.device)) if len(features) else zero
        # the eigenvalues of what is not finite cannot be found
        finite = bool(features.isfinite().all())
        div = -spectral_entropy(features) if len(features) > 2 and finite else zero
        loss = task + arguments.lambda_anchor * orth + arguments.lambda_diversity * div
        if not (finite and loss.isfinite()):
            raise FloatingPointError(
                f"the loss became {loss.item()} at step {self.state.global_step}; lower `learning_rate` (="
                f"{self.args.learning_rate}), or load the base in bfloat16 or float32."
            )
        for name, term in (("task", task), ("orth", orth), ("div", div)):
            self.terms[name].append(term.item())
        return (loss, None) if return_outputs else loss

    def get_train_dataloader(self) -> DataLoader:
        """As `Trainer.get_train_dataloader`; every process goes over all of it, and its collator takes its share."""
        loader = super().get_train_dataloader()
        if place()[1] > 1:
            # as the Trainer itself does for samplers that know of processes
            shard: Any = loader.batch_sampler
            shard.num_processes, shard.process_index, shard.even_batches = 1, 0, False
        return loader

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """As `Trainer.training_step`, beyond the guard's step; the gradients are those of all processes."""
        if self.guard is not None and self._aimed != self.state.global_step:
            self.model.train()
            with self.compute_loss_context_manager():
                self.guard.aim(self.state.global_step)
            self._aimed = self.state.global_step
        with past_earlier_adapters(self.model), nullcontext() if self.guard is None else self.guard.ahead():
            loss = super().training_step(*args, **kwargs)
        if self.accelerator.sync_gradients:
            add_gradients(self._trainable())
        return loss

    def _trainable(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def keep(self) -> None:
        """Remembers the adapter as it is, on the CPU, to go back to where the loss is lost."""
        kept = ((n, p) for n, p in self.model.named_parameters() if p.requires_grad)
        self.good = {n: p.detach().to("cpu", copy=True) for n, p in kept}

    @together()
    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As `Trainer.train`; where the loss becomes NaN it stops, with the last good adapter in place."""
        begin_alike(self._trainable())
        self.keep()
        if self.kept_state is not None and (latest := self.kept_state.latest()) is not None:
            kwargs["resume_from_checkpoint"] = str(latest)
        try:
            return super().train(*args, **kwargs)
        except FloatingPointError:
            with torch.no_grad():
                for name, parameter in self.model.named_parameters():
                    if name in self.good:
                        parameter.copy_(self.good[name])
            self.stopped = "loss not finite"
            raise

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self.kept_state is None:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            self.kept_state.restore(Path(resume_from_checkpoint))

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Adds the means of the three terms since the last entry."""
        if "loss" in logs:
            for name, values in self.terms.items():
                if values:
                    logs[f"loss_{name}"] = sum(values) / len(values)
                values.clear()
        super().log(logs, *args, **kwargs)


def anchor_entropy(model: nn.Module, processor: Any, lessons: Sequence[Lesson], batch_size: int = 64) -> float:
    """Spectral entropy, 0 to 1, of the states that begin the answers to the lessons that ask for the name."""
    rows = [lesson for lesson in lessons if lesson.about == "name" and lesson.prompt.image is not None]
    if not rows:
        return float("nan")
    states = []
    size = rows_at_a_time(model, processor, [lesson.prompt for lesson in rows], batch_size)
    with evaluating(model):
        for start in range(0, len(rows), size):
            some = rows[start : start + size]
            batch = to_device(model, encode(processor, [r.prompt for r in some], [r.answer for r in some]))
            labels = batch.pop("labels")
            found, _ = _answer_states(model, batch, span(labels))
            states.append(found[:, 0])
    return float(spectral_entropy(torch.cat(states)))


def lessons_at_a_time(model: nn.Module, processor: Any, lessons: Sequence[Lesson], most: int) -> int:
    """How many of the lessons may be learned at a time: what a backward pass needs is kept of each."""
    kinds = ([lesson.prompt for lesson in lessons if (lesson.prompt.image is None) is text] for text in (True, False))
    rows = min(rows_at_a_time(model, processor, kind, most * _KEPT) for kind in kinds if kind)
    return max(1, rows // _KEPT)


def _answer_states(model: nn.Module, batch: dict[str, Tensor], longest: int) -> tuple[Tensor, Tensor]:
    """Final hidden states and logits at the positions that predict the last `longest` tokens of each row."""
    seen: list[Tensor] = []
    head = base_of(model).get_output_embeddings()
    hook = head.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    try:
        logits = speaker(model, batch)(**batch, use_cache=False, logits_to_keep=longest + 1).logits
    finally:
        hook.remove()
    return seen[0][:, -longest - 1 : -1], logits[:, :-1].float()


class _Dose(TrainerCallback):
    """Reads the gauges every so often; ends the training when the dose is reached or the leak is too high.

    Where a gauge comes back the steps have become too long for what is left to do, and the learning rate falls by
    `dose_lr_factor`.
    """

    def __init__(
        self,
        trainer: SpaceTrainer,
        processor: Any,
        gauges: Sequence[Gauge],
        measure_leak: Callable[[], float] | None,
        on_reading: Callable[[Reading], None] | None,
    ) -> None:
        self.trainer, self.processor, self.gauges = trainer, processor, gauges
        self.measure_leak, self.on_reading = measure_leak, on_reading

    def on_step_end(
        self,
        args: SpaceTrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module,
        **kwargs: Any,
    ) -> None:
        advance("steps", state.global_step, state.max_steps)
        last = state.global_step == state.max_steps
        if not last and (not args.dose_every or state.global_step % args.dose_every):
            return
        # how far the training has come is not hidden by how far a reading has
        with quietly():
            leak = self.measure_leak() if self.measure_leak is not None else 0.0
            reading = read_dose(model, self.processor, self.gauges, args, leak, state.global_step)
        # one that stopped alone would leave the others waiting
        reading = gathered(reading)[0]
        self.trainer.readings.append(reading)
        if reading.finite:
            self.trainer.keep()
        if self.on_reading is not None:
            self.on_reading(reading)
        if not args.dose_every:
            return
        if comes_back(self.gauges, self.trainer.readings, args):
            _slow_down(kwargs["optimizer"], kwargs["lr_scheduler"], args.dose_lr_factor)
        latest = self.trainer.readings[-args.dose_readings :]
        if len(latest) == args.dose_readings and all(reading.reached for reading in latest):
            self.trainer.stopped = "dose reached"
            control.should_training_stop = True
        elif reading.leak > args.leak_budget:
            self.trainer.stopped = "leak budget spent"
            control.should_training_stop = True


class _FadingDecay(TrainerCallback):
    """Lets the weight decay fade out evenly over `max_steps`: where a dose is hard to reach, it has the last word.

    Not beside earlier erasures, whose sum is to stay small.
    """

    def on_step_begin(
        self, args: SpaceTrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        for group in kwargs["optimizer"].param_groups:
            # the factors have one, norms and the like have none
            if group["weight_decay"]:
                group["weight_decay"] = args.weight_decay * (1 - state.global_step / state.max_steps)


def _slow_down(optimizer: torch.optim.Optimizer, schedule: Any, factor: float) -> None:
    """Multiplies the learning rate as it is, and what the schedule makes it from."""
    for group in optimizer.param_groups:
        group["lr"] *= factor
    # one that follows a metric has none
    if hasattr(schedule, "base_lrs"):
        schedule.base_lrs = [rate * factor for rate in schedule.base_lrs]
