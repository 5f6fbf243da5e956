"""Plain LoRA of SPACE's rank, on SPACE's targets, with SPACE's optimiser; only the loss is the method's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from torch.nn import functional as F
from transformers import get_constant_schedule_with_warmup

from peft_space import Concept, SpaceTrainingArguments
from peft_space.tuner import default_targets
from peft_space.vlm import base_of, text_decoder

from .methods import Batch, Method
from .told import Taught

RANK = 16
TEXT_SHARE = 0.25
"""Of what must stay in a batch, so much is text alone."""


def train(
    model: nn.Module,
    processor: Any,
    concept: Concept,
    method: Method,
    forget: Sequence[Taught],
    retain: Sequence[Taught],
    *,
    learning_rate: float,
    steps: Sequence[int],
    seed: int,
) -> Iterator[tuple[int, PeftModel]]:
    """Trains to the last of `steps`, and shows the model at each of them.

    The learning rate stays the same after its warm-up, so that the model at a step is what a training of so many
    steps would give. Where a loss or its gradient is not finite the training ends, with what there was before.

    Args:
        model: the base model; it is wrapped in place.
        forget: answers about the target, whatever the loss does with them.
        retain: answers that must stay.

    Yields:
        Steps and the model, which goes on changing.
    """
    torch.manual_seed(seed)
    like = SpaceTrainingArguments()
    config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=default_targets(model))
    peft_model = get_peft_model(model, config).eval()
    parameters = [p for p in peft_model.parameters() if p.requires_grad]
    adam = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=like.weight_decay)
    schedule = get_constant_schedule_with_warmup(adam, int(like.warmup_steps))
    generator = torch.Generator().manual_seed(seed)
    layers = text_decoder(peft_model).layers
    width = base_of(peft_model).get_output_embeddings().weight.shape[1]
    direction = F.normalize(torch.rand(width, generator=generator), dim=0)
    size = like.per_device_train_batch_size
    seen, alone = ([one for one in retain if (one.prompt.image is None) is text] for text in (False, True))

    def draw(some: Sequence[Taught], n: int) -> list[Taught]:
        return [some[i] for i in torch.randperm(len(some), generator=generator)[:n].tolist()]

    def step() -> bool:
        n_retain = size // 2 if method.retains else 0
        n_text = round(TEXT_SHARE * n_retain)
        kept = draw(seen, n_retain - n_text) + draw(alone, n_text)
        about = draw(forget, size - n_retain)
        batch = Batch(peft_model, processor, concept, about, kept, len(layers) // 2 - 1, direction)
        loss = method.loss(batch)
        adam.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(parameters, like.max_grad_norm)
        if not (loss.isfinite() and norm.isfinite()):
            return False
        adam.step()
        schedule.step()
        return True

    done, sound = 0, True
    for wanted in sorted(steps):
        while sound and done < wanted:
            sound = step()
            done += sound
        yield wanted, peft_model
