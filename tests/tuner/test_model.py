import pytest
from peft import get_peft_model, get_peft_model_state_dict

from peft_space import SpaceConfig, SpaceModel, attach_subspace, base_fingerprint
from tests.adapters import RandomSubspace, leak, shake, space
from tests.tiny import image_batch, logits, tiny_llama, tiny_llava


def test_it_is_lora_until_trained():
    model = tiny_llava()
    batch = image_batch()
    before = logits(model, batch)
    peft_model = get_peft_model(model, SpaceConfig(concept="a thing", r=16))
    assert isinstance(peft_model.base_model, SpaceModel)
    assert logits(peft_model, batch).equal(before)
    assert 0 < peft_model.get_nb_trainable_parameters()[0] < peft_model.get_nb_trainable_parameters()[1]


def test_each_adapter_has_a_subspace_of_its_own():
    peft_model = shake(space(tiny_llama()))
    first = RandomSubspace(peft_model)
    peft_model.add_adapter("second", SpaceConfig(r=4, concept="another"))
    second = RandomSubspace(shake(peft_model, "second"), k=5, adapter_name="second")
    attach_subspace(peft_model, second, "second")
    assert leak(peft_model, first) < 1e-6 and leak(peft_model, second, "second") < 1e-6
    assert leak(peft_model, first, "second") > 0.1


def test_a_foreign_state_dict_is_refused():
    held, free = space(tiny_llama()), space(tiny_llama(), subspace=False)
    with pytest.raises(ValueError, match="must come from this model"):
        get_peft_model_state_dict(free, state_dict=held.state_dict())


def test_a_taken_name_is_an_error():
    peft_model = space(tiny_llama())
    with pytest.raises(ValueError, match="already exists"):
        peft_model.add_adapter("default", SpaceConfig())
    for model in (peft_model, peft_model.get_base_model()):
        with pytest.raises(ValueError, match="`adapter_name` must be new; got 'default'"), pytest.warns(UserWarning):
            get_peft_model(model, SpaceConfig())


def test_after_merging_the_base_is_another_one():
    merged = shake(space(tiny_llama())).merge_and_unload()
    second = space(merged)
    assert second.peft_config["default"].base_fingerprint == base_fingerprint(second)
    assert base_fingerprint(second) != base_fingerprint(tiny_llama())
