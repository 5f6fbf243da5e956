import pytest
import torch
from peft import PeftModel, convert_to_lora, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from transformers import Trainer, TrainingArguments

from peft_space import SpaceConfig, SpaceModel, attach_subspace, bake, base_fingerprint, has_subspace
from tests.adapters import RandomSubspace, leak, shake, space
from tests.tiny import image_batch, logits, text_batch, tiny_llama, tiny_llava


def test_it_is_lora_until_trained():
    model = tiny_llava()
    batch = image_batch()
    before = logits(model, batch)
    peft_model = get_peft_model(model, SpaceConfig(concept="a thing", r=16))
    assert isinstance(peft_model.base_model, SpaceModel)
    assert logits(peft_model, batch).equal(before)
    assert 0 < peft_model.get_nb_trainable_parameters()[0] < peft_model.get_nb_trainable_parameters()[1]


def test_merge_and_unmerge():
    peft_model = shake(space(tiny_llava()))
    batch = image_batch()
    with peft_model.disable_adapter():
        base = logits(peft_model, batch)
    active = logits(peft_model, batch)
    assert not active.allclose(base, atol=1e-2)
    peft_model.merge_adapter()
    assert logits(peft_model, batch).allclose(active, atol=1e-5)
    peft_model.unmerge_adapter()
    assert logits(peft_model, batch).allclose(active, atol=1e-5)
    merged = peft_model.merge_and_unload()
    assert logits(merged, batch).allclose(active, atol=1e-5)


def test_the_merged_weight_keeps_retained_outputs():
    before = {n: p.clone() for n, p in tiny_llava().named_parameters()}
    peft_model = shake(space(tiny_llava()))
    subspace = RandomSubspace(peft_model)
    merged = peft_model.merge_and_unload()
    for name in subspace.module_names:
        weight = f"{name}.weight"
        delta = dict(merged.named_parameters())[weight] - before[weight]
        assert (delta @ subspace.basis(name)).abs().max() < 1e-6 < delta.abs().max()


def test_several_adapters_are_held_apart():
    peft_model = shake(space(tiny_llama()), seed=1)
    batch = text_batch()
    peft_model.add_adapter("second", SpaceConfig(r=4, concept="another"))
    shake(peft_model, "second", seed=2)
    second = RandomSubspace(peft_model, k=5, adapter_name="second")
    attach_subspace(peft_model, second, "second")
    first_logits = logits(peft_model, batch)
    peft_model.set_adapter("second")
    second_logits = logits(peft_model, batch)
    assert not second_logits.allclose(first_logits, atol=1e-2)
    assert leak(peft_model, second, "second") < 1e-6
    peft_model.base_model.set_adapter(["default", "second"])
    assert not logits(peft_model, batch).allclose(second_logits, atol=1e-2)
    bake(peft_model, "second")
    assert has_subspace(peft_model) and not has_subspace(peft_model, "second")
    peft_model.delete_adapter("default")
    assert logits(peft_model, batch).allclose(second_logits, atol=1e-6)


def test_adapters_can_be_mixed_in_a_batch():
    peft_model = shake(space(tiny_llama()))
    batch = text_batch()
    active = logits(peft_model, batch)
    with peft_model.disable_adapter():
        base = logits(peft_model, batch)
    mixed = logits(peft_model, batch | {"adapter_names": ["default", "__base__"]})
    assert mixed[0].allclose(active[0], atol=1e-5) and mixed[1].allclose(base[1], atol=1e-5)


@pytest.mark.parametrize("combination", ["linear", "cat", "svd"])
def test_weighted_adapters_see_the_projected_factor(combination):
    peft_model = shake(space(tiny_llama()))
    subspace = RandomSubspace(peft_model)
    peft_model.add_adapter("second", SpaceConfig(r=4))
    attach_subspace(shake(peft_model, "second", seed=2), subspace, "second")
    peft_model.add_weighted_adapter(["default", "second"], [0.7, 0.4], "both", combination_type=combination)
    assert not has_subspace(peft_model, "both")
    assert leak(peft_model, subspace, "both") < 1e-5
    assert peft_model.peft_config["both"].concept == "a thing"


def test_conversion_sees_the_projected_factor():
    peft_model = shake(space(tiny_llama()))
    subspace = RandomSubspace(peft_model)
    _, state = convert_to_lora(peft_model, rank=4, progressbar=False)
    name = subspace.module_names[0]
    key = next(key for key in state if f"{name}.lora_A" in key).replace("lora_A", "lora_{}")
    delta = state[key.format("B")] @ state[key.format("A")]
    assert (delta @ subspace.basis(name)).abs().max() < 1e-5 * delta.abs().max().clamp(min=1)


def test_the_state_dict_is_plain_lora_and_loads_back():
    peft_model = shake(space(tiny_llama()))
    state = get_peft_model_state_dict(peft_model)
    assert all(key.endswith(("lora_A.weight", "lora_B.weight")) for key in state)
    twin = space(tiny_llama())
    assert not set_peft_model_state_dict(twin, state).unexpected_keys
    assert logits(twin, text_batch()).allclose(logits(peft_model, text_batch()), atol=1e-6)


def test_training_resumes_where_it_stopped(tmp_path):
    ids = torch.randint(3, 60, (16, 7), generator=torch.Generator().manual_seed(0))
    data = [{"input_ids": row, "labels": row.clone()} for row in ids]
    models = []
    for resume in (None, str(tmp_path / "checkpoint-3")):
        torch.manual_seed(0)
        model = space(tiny_llama())
        arguments = TrainingArguments(
            str(tmp_path),
            max_steps=6,
            save_steps=3,
            per_device_train_batch_size=4,
            learning_rate=1e-2,
            weight_decay=0.1,
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
        )
        Trainer(model, arguments, train_dataset=data).train(resume_from_checkpoint=resume)
        models.append(model)
    whole, resumed = (logits(model, text_batch()) for model in models)
    assert resumed.allclose(whole, atol=1e-5)
    assert has_subspace(models[1])
    assert leak(models[1], RandomSubspace(models[1])) < 1e-6


def test_a_foreign_state_dict_is_refused():
    held, free = space(tiny_llama()), space(tiny_llama(), subspace=False)
    with pytest.raises(ValueError, match="must come from this model"):
        get_peft_model_state_dict(free, state_dict=held.state_dict())


def test_merging_into_few_bits_is_refused():
    bnb = pytest.importorskip("bitsandbytes")
    model = tiny_llama()
    for layer in model.model.layers:
        quantised = bnb.nn.Linear4bit(32, 32, bias=False, compute_dtype=torch.float32, quant_type="nf4")
        quantised.weight = bnb.nn.Params4bit(layer.self_attn.q_proj.weight.data, quant_type="nf4", requires_grad=False)
        # where the processor knows AVX512-BF16, one forward repacks the weight, which layers so small are not made for
        quantised.support_avx512bf16_for_cpu = False
        layer.self_attn.q_proj = quantised.to("cpu")
    model.to("cpu")
    peft_model = shake(space(model))
    assert logits(peft_model, text_batch()).isfinite().all()
    with pytest.raises(ValueError, match="must have 16 or 32 bits to be merged into"):
        peft_model.merge_adapter()
    with pytest.raises(ValueError, match="must have 16 or 32 bits"):
        peft_model.merge_and_unload()


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


def test_transformers_holds_it_without_a_peft_model(tmp_path):
    model = tiny_llama()
    model.add_adapter(SpaceConfig(concept="a thing"))
    attach_subspace(model, RandomSubspace(model))
    shake(model)
    batch = text_batch()
    expected = logits(model, batch)
    model.save_pretrained(tmp_path)
    again = tiny_llama()
    again.load_adapter(str(tmp_path))
    assert logits(again, batch).allclose(expected, atol=1e-6)
    assert logits(PeftModel.from_pretrained(tiny_llama(), tmp_path), batch).allclose(expected, atol=1e-6)
    model.delete_adapter("default")
    assert logits(model, batch).allclose(logits(tiny_llama(), batch), atol=1e-6)
