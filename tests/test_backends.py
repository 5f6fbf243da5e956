"""Bases that other libraries than bitsandbytes stored in few bits. Nothing in the package is made for any of them."""

import copy

import pytest
import torch
from peft import PeftModel

from peft_space import (
    Retain,
    SpaceConfig,
    SpaceTrainingArguments,
    base_fingerprint,
    erase,
    has_subspace,
    load_erasure,
    merge_and_save,
)
from peft_space._peft import lora_layers, quantised_modules
from peft_space.tuner import language_model_targets, targeted_modules
from peft_space.vlm import Prompt, base_of, encode


def by_torchao(model, targets):
    quantisation = pytest.importorskip("torchao.quantization")
    quantisation.quantize_(model, quantisation.Int8WeightOnlyConfig(), filter_fn=lambda _, name: name in targets)


def by_hqq(model, targets):
    quantize = pytest.importorskip("hqq.core.quantize")
    settings = quantize.BaseQuantizeConfig(nbits=4, group_size=64)
    for name in targets:
        layer = model.get_submodule(name)
        model.set_submodule(name, quantize.HQQLinear(layer, settings, compute_dtype=torch.float32, device="cpu"))


@pytest.fixture(scope="module", params=[by_torchao, by_hqq])
def stored(request, base):
    """Makes a base in few bits."""

    def build():
        model = copy.deepcopy(base)
        request.param(model, language_model_targets(base))
        return model.requires_grad_(False).eval()

    return build


@pytest.fixture(scope="module")
def folder(stored, tmp_path_factory):
    return tmp_path_factory.mktemp("few bits") / "adapter"


@pytest.fixture(scope="module")
def result(stored, processor, concept, public, anchors, folder):
    return erase(
        stored(),
        processor,
        concept,
        public,
        anchors=anchors,
        config=SpaceConfig(r=4, concept="narril"),
        retain=Retain(questions=("What colour is it?",), texts=("Name a fruit.",) * 8, n_images=8),
        args=SpaceTrainingArguments(
            max_steps=2, dose_every=2, per_device_train_batch_size=4, learning_rate=1e-2, relearning_radius=0.01
        ),
        output_dir=folder,
        progress=None,
    )


@torch.no_grad()
def logits(model, processor, public):
    batch = encode(processor, [Prompt("What is this creature called?", image) for image in public.images[:3]])
    return model(**batch).logits


def test_its_layers_are_found_and_known_for_what_they_are(stored, base, processor, public):
    model = stored()
    assert language_model_targets(model) == language_model_targets(base) == quantised_modules(model)
    assert quantised_modules(base) == []
    there, near = logits(base, processor, public), logits(model, processor, public)
    assert not near.equal(there) and torch.cosine_similarity(near.flatten(), there.flatten(), dim=0) > 0.95


def test_a_concept_is_erased_from_it_and_what_is_retained_is_held(result, stored, base, processor, public):
    assert targeted_modules(result.model) == language_model_targets(base)
    kinds = {type(layer).__name__ for _, layer in lora_layers(base_of(result.model), "default")}
    assert kinds < {"TorchaoLoraLinear", "HqqLoraLinear"}
    assert not has_subspace(result.model)
    for name, layer in lora_layers(base_of(result.model), "default"):
        update = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
        outside = update @ result.subspace.basis(name)
        assert update.norm() > 0 and outside.norm() < 1e-5 * update.norm(), name
    with result.model.disable_adapter():
        off = logits(result.model, processor, public)
    assert off.equal(logits(stored(), processor, public))
    assert not logits(result.model, processor, public).equal(off)


def test_it_is_loaded_with_and_without_the_package(result, stored, processor, public, folder):
    told = logits(result.model, processor, public)
    assert logits(load_erasure(stored(), folder).eval(), processor, public).equal(told)
    assert logits(PeftModel.from_pretrained(stored(), folder).eval(), processor, public).equal(told)


def test_the_base_is_known_again_and_no_other_is_taken_for_it(result, stored, base, folder):
    assert not any("mlp" in name and name.endswith("weight") for name in _language(base_fingerprint(stored())))
    load_erasure(copy.deepcopy(base), folder)
    other = stored()
    other.model.language_model.norm.weight.data += 1
    other.get_input_embeddings().weight.data += 1
    with pytest.raises(ValueError, match="`model` must be the base the adapter was made for"):
        load_erasure(other, folder)


def _language(fingerprint):
    return [name for name in fingerprint["weights"] if "language_model.layers" in name]


def test_merging_into_few_bits_is_refused_and_into_sixteen_it_is_not(result, stored, base, folder, tmp_path):
    with pytest.raises(ValueError, match="`base` must have 16 or 32 bits; got a quantised model"):
        merge_and_save(folder, stored(), tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
    with pytest.raises(ValueError, match="the base weights must have 16 or 32 bits to be merged into"):
        load_erasure(stored(), folder).merge_and_unload()
    merge_and_save(folder, copy.deepcopy(base), tmp_path / "merged")
    assert (tmp_path / "merged" / "model.safetensors").exists()
