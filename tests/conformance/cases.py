"""The models of the matrix, and what is measured on each: logits, and what an adapter does to retained inputs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from peft_space import SpaceConfig, attach_subspace
from peft_space.tuner import default_targets
from peft_space.vlm import base_of
from tests import tiny
from tests.adapters import RandomSubspace, shake, space

EXACT = 1e-5
"""How far logits of two float32 computations of the same thing may lie apart."""

ROUNDING = 1e-6
"""What float32 rounding leaves of an adapter's effect on retained inputs, relative to its effect on others."""


@dataclass(frozen=True)
class Case:
    """A model of the matrix.

    Attributes:
        name: its name in the matrix.
        build: makes the base model, the same weights each time.
        batch: makes inputs of `n` rows from a `seed`, each with an image where the model sees.
        leaf: the last component of the path of a module that the default targets, one in each layer.
        layers: dotted path of its decoder's layers, as a regular expression.
    """

    name: str
    build: Callable[[], PreTrainedModel]
    batch: Callable[..., dict[str, Tensor]]
    leaf: str
    layers: str

    def held(self, base: PreTrainedModel | None = None, **config) -> PeftModel:
        """A new base model, or the one given, with a SPACE adapter that the case's subspace holds."""
        model = space(base or self.build(), subspace=False, **config)
        attach_subspace(model, self.subspace())
        return model

    def erased(self, base: PreTrainedModel | None = None, seed: int = 0, **config) -> PeftModel:
        """The same, with an adapter that does something."""
        return shake(self.held(base, **config), seed=seed)

    def logits(self, model: nn.Module) -> Tensor:
        return tiny.logits(model, self.batch_for(model))

    def batch_for(self, model: nn.Module) -> dict[str, Tensor]:
        """The inputs, images in the model's dtype."""
        dtype = next(model.parameters()).dtype
        return {key: value.to(dtype) if value.is_floating_point() else value for key, value in self.batch().items()}

    def base_logits(self) -> Tensor:
        return self.logits(self.build())

    def base_on_disk(self, folder: Path, **kwargs) -> Path:
        self.build().save_pretrained(folder / "base", **kwargs)
        return folder / "base"

    def load_base(self, folder: Path) -> PreTrainedModel:
        return type(self.build()).from_pretrained(folder)

    def targets(self) -> list[str]:
        return default_targets(self.build())

    @functools.cache  # noqa: B019 (there are as many as models in the matrix)
    def subspace(self) -> RandomSubspace:
        """A random subspace of the inputs of all default targets."""
        return RandomSubspace(space(self.build(), subspace=False))

    @torch.no_grad()
    def leak(self, model: nn.Module, modules: Iterable[str] | None = None, base: nn.Module | None = None) -> float:
        """How much of an adapter's effect reaches retained inputs.

        Every module is given inputs from its retained subspace, and others of the same length, and its outputs are
        compared with those of the base. Read as a function, a module may hold an adapter, several, or merged weights.

        Args:
            model: the model that is judged, of any dtype.
            modules: where to look; by default in all modules that SPACE targets.
            base: what it is compared with; by default the case's own base model.

        Returns:
            Largest change of a retained input's output, relative to the largest change of any.
        """
        subspace, dtype = self.subspace(), next(model.parameters()).dtype
        mine = dict(base_of(model).named_modules())
        before = dict((base or self.build().to(dtype)).named_modules())
        retained = free = 0.0
        for name in modules or subspace.module_names:
            U = subspace.basis(name).to(dtype)
            others = nn.functional.normalize(torch.randn(8, len(U), generator=torch.Generator().manual_seed(2)))
            inside, outside = ((mine[name](x) - before[name](x)).abs().max().item() for x in (U.T, others.to(dtype)))
            retained, free = max(retained, inside), max(free, outside)
        assert free > 1e-2, "the adapter does nothing"
        return retained / free


CASES = {
    case.name: case
    for case in (
        Case("llama", tiny.tiny_llama, tiny.text_batch, "q_proj", r"model\.layers"),
        Case("gpt2", tiny.tiny_gpt2, tiny.text_batch, "c_attn", r"transformer\.h"),
        Case("mixtral", tiny.tiny_mixtral, tiny.text_batch, "q_proj", r"model\.layers"),
        Case("llava", tiny.tiny_llava, tiny.image_batch, "q_proj", r"model\.language_model\.layers"),
        Case("qwen2_5_vl", tiny.tiny_qwen, tiny.qwen_batch, "q_proj", r"model\.language_model\.layers"),
    )
}


def second_adapter(case: Case, model: PeftModel, name: str = "second", **config) -> PeftModel:
    """One more SPACE adapter that does something else, held by the same subspace."""
    model.add_adapter(name, SpaceConfig(**({"r": 4, "concept": "another"} | config)))
    attach_subspace(shake(model, name, seed=7), case.subspace(), name)
    return model


def close(actual: Tensor, expected: Tensor, tolerance: float = EXACT) -> None:
    """Asserts that logits agree within a tolerance, and says by how much they don't."""
    torch.testing.assert_close(actual.float(), expected.float(), atol=tolerance, rtol=0)


def apart(actual: Tensor, other: Tensor, least: float = 1e-2) -> None:
    """Asserts that logits differ: what should have an effect has one."""
    assert (actual.float() - other.float()).abs().max() > least
