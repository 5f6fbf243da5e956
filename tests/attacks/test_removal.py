import copy

import pytest
import torch

from peft_space import scale_adapter
from peft_space._peft import lora_layers
from peft_space.attacks.removal import at_strength
from peft_space.vlm import Prompt, encode
from tests.adapters import shake, space


@pytest.fixture(scope="module")
def erased(base):
    return shake(space(copy.deepcopy(base), subspace=False))


@pytest.fixture(scope="module")
def batch(processor, aims):
    return encode(processor, [Prompt("Name it.", aims.target[0].image)])


@torch.no_grad()
def logits(model, batch):
    return model(**batch).logits


def test_at_nothing_the_base_comes_back_and_afterwards_the_adapter(base, erased, batch):
    before = logits(erased, batch)
    with at_strength(erased, 0.0) as model:
        assert logits(model, batch).allclose(logits(base, batch), atol=1e-5)
    assert logits(erased, batch).equal(before) and not before.allclose(logits(base, batch), atol=1e-2)


def test_a_strength_is_a_share_of_the_one_that_is_in_force(erased, batch):
    (_, layer), *_ = lora_layers(erased.get_base_model())
    whole = layer.scaling["default"]
    scale_adapter(erased, 0.5)
    with pytest.raises(RuntimeError, match="stop"), at_strength(erased, 0.5):
        assert layer.scaling["default"] == pytest.approx(whole / 4)
        raise RuntimeError("stop")
    assert layer.scaling["default"] == pytest.approx(whole / 2)
    scale_adapter(erased, 1.0)
