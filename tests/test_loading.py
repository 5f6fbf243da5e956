import copy
import shutil

import pytest
import torch
from torch import nn

from peft_space import load_base, loading
from peft_space._peft import quantised_modules
from peft_space.loading import check_quantised, spared
from peft_space.tuner import language_model_targets
from peft_space.vlm import Prompt, encode
from tests.tiny import tiny_llama, tiny_llava, tiny_qwen


@torch.no_grad()
def logits(model, processor, public):
    return model(
        **encode(processor, [Prompt("What is this creature called?", image) for image in public.images[:4]])
    ).logits


def test_it_is_loaded_frozen_and_as_it_is_stored(base_folder, base, processor, public):
    model, its_processor = load_base(base_folder)
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    assert model.dtype == torch.float32 and quantised_modules(model) == []
    assert logits(model, its_processor, public).equal(logits(base, processor, public))


@pytest.mark.parametrize("dtype", ["bfloat16", torch.bfloat16])
def test_in_sixteen_bits(base_folder, dtype):
    assert load_base(base_folder, dtype=dtype)[0].dtype == torch.bfloat16


@pytest.mark.parametrize("bits", ["load_in_4bit", "load_in_8bit"])
def test_only_the_language_models_projections_are_stored_in_few_bits(
    base_folder, base, processor, public, bits, capsys
):
    pytest.importorskip("bitsandbytes")
    model, _ = load_base(base_folder, **{bits: True})
    assert quantised_modules(model) == language_model_targets(base)
    kept = {name for name, _ in base.named_parameters()} - {f"{name}.weight" for name in language_model_targets(base)}
    loaded = dict(model.named_parameters())
    assert all(loaded[name].equal(base.get_parameter(name)) for name in kept)
    assert not any(p.requires_grad for p in model.parameters())
    said = capsys.readouterr().err
    assert f"stored in {bits[8]} bits:" in said and "model.language_model.layers.{0-1}.mlp.up_proj  x2" in said
    near = logits(model, processor, public)
    there = logits(base, processor, public)
    assert not near.equal(there)
    assert torch.cosine_similarity(near.flatten(), there.flatten(), dim=0) > 0.95


def test_nothing_is_said_where_nobody_wants_to_hear_it(base_folder, capsys):
    pytest.importorskip("bitsandbytes")
    load_base(base_folder, load_in_8bit=True, verbose=False)
    assert "stored in" not in capsys.readouterr().err


def test_gradients_through_4_bits_survive_an_evaluation(base_folder, processor, public):
    pytest.importorskip("bitsandbytes")
    model, _ = load_base(base_folder, load_in_4bit=True, verbose=False)
    layers = [module for module in model.modules() if hasattr(module, "support_avx512bf16_for_cpu")]
    assert layers and not any(layer.support_avx512bf16_for_cpu for layer in layers)
    before = copy.deepcopy([layer.weight.data for layer in layers])
    logits(model, processor, public)
    assert all(layer.weight.data.equal(data) for layer, data in zip(layers, before, strict=True))


@pytest.mark.parametrize("build", [tiny_llava, tiny_qwen])
def test_the_skip_list_holds_full_names_of_everything_else(build):
    model = build()
    targets = language_model_targets(model)
    skip = spared(model, targets)
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    assert {n for n in linear if not any(n == s or n.startswith(f"{s}.") for s in skip)} == set(targets)
    assert "lm_head" in skip and all(model.get_submodule(name) is not None for name in skip)
    assert len(skip) < len(linear) - len(targets)


def test_a_router_inside_a_block_is_spared_by_its_own_name():
    model = nn.ModuleDict({"block": nn.ModuleDict({"gate": nn.Linear(2, 2), "up": nn.Linear(2, 2)})})
    assert spared(model, ["block.up"]) == ["block.gate"]


def test_other_modules_in_few_bits_are_an_error(base_folder):
    pytest.importorskip("bitsandbytes")
    model, _ = load_base(base_folder, load_in_8bit=True, verbose=False)
    targets = language_model_targets(model)
    with pytest.raises(ValueError, match=r"came out wrong: 1 modules, such as '.*', are stored in few bits"):
        check_quantised(model, targets[1:])
    with pytest.raises(ValueError, match=r"1 modules, such as 'lm_head', should be stored in few bits and are not"):
        check_quantised(model, [*targets, "lm_head"])


def test_both_kinds_of_few_bits(base_folder):
    with pytest.raises(ValueError, match="`load_in_4bit` and `load_in_8bit` must not be given together"):
        load_base(base_folder, load_in_4bit=True, load_in_8bit=True)


def test_an_unknown_dtype(base_folder):
    with pytest.raises(ValueError, match="`dtype` must be one of auto, float32, bfloat16, float16; got 'int3'"):
        load_base(base_folder, dtype="int3")


def test_without_bitsandbytes(base_folder, monkeypatch):
    monkeypatch.setattr(loading, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="need bitsandbytes, which is not installed"):
        load_base(base_folder, load_in_4bit=True)


@pytest.mark.parametrize("where", ["./nowhere", "a/b/c"])
def test_a_folder_that_is_not_there(where):
    with pytest.raises(ValueError, match="`model_id` must be a folder that exists or a Hub model id"):
        load_base(where)


def test_a_text_only_model(tmp_path):
    tiny_llama().save_pretrained(tmp_path)
    with pytest.raises(TypeError, match=r"`model_id` must be a vision-language model; got .* of type 'llama'"):
        load_base(tmp_path)


def test_a_folder_without_weights(base_folder, tmp_path):
    shutil.copy(base_folder / "config.json", tmp_path)
    with pytest.raises(OSError, match="no file named"):
        load_base(tmp_path)
