import json

import pytest
import torch
from huggingface_hub import constants

from peft_space import SpaceConfig
from peft_space.tuner import base_fingerprint, check_base
from tests.adapters import shake, space
from tests.tiny import tiny_llama, tiny_llava, tiny_qwen


@pytest.mark.parametrize("build", [tiny_llama, tiny_llava, tiny_qwen])
def test_adapters_do_not_change_it(build):
    bare = base_fingerprint(build())
    peft_model = shake(space(build(), subspace=False))
    assert base_fingerprint(peft_model) == bare == base_fingerprint(peft_model.get_base_model())
    assert peft_model.peft_config["default"].base_fingerprint == bare
    assert json.loads(json.dumps(bare)) == bare
    assert len(json.dumps(bare)) < 8000


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_dtype_it_is_loaded_in_does_not_matter(dtype):
    saved = base_fingerprint(tiny_llava())
    assert check_base(saved, tiny_llava().to(dtype)) == "weights"
    assert check_base(base_fingerprint(tiny_llava().to(dtype)), tiny_llava()) == "weights"
    assert check_base(base_fingerprint(tiny_llava().half()), tiny_llava().bfloat16()) == "weights"


def test_saved_and_loaded_it_is_the_same(tmp_path):
    model = tiny_llava()
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert check_base(base_fingerprint(model), again) == "weights"


def test_another_checkpoint_of_the_same_shape_is_refused():
    saved = base_fingerprint(tiny_llava())
    with pytest.raises(ValueError, match="the weights differ, first in"):
        check_base(saved, tiny_llava(seed=1))


def test_a_small_change_of_the_weights_is_seen():
    model = tiny_llava()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.02)
    with pytest.raises(ValueError, match="the weights differ"):
        check_base(base_fingerprint(tiny_llava()), model)


def test_another_shape_is_refused():
    with pytest.raises(ValueError, match="another shape"):
        check_base(base_fingerprint(tiny_llava()), tiny_llama())


def test_run_time_switches_do_not_matter():
    saved = base_fingerprint(tiny_llava())
    model = tiny_llava()
    model.config.use_cache = False
    model.config.pad_token_id = 7
    model.config.quantization_config = {"group_size": 64}
    assert check_base(saved, model) == "weights"


def quantise(model, every=False):
    """Give weights the storage of a quantised checkpoint."""
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, torch.nn.Parameter) and (every or isinstance(module, torch.nn.Linear)):
            module.weight = torch.nn.Parameter(weight.data.to(torch.uint8), requires_grad=False)
    return model


def test_a_quantised_model_is_known_by_what_it_keeps():
    saved = base_fingerprint(tiny_llava())
    assert check_base(saved, quantise(tiny_llava())) == "weights"
    with pytest.raises(ValueError, match="the weights differ"):
        check_base(saved, quantise(tiny_llava(seed=1)))


def test_nothing_to_read_falls_back_to_config_and_name():
    saved = base_fingerprint(quantise(tiny_llama(), every=True))
    assert saved["weights"] == {}
    model = tiny_llama()
    assert check_base(saved, model) == "config and name"
    model.config._name_or_path = "another/model"
    with pytest.raises(ValueError, match="no weight could be compared"):
        check_base(saved, model)


def test_without_weights_a_known_revision_must_be_the_same():
    model = quantise(tiny_llama(), every=True)
    model.config._commit_hash = "a1"
    saved = base_fingerprint(model)
    assert saved["revision"] == "a1" and check_base(saved, tiny_llama()) == "config and name"
    model.config._commit_hash = "b2"
    with pytest.raises(ValueError, match="the name or revision differs"):
        check_base(saved, model)


def test_the_revision_is_the_only_one_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    model = tiny_llama()
    model.config._name_or_path = "jane/llama"
    assert base_fingerprint(model)["revision"] is None
    for commit, file in (("a1", "model.safetensors"), ("b2", "tokenizer.json")):
        path = tmp_path / "models--jane--llama" / "snapshots" / commit / file
        path.parent.mkdir(parents=True)
        path.touch()
    assert base_fingerprint(model)["revision"] == "a1"
    (path.parent / "model-00001-of-00002.safetensors").touch()
    assert base_fingerprint(model)["revision"] is None


def test_a_merged_adapter_hides_the_base():
    peft_model = shake(space(tiny_llama()))
    peft_model.merge_adapter()
    with pytest.raises(ValueError, match="must have no merged adapter"):
        base_fingerprint(peft_model)
    peft_model.add_adapter("second", SpaceConfig(target_modules=["q_proj"]))
    assert peft_model.peft_config["second"].base_fingerprint == base_fingerprint(tiny_llama())
