import json

import pytest
import torch
from transformers import BitsAndBytesConfig, LlavaForConditionalGeneration

from peft_space import merge_and_save, save_erasure_adapter
from tests.adapters import shake, space
from tests.tiny import image_batch, logits, tiny_llama, tiny_llava


@pytest.fixture
def base(tmp_path):
    tiny_llava().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def adapter(base, tmp_path):
    erased = shake(space(LlavaForConditionalGeneration.from_pretrained(base)))
    save_erasure_adapter(erased, tmp_path / "adapter")
    return tmp_path / "adapter", logits(erased, image_batch())


@pytest.mark.parametrize("given", ["name in the adapter", "path", "model"])
def test_the_merged_model_is_erased_without_an_adapter(base, adapter, tmp_path, given):
    folder, expected = adapter
    source = {"name in the adapter": None, "path": base, "model": tiny_llava()}[given]
    output = merge_and_save(folder, source, tmp_path / "merged")
    merged = LlavaForConditionalGeneration.from_pretrained(output)
    assert not (output / "adapter_config.json").exists() and not hasattr(merged, "peft_config")
    assert logits(merged, image_batch()).allclose(expected, atol=1e-5)


def test_sixteen_bits(base, adapter, tmp_path):
    folder, expected = adapter
    merged = LlavaForConditionalGeneration.from_pretrained(
        merge_and_save(folder, base, tmp_path / "merged", dtype="bfloat16"), dtype="auto"
    )
    assert merged.dtype == torch.bfloat16
    assert logits(merged.float(), image_batch()).allclose(expected, atol=5e-2)


def test_the_wrong_base_is_refused_and_nothing_written(adapter, tmp_path):
    folder, _ = adapter
    with pytest.raises(ValueError, match="must be the base the adapter was made for"):
        merge_and_save(folder, tiny_llava(seed=1), tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_a_quantised_model_is_refused(base, adapter, tmp_path):
    pytest.importorskip("bitsandbytes")
    folder, _ = adapter
    for bits in ("load_in_4bit", "load_in_8bit"):
        low = LlavaForConditionalGeneration.from_pretrained(
            base, quantization_config=BitsAndBytesConfig(**{bits: True})
        )
        with pytest.raises(ValueError, match="`base` must have 16 or 32 bits"):
            merge_and_save(folder, low, tmp_path / "merged")


def test_a_quantised_checkpoint_is_refused(base, adapter, tmp_path):
    config = json.loads((base / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (base / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="`base` must be stored in 16 or 32 bits"):
        merge_and_save(adapter[0], base, tmp_path / "merged")


def test_a_base_with_an_adapter_is_refused(adapter, tmp_path):
    with pytest.raises(ValueError, match="`base` must hold no adapter"):
        merge_and_save(adapter[0], space(tiny_llava()), tmp_path / "merged")


def test_unknown_dtypes_and_bases_are_refused(adapter, tmp_path):
    with pytest.raises(ValueError, match="`dtype` must be one of auto, float32"):
        merge_and_save(adapter[0], None, tmp_path / "merged", dtype="int8")
    nameless = save_erasure_adapter(space(tiny_llama()), tmp_path / "nameless")
    with pytest.raises(ValueError, match="`base` must be given"):
        merge_and_save(nameless, None, tmp_path / "merged")


def test_an_occupied_folder_is_refused(adapter, base, tmp_path):
    with pytest.raises(FileExistsError, match="must be new or empty"):
        merge_and_save(adapter[0], tiny_llava(), base)
