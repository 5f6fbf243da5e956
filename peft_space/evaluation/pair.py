"""A model before and after its erasure, asked alike in one run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from peft import PeftModel
from torch import Tensor, nn

from ..vlm import (
    Prompt,
    base_of,
    check_multimodal,
    encode,
    evaluating,
    generate,
    log_likelihood,
    log_likelihoods,
    prompt_batches,
    speaker,
    to_device,
)

T = TypeVar("T")


class Pair:
    """Base and erased model.

    Args:
        model: the erased model. Of a `PeftModel` the base is itself with all its adapters off.
        processor: the model's own.
        base: the base, for a model without adapters: one that was merged, say.
        batch_size: prompts or images at a time.
        max_new_tokens: of a greedy answer.

    Raises:
        ValueError: there is no base to compare with, or one too many.
        TypeError: a model cannot be asked about images.
    """

    def __init__(
        self,
        model: nn.Module,
        processor: Any,
        base: nn.Module | None = None,
        *,
        batch_size: int = 64,
        max_new_tokens: int = 24,
    ) -> None:
        adapted = isinstance(model, PeftModel)
        if adapted is (base is not None):
            raise ValueError(
                "`base` must be given for a model without adapters, and only then: a `PeftModel` is its own base with "
                f"the adapters off; got a {type(model).__name__} {'with' if base is not None else 'without'} a base."
            )
        for one in (model, base) if base is not None else (model,):
            check_multimodal(one)
        self.model, self.processor, self.base = model, processor, base
        self.batch_size, self.max_new_tokens = batch_size, max_new_tokens

    @contextmanager
    def before(self) -> Iterator[nn.Module]:
        """The model before the erasure."""
        if self.base is not None:
            yield self.base
            return
        with self.model.disable_adapter():  # type: ignore[operator]
            yield self.model

    def both(self, ask: Callable[[nn.Module], T]) -> tuple[T, T]:
        """What `ask` gets from the base, and from the erased model."""
        with self.before() as base:
            first = ask(base)
        return first, ask(self.model)

    def answers(self, prompts: Sequence[Prompt]) -> tuple[list[str], list[str]]:
        """Both models' greedy answers."""
        return self.both(lambda model: self.tell(model, prompts))

    def tell(self, model: nn.Module, prompts: Sequence[Prompt]) -> list[str]:
        """One model's greedy answers."""
        most, size = self.max_new_tokens, self.batch_size
        return generate(model, self.processor, prompts, max_new_tokens=most, batch_size=size)

    def likelihood(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Log-likelihood of an answer to each prompt in both models, `(len(prompts),)`, nats per token."""
        return self.both(lambda model: self.score(model, prompts, answers))

    def score(self, model: nn.Module, prompts: Sequence[Prompt], answers: Sequence[str]) -> Tensor:
        """Log-likelihood of an answer to each prompt in one model, `(len(prompts),)`, nats per token."""
        return log_likelihood(model, self.processor, prompts, answers, batch_size=self.batch_size)

    def likelihoods(self, prompts: Sequence[Prompt], answers: Sequence[Sequence[str]]) -> tuple[Tensor, Tensor]:
        """Of several whole answers to each prompt, `(len(prompts), answers of each)`, nats."""
        return self.both(lambda model: log_likelihoods(model, self.processor, prompts, answers, self.batch_size))

    def first_states(self, prompts: Sequence[Prompt]) -> tuple[Tensor, Tensor]:
        """The final hidden states that begin both models' answers, `(len(prompts), d)` float32 on the CPU."""
        return self.both(lambda model: _first_states(model, self.processor, prompts, self.batch_size))


def _first_states(model: nn.Module, processor: Any, prompts: Sequence[Prompt], batch_size: int) -> Tensor:
    states: dict[int, Tensor] = {}
    seen: list[Tensor] = []
    hook = base_of(model).get_output_embeddings().register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    try:
        with evaluating(model):
            for indices in prompt_batches(model, processor, prompts, batch_size, "states"):
                batch = to_device(model, encode(processor, [prompts[i] for i in indices]))
                speaker(model, batch)(**batch, logits_to_keep=1)
                states.update(zip(indices, seen.pop()[:, -1].float().cpu(), strict=True))
    finally:
        hook.remove()
    return torch.stack([states[i] for i in range(len(prompts))])
