import json

import pytest
from peft import LoraConfig, PeftModel, get_peft_model

from peft_space import export_lora, save_erasure_adapter
from tests.adapters import shake, space
from tests.tiny import logits, text_batch, tiny_llama


@pytest.fixture
def erased():
    return shake(space(tiny_llama()))


@pytest.fixture
def folder(erased, tmp_path):
    return save_erasure_adapter(erased, tmp_path / "adapter", side={"told": "a thing"})


def test_it_is_two_files_that_say_nothing_of_the_concept(erased, folder, tmp_path):
    output = export_lora(folder, tmp_path / "lora")
    assert {file.name for file in output.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    assert (output / "adapter_model.safetensors").read_bytes() == (folder / "adapter_model.safetensors").read_bytes()
    assert "a thing" not in (output / "adapter_config.json").read_text()
    settings = json.loads((folder / "adapter_config.json").read_text())
    assert json.loads((output / "adapter_config.json").read_text()) == settings
    loaded = PeftModel.from_pretrained(tiny_llama(), output)
    assert logits(loaded, text_batch()).allclose(logits(erased, text_batch()), atol=1e-6)


def test_an_occupied_folder_is_refused(folder, tmp_path):
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "precious").touch()
    with pytest.raises(FileExistsError, match="must be new or empty"):
        export_lora(folder, tmp_path / "lora")
    assert {file.name for file in export_lora(folder, tmp_path / "lora", overwrite=True).iterdir()} == {
        "precious", "adapter_config.json", "adapter_model.safetensors",
    }  # fmt: skip


def test_what_is_no_erasure_is_refused(tmp_path):
    get_peft_model(tiny_llama(), LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path / "lora")
    with pytest.raises(ValueError, match=r"must hold `space_config\.json`"):
        export_lora(tmp_path / "lora", tmp_path / "out")
    assert not (tmp_path / "out").exists()
