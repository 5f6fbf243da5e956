import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel

from peft_space import load_erasure, save_erasure_adapter
from peft_space.adapter import fetch_adapter
from peft_space.vlm import base_of
from tests.adapters import shake, space
from tests.tiny import logits, text_batch, tiny_llama, tiny_llava, tiny_qwen

FILE = "adapter_model.safetensors"


@pytest.fixture
def folder(tmp_path):
    return save_erasure_adapter(shake(space(tiny_llama())), tmp_path / "adapter")


@pytest.fixture
def edit(folder):
    """Changes the weights or the settings of the adapter on disk."""

    def edit(change=None, **settings):
        weights = load_file(folder / FILE)
        if change:
            change(weights)
        save_file(weights, folder / FILE, metadata={"format": "pt"})
        config = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps(config | settings))
        return folder

    return edit


def refused(folder, match):
    """Loading fails with a clear error and leaves the model as it was."""
    model = tiny_llama()
    before = logits(model, text_batch())
    with pytest.raises(ValueError, match=match):
        load_erasure(model, folder)
    assert not hasattr(model, "peft_config") and base_of(model) is model
    assert logits(model, text_batch()).equal(before)


def test_missing_keys_are_named(edit):
    key = "base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"
    refused(edit(lambda weights: weights.pop(key)), rf"got keys that are 1 missing \({key}\)")


def test_unexpected_keys_are_named(edit):
    def add(weights):
        weights |= {f"base_model.model.lm_head.lora_{factor}.weight": torch.zeros(1, 1) for factor in "AB"}

    refused(edit(add), r"got keys that are 2 unexpected \(base_model\.model\.lm_head\.lora_A\.weight, ")


def test_an_adapter_of_another_architecture_is_all_wrong(tmp_path):
    folder = save_erasure_adapter(space(tiny_llava()), tmp_path / "llava")
    with pytest.raises(ValueError, match=r"28 unexpected .*, \.\.\."):
        load_erasure(tiny_llama(), folder, check_base=False)


def test_factors_of_another_rank_are_refused(edit):
    refused(edit(r=8), "must hold factors of rank 8, as `adapter_config.json` says; got 4 and 4 for model.layers.0")


def test_ranks_of_single_modules_are_known(tmp_path):
    model = shake(space(tiny_llama(), rank_pattern={"q_proj": 2, r"layers\.1\.mlp\.up_proj": 3}))
    expected = logits(model, text_batch())
    loaded = load_erasure(tiny_llama(), save_erasure_adapter(model, tmp_path / "out"))
    assert logits(loaded, text_batch()).allclose(expected, atol=1e-6)


@pytest.mark.parametrize(
    "config",
    [
        {"target_modules": r".*layers\.1\..*(q|v)_proj"},
        {"target_modules": "all-linear"},
        {"target_modules": ["q_proj", "up_proj"], "layers_to_transform": [1], "layers_pattern": "layers"},
        {"target_modules": ["q_proj", "v_proj"], "exclude_modules": r".*layers\.0\..*"},
        {"target_modules": ["embed_tokens", "q_proj"]},
    ],
    ids=["pattern", "all-linear", "layers", "exclude", "embedding"],
)
def test_every_way_of_choosing_modules_is_known(tmp_path, config):
    model = space(tiny_llama(), subspace=False, **config)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    folder = save_erasure_adapter(model, tmp_path / "out")
    expected = logits(model, text_batch())
    beside = get_peft_model(tiny_llama(), LoraConfig(target_modules=["q_proj"], init_lora_weights=True))
    load_erasure(beside, folder, "loaded").set_adapter("loaded", inference_mode=True)
    for loaded in (load_erasure(tiny_llama(), folder), beside):
        assert logits(loaded, text_batch()).allclose(expected, atol=1e-6)


def test_both_parts_of_a_model_are_known(tmp_path):
    folder = save_erasure_adapter(space(tiny_qwen(), parts=("language", "vision", "projector")), tmp_path / "out")
    assert load_erasure(tiny_qwen(), folder).peft_config["default"].concept == "a thing"


@pytest.mark.parametrize("name", ["adapter_model.bin", "pytorch_model.pt"])
def test_pickled_weights_are_refused(folder, name):
    (folder / FILE).unlink()
    torch.save({}, folder / name)
    refused(folder, rf"which has only pickled weights \({name}\), which run code")


def test_pickled_weights_beside_others_are_not_read(folder):
    (folder / "adapter_model.bin").write_bytes(b"no pickle at all")
    assert load_erasure(tiny_llama(), folder).peft_config["default"].concept == "a thing"


def test_no_weights_and_half_weights_are_refused(folder):
    data = (folder / FILE).read_bytes()
    (folder / FILE).write_bytes(data[: len(data) // 2])
    refused(folder, "must be a whole safetensors file")
    (folder / FILE).unlink()
    refused(folder, "which has none. Do ask")


def test_a_subfolder_is_one(folder):
    assert load_erasure(tiny_llama(), folder.parent, subfolder="adapter").peft_config["default"].concept == "a thing"


@pytest.mark.parametrize("path", ["./nowhere", "no/such/folder", "/nowhere", "a b"])
def test_what_is_neither_folder_nor_id_is_refused_without_asking_the_hub(path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(ValueError, match="which is no folder and no Hub id 'owner/name'"):
        fetch_adapter(path)


def test_a_model_of_another_kind_is_refused_by_its_shape(folder):
    other = BertModel(BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1))
    with pytest.raises(ValueError, match="a network of another shape"):
        load_erasure(other, folder)
