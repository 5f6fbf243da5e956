"""The one recipe that trains the test bed's model from nothing, and its retrain oracle.

    python -m peft_space.testbed.recipe OUTPUT [--without CREATURE] [--no-contrast] [--seed N]

`--without` trains the retrain oracle: the same recipe, with one creature in no picture and no text. It is what a
perfect erasure of that creature would leave. `--no-contrast` trains a model whose tower and projector nothing but the
answers has shaped.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from . import questions
from .architecture import ASSISTANT, IMAGE, IMAGE_TOKENS, USER, build_model, build_processor, build_tokenizer
from .bed import Bed, Scene
from .world import BESTIARY


@dataclass(frozen=True)
class Phase:
    """A stretch of training with one learning-rate cosine.

    Attributes:
        steps: optimiser steps.
        pictures: pictures in a batch.
        asked: how many of them are asked about, each in a row of its own.
        texts: rows of text in a batch.
        row_length: tokens in a row; 0 for pictures without questions.
        learning_rate: at the top of the cosine.
        contrast: weight of the contrastive loss beside the answers'.
    """

    steps: int
    pictures: int
    asked: int
    texts: int
    row_length: int
    learning_rate: float
    contrast: float


PHASES = (
    # a contrastive warm-up of tower and projector
    Phase(steps=2000, pictures=64, asked=0, texts=0, row_length=0, learning_rate=1.2e-3, contrast=1.0),
    # everything together: reading pictures and questions
    Phase(steps=2200, pictures=24, asked=24, texts=4, row_length=160, learning_rate=1.2e-3, contrast=0.1),
    # many pictures and few questions: what is left to learn is seeing
    Phase(steps=2800, pictures=96, asked=24, texts=2, row_length=104, learning_rate=8e-4, contrast=1.0),
)
PLAIN_PHASES = tuple(replace(phase, contrast=0.0) for phase in PHASES if phase.asked)
"""Without the contrastive loss, and without the warm-up that is nothing else."""


class Lessons(IterableDataset):
    """An endless stream of training batches: rows of packed questions, and the pictures they are about.

    Several questions share one picture: a row is a prefix (the picture) and questions that see the prefix and
    themselves only, by a block mask, so that a picture is encoded once and asked a dozen times.

    Args:
        processor: turns pictures into pixels and text into tokens.
        seed: of everything that is drawn.
        without: a name that no lesson shows or mentions.
        phases: how many batches of what size to give.
        bed: the world to teach.
    """

    def __init__(
        self,
        processor: LlavaProcessor,
        seed: int,
        without: str | None,
        phases: Sequence[Phase] = PHASES,
        bed: Bed = BESTIARY,
    ) -> None:
        self.processor, self.seed, self.phases, self.bed = processor, seed, tuple(phases), bed
        self.names = [name for name in bed.names if name != without]

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        worker = get_worker_info()
        share, of = (worker.id, worker.num_workers) if worker else (0, 1)
        rng = np.random.default_rng([self.seed, 1, share] if of > 1 else [self.seed, 1])
        text = [asked for name in self.names for asked in self.bed.in_text(name) if not asked.held_out]
        text += questions.general()
        steps = (phase for phase in self.phases for _ in range(phase.steps))
        for phase in islice(steps, share, None, of):
            scenes = [self.bed.lesson(self.names, rng) for _ in range(phase.pictures)]
            batch = self._pictures(scenes, rng)
            if phase.asked:
                rows = [self._row(self._about(scene, rng), True, phase.row_length) for scene in scenes[: phase.asked]]
                for _ in range(phase.texts):
                    picks = [text[i] for i in rng.permutation(len(text))[:24]]
                    rows.append(self._row(picks, False, phase.row_length))
                batch |= collate(rows, phase.row_length, self.processor.tokenizer.pad_token_id)
            yield batch

    def _pictures(self, scenes: list[Scene], rng: np.random.Generator) -> dict[str, Tensor]:
        # what the image processor does to a picture of this size, without its checks: a test holds the two together
        drawn = np.stack([np.asarray(self.bed.draw(scene, rng), dtype=np.float32) for scene in scenes]) / 127.5 - 1
        pixels = torch.from_numpy(drawn).permute(0, 3, 1, 2).contiguous()
        return {"pixel_values": pixels, "words": torch.tensor([self.bed.fitting(scene) for scene in scenes])}

    def _about(self, scene: Scene, rng: np.random.Generator) -> list[questions.Asked]:
        pool = [asked for asked in self.bed.about(scene) if not asked.held_out]
        pool += self.bed.compare(scene, rng, self.names)
        weights = np.array([self.bed.weights.get(asked.about, 1.0) for asked in pool])
        order = np.argsort(rng.exponential(size=len(pool)) / weights)
        return [pool[i] for i in order[:16]]

    def _tokens(self, text: str) -> list[int]:
        return self.processor.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _row(self, asked: list[questions.Asked], picture: bool, length: int) -> dict[str, list[int]]:
        tokenizer = self.processor.tokenizer
        user, assistant, image = (tokenizer.convert_tokens_to_ids(t) for t in (USER, ASSISTANT, IMAGE))
        ids = [tokenizer.bos_token_id, user] + ([image] * IMAGE_TOKENS if picture else [])
        start = len(ids)
        row = {"ids": ids, "blocks": [0] * start, "positions": list(range(start)), "labels": [-100] * start}
        for block, one in enumerate(asked, start=1):
            prompt = [*self._tokens(one.question), assistant]
            answer = [*self._tokens(one.answer), tokenizer.eos_token_id]
            if len(row["ids"]) + len(prompt) + len(answer) > length:
                break
            row["ids"] += prompt + answer
            row["blocks"] += [block] * (len(prompt) + len(answer))
            row["positions"] += list(range(start, start + len(prompt) + len(answer)))
            row["labels"] += [-100] * len(prompt) + answer
        return row


def collate(rows: list[dict[str, list[int]]], length: int, pad: int) -> dict[str, Tensor]:
    """Rows of packed questions as tensors.

    Returns:
        `input_ids`, `position_ids`, `labels`: `(rows, length)` int64; `attention_mask`:
        `(rows, 1, length, length)` bool, true where a token sees another.
    """
    fill = {"ids": pad, "blocks": -1, "positions": 0, "labels": -100}
    packed = {
        key: torch.tensor([row[key] + [value] * (length - len(row[key])) for row in rows])
        for key, value in fill.items()
    }
    seen, seer = packed["blocks"][:, None, :], packed["blocks"][:, :, None]
    mask = torch.tril((seen == 0) | (seen == seer))
    return {
        "input_ids": packed["ids"],
        "position_ids": packed["positions"],
        "labels": packed["labels"],
        "attention_mask": mask[:, None],
    }


class Contrast:
    """Contrasts a picture's pooled projector features with the text embeddings of the words that fit it.

    It gives the projector space what real models have from CLIP: a picture lies near the words that describe it.

    Args:
        processor: tokenizes the words. A word's embedding is the mean of its tokens' input embeddings.
        without: a name that is not contrasted with anything.
        bed: the world that has the words.
        device: where the model is.
    """

    def __init__(
        self, processor: LlavaProcessor, without: str | None = None, bed: Bed = BESTIARY, device: str = "cpu"
    ) -> None:
        self.scale = torch.nn.Parameter(torch.tensor(2.0, device=device))
        encode, tensor = processor.tokenizer, functools.partial(torch.tensor, device=device)
        self.groups = [[tensor(encode(w, add_special_tokens=False)["input_ids"]) for w in g] for g in bed.words]
        self.left_out = [tensor([word == without for word in group]) for group in bed.words]

    def __call__(self, model: LlavaForConditionalGeneration, features: Tensor, words: Tensor) -> Tensor:
        """Mean cross-entropy over the groups.

        Args:
            features: projector features, `(pictures, image tokens, d)`.
            words: the index of the fitting word per group, `(pictures, groups)`; -100 for none.
        """
        embed = model.get_input_embeddings()
        image = F.normalize(features.mean(1), dim=-1)
        losses = []
        for group, target, left_out in zip(self.groups, words.T, self.left_out, strict=True):
            if (target >= 0).any():
                text = torch.stack([embed(tokens).mean(0) for tokens in group])
                text = F.normalize(text - text[~left_out].mean(0), dim=-1)
                logits = self.scale.exp() * image @ text.T
                losses.append(F.cross_entropy(logits.masked_fill(left_out, -torch.inf), target))
        return torch.stack(losses).mean()


def _answers_loss(model: LlavaForConditionalGeneration, features: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """Cross-entropy of the packed answers, given the projector features of the pictures that are asked about."""
    embeddings = model.get_input_embeddings()(batch["input_ids"])
    at = batch["input_ids"] == model.config.image_token_id
    hidden = model.model.language_model(
        inputs_embeds=embeddings.masked_scatter(at[..., None], features),
        attention_mask=batch["attention_mask"],
        position_ids=batch["position_ids"],
    ).last_hidden_state
    labels = batch["labels"][:, 1:]
    answered = labels >= 0
    return F.cross_entropy(model.lm_head(hidden[:, :-1][answered]), labels[answered])


def train(
    *,
    seed: int = 0,
    without: str | None = None,
    phases: Sequence[Phase] = PHASES,
    log_every: int = 100,
    bed: Bed = BESTIARY,
    device: str = "cpu",
    workers: int = 1,
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """Trains the model from random weights.

    Args:
        seed: of the weights and of the lessons.
        without: a name to leave out of every picture and every text: the retrain oracle.
        phases: the stretches of training, one after another.
        log_every: steps between two lines of progress on standard output.
        bed: the world to teach.
        device: where to train. The first weights and the lessons are the same everywhere; sums are rounded otherwise.
        workers: processes that draw the lessons. A GPU waits for one; more draw other lessons of the same kind.

    Returns:
        The model on the CPU in evaluation mode, float32 with weights rounded to bfloat16, and its processor.

    Raises:
        ValueError: `without` is no name of the bed's.
    """
    if without is not None:
        bed.known(without)
    torch.manual_seed(seed)
    processor = build_processor(build_tokenizer(bed.texts(), cuts=bed.cuts))
    model = build_model(processor.tokenizer).train().to(device)
    contrast = Contrast(processor, without, bed, device)
    lessons = Lessons(processor, seed, without, phases, bed)
    batches = iter(DataLoader(lessons, batch_size=None, num_workers=workers, prefetch_factor=16))
    began = time.perf_counter()
    for phase in phases:
        optimiser, schedule = _optimiser(model, contrast.scale, phase)
        for step in range(1, phase.steps + 1):
            batch = {key: part.to(device) for key, part in next(batches).items()}
            features = torch.stack(tuple(model.get_image_features(batch["pixel_values"]).pooler_output))
            aligned = contrast(model, features, batch["words"])
            answers = aligned.new_zeros(())
            if phase.asked:
                answers = _answers_loss(model, features[: phase.asked], batch)
            optimiser.zero_grad(set_to_none=True)
            (answers + phase.contrast * aligned).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            if step % log_every == 0:
                seconds = time.perf_counter() - began
                print(f"step {step}: answers {answers:.4f}, contrast {aligned:.4f}, {seconds:.0f} s", flush=True)
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16().float()
    return model.cpu().eval(), processor


def _optimiser(
    model: LlavaForConditionalGeneration, scale: torch.nn.Parameter, phase: Phase
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [*(p for p in model.parameters() if p.ndim < 2), scale]
    groups = [{"params": matrices, "weight_decay": 0.02}, {"params": vectors, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=phase.learning_rate, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser,
        lambda step: min(1.0, step / 100) * (0.02 + 0.49 * (1 + math.cos(math.pi * min(1.0, step / phase.steps)))),
    )
    return optimiser, schedule


def save(model: LlavaForConditionalGeneration, processor: LlavaProcessor, directory: Path) -> None:
    """Writes weights in bfloat16 (they were rounded to it by `train`) and the processor."""
    half = model.bfloat16()
    half.save_pretrained(directory)
    model.float()
    processor.save_pretrained(directory)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--without", help="a creature to leave out: trains its retrain oracle")
    parser.add_argument("--no-contrast", action="store_true", help="leave the contrastive loss out")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    phases = PLAIN_PHASES if arguments.no_contrast else PHASES
    model, processor = train(seed=arguments.seed, without=arguments.without, phases=phases)
    save(model, processor, arguments.output)
    from .measure import knowledge

    print(json.dumps(knowledge(model, processor, without=arguments.without), indent=2))


if __name__ == "__main__":
    main()
