"""Attack by noise: a small change of the pixels, sought by gradient, that makes the name as likely as it can be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..vlm import (
    Prompt,
    answer_log_probability,
    append,
    base_of,
    encode,
    prompt_batches,
    speaker,
    to_device,
    told_tokens,
)
from .aims import Aims
from .asking import names, pairs
from .scores import Row, Scores

_PIXELS = "pixel_values"


@dataclass(frozen=True)
class Budget:
    """How much noise, and how long it is sought.

    Attributes:
        epsilon: the most that a pixel may change, of 1 for the whole range.
        steps: of projected gradient ascent.
    """

    epsilon: float = 4 / 255
    steps: int = 10


def attack_by_noise(
    model: nn.Module,
    processor: Any,
    aims: Aims,
    budget: Budget,
    *,
    max_new_tokens: int = 24,
    batch_size: int = 64,
) -> Scores:
    """Adds noise to every picture, aimed at the name in question, and asks what is shown.

    Projected gradient ascent in the maximum norm (Madry et al. 2018), from no noise, on log p(name | picture,
    question). Enough noise makes any model call anything by any name; so the foils are other pictures, with noise that
    is aimed at the concept's name too.

    Raises:
        TypeError: the model takes its pictures otherwise than as `pixel_values`.
    """
    question = aims.concept.questions[0]
    asked = list(pairs(aims))
    prompts = [Prompt(question, shown.image) for _, shown, _ in asked]
    size = scale_of_pixels(processor)
    training = model.training
    model.eval()
    rows = []
    try:
        for indices in prompt_batches(model, processor, prompts, batch_size, "noise"):
            some = [prompts[i] for i in indices]
            batch = to_device(model, encode(processor, some))
            if _PIXELS not in batch:
                kind = type(base_of(model)).__name__
                raise TypeError(f"`model` must take pictures as `{_PIXELS}`; got {kind}, which takes {sorted(batch)}.")
            told = told_tokens(processor, some, [asked[i][2][0] for i in indices], end=False)
            noisy = sought(model, append(batch, told, processor), budget, size)
            with torch.no_grad():
                out = base_of(speaker(model, batch)).generate(
                    **batch | {_PIXELS: noisy},
                    max_new_tokens=max_new_tokens,
                    do_sample=False,
                    pad_token_id=processor.tokenizer.pad_token_id,
                )
            length = batch["input_ids"].shape[1]
            texts = processor.tokenizer.batch_decode(out[:, length:], skip_special_tokens=True)
            for i, text in zip(indices, texts, strict=True):
                kind, shown, about = asked[i]
                rows.append(Row(kind, shown.unit, float(names(*about)(text))))
    finally:
        model.train(training)
    return Scores.of(rows)


def sought(model: nn.Module, batch: dict[str, Tensor], budget: Budget, size: float) -> Tensor:
    """The pictures of a batch with noise that makes its labels likelier.

    Args:
        batch: prompts with `labels` behind them.
        size: what the whole range of a pixel is in `pixel_values`, as for `scale_of_pixels`.

    Returns:
        As `batch["pixel_values"]`; no value differs by more than `epsilon * size`.
    """
    given = batch[_PIXELS]
    most = budget.epsilon * size
    step = 2.5 * most / budget.steps
    noise = torch.zeros_like(given)
    batch = to_device(model, batch)
    for _ in range(budget.steps):
        noise = noise.detach().requires_grad_(True)
        level = answer_log_probability(model, batch | {_PIXELS: given + noise}).sum()
        (slope,) = torch.autograd.grad(level, noise)
        noise = (noise.detach() + step * slope.sign()).clamp(-most, most)
    return (given + noise).detach()


def scale_of_pixels(processor: Any) -> float:
    """What the range of a pixel, from black to white, is after normalisation; that of the smallest channel."""
    images = processor.image_processor
    deviation: Sequence[float] = getattr(images, "image_std", None) or (1.0,)
    normalised = getattr(images, "do_normalize", True)
    whole = 1.0 if getattr(images, "do_rescale", True) else 255.0
    return whole / max(deviation) if normalised else whole
