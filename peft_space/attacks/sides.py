"""The models that an attack is aimed at: the base, the erased one and, where there is one, the oracle."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from peft import PeftModel
from torch import nn

from .._peft import merged_adapters, quantised_modules
from ..evaluation.pair import Pair
from ..vlm import base_of, check_multimodal

BASE, ERASED, ORACLE = "base", "erased", "oracle"

T = TypeVar("T")


class Sides:
    """Base, erased model and oracle, attacked alike.

    Args:
        model: the erased model. Of a `PeftModel` the base is itself with all its adapters off.
        processor: the model's own.
        base: the base of a model without adapters.
        oracle: a model that was trained like the base and never saw the concept.
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
        oracle: nn.Module | None = None,
        *,
        batch_size: int = 64,
        max_new_tokens: int = 24,
    ) -> None:
        self.pair = Pair(model, processor, base, batch_size=batch_size, max_new_tokens=max_new_tokens)
        if oracle is not None:
            check_multimodal(oracle)
        self.oracle, self.processor = oracle, processor
        self.batch_size, self.max_new_tokens = batch_size, max_new_tokens

    @property
    def names(self) -> tuple[str, ...]:
        """Which of the three there are."""
        return (BASE, ERASED) if self.oracle is None else (BASE, ERASED, ORACLE)

    @property
    def adapted(self) -> PeftModel | None:
        """The erased model, if it is one with adapters that can be taken off."""
        return self.pair.model if isinstance(self.pair.model, PeftModel) else None

    @property
    def few_bits(self) -> bool:
        """Whether a model is stored in fewer than 16 bits, and so can be neither merged into nor trained."""
        models = (self.pair.model, self.pair.base, self.oracle)
        return any(quantised_modules(base_of(model)) for model in models if model is not None)

    @contextmanager
    def side(self, name: str) -> Iterator[nn.Module]:
        """One of the models, as it is."""
        if name == BASE:
            with self.pair.before() as base:
                yield base
        else:
            yield self._present(name)

    def each(self, ask: Callable[[nn.Module], T]) -> dict[str, T]:
        """What `ask` gets from each of the models, by name."""
        told: dict[str, T] = {}
        for name in self.names:
            with self.side(name) as model:
                told[name] = ask(model)
        return told

    def copied(self, name: str) -> nn.Module:
        """A copy of one of the models that may be changed, without adapters.

        The erased model's are merged into its weights, as whoever attacks published weights would have them.
        """
        own = self.pair.base if name == BASE else None
        model = copy.deepcopy(self._present(name) if own is None else own)
        if not isinstance(model, PeftModel):
            return model
        if name == BASE:
            if merged_adapters(base_of(model)):
                model.unmerge_adapter()
            plain = model.unload()
        else:
            plain = model.merge_and_unload(safe_merge=True)
        # it outlives the adapters, and whoever adds one would take it for theirs
        vars(plain).pop("peft_config", None)
        return plain

    def _present(self, name: str) -> nn.Module:
        model = self.oracle if name == ORACLE else self.pair.model
        if model is None or name not in self.names:
            raise ValueError(f"`name` must be one of {', '.join(self.names)}; got {name!r}.")
        return model
