import math

import pytest

from peft_space import scale_adapter
from tests.adapters import RandomSubspace, leak, shake, space
from tests.tiny import image_batch, logits, tiny_llava


@pytest.fixture(scope="module")
def peft_model():
    return shake(space(tiny_llava(), use_rslora=True))


def test_at_nought_it_is_the_base_and_at_one_what_it_was(peft_model):
    batch = image_batch()
    trained = logits(peft_model, batch)
    with peft_model.disable_adapter():
        base = logits(peft_model, batch)
    scale_adapter(peft_model, 0)
    assert logits(peft_model, batch).equal(base)
    scale_adapter(peft_model, 0.5)
    scale_adapter(peft_model, 1.0)
    assert logits(peft_model, batch).equal(trained)


def test_the_change_grows_with_the_strength_and_stays_outside_the_subspace(peft_model):
    name, layer = next((n, m) for n, m in peft_model.get_base_model().named_modules() if hasattr(m, "lora_A"))
    scale_adapter(peft_model, 1.0)
    full = layer.get_delta_weight("default")
    scale_adapter(peft_model, 1.5)
    assert layer.get_delta_weight("default").allclose(1.5 * full, rtol=1e-5), name
    assert leak(peft_model, RandomSubspace(peft_model)) < 1e-5


@pytest.mark.parametrize("strength", [-0.1, math.nan, math.inf])
def test_a_strength_that_is_none(peft_model, strength):
    with pytest.raises(ValueError, match="`strength` must be 0 or more; got"):
        scale_adapter(peft_model, strength)


def test_an_adapter_that_is_not_there(peft_model):
    with pytest.raises(ValueError, match="`adapter_name` must be one of \\['default'\\]; got 'other'"):
        scale_adapter(peft_model, 1.0, "other")


def test_a_merged_adapter():
    peft_model = shake(space(tiny_llava()))
    peft_model.merge_adapter()
    with pytest.raises(ValueError, match="`adapter_name` must not be merged; got 'default'"):
        scale_adapter(peft_model, 0.5)
