import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftType, get_peft_model
from safetensors.torch import load_file
from transformers import LlavaForConditionalGeneration

from peft_space import SpaceConfig, attach_subspace, has_subspace, load_erasure, save_erasure_adapter
from tests.adapters import RandomSubspace, leak, shake, space, train
from tests.tiny import image_batch, logits, tiny_llama, tiny_llava

FILES = {"adapter_config.json", "adapter_model.safetensors", "space_config.json"}


def names(folder):
    return {file.name for file in Path(folder).iterdir()}


@pytest.fixture
def base(tmp_path):
    """A tiny LLaVA on disk."""
    tiny_llava().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def erased(base):
    return shake(space(LlavaForConditionalGeneration.from_pretrained(base)))


def test_it_is_plain_lora_with_a_side_file(erased, tmp_path):
    folder = save_erasure_adapter(erased, tmp_path / "out", side={"dose": 0.5})
    assert names(folder) == FILES
    assert has_subspace(erased) and erased.peft_config["default"].record == {}
    assert json.loads((folder / "adapter_config.json").read_text())["peft_type"] == "LORA"
    side = json.loads((folder / "space_config.json").read_text())
    assert side["concept"] == "a thing" and side["record"] == {"dose": 0.5} and side["base_fingerprint"]["weights"]
    subspace = RandomSubspace(erased)
    for key, tensor in load_file(folder / "adapter_model.safetensors").items():
        name, factor = key.removeprefix("base_model.model.").removesuffix(".weight").rsplit(".", 1)
        assert factor in ("lora_A", "lora_B")
        if factor == "lora_A":
            assert (tensor @ subspace.basis(name)).abs().max() < 1e-6


def test_save_pretrained_writes_the_same(erased, tmp_path):
    folder = save_erasure_adapter(erased, tmp_path / "ours")
    erased.save_pretrained(tmp_path / "peft")
    assert names(tmp_path / "peft") == FILES | {"README.md"}
    for name in ("adapter_config.json", "space_config.json"):
        ours, theirs = (json.loads((d / name).read_text()) for d in (folder, tmp_path / "peft"))
        if "target_modules" in ours:
            ours["target_modules"], theirs["target_modules"] = (
                set(ours["target_modules"]),
                set(theirs["target_modules"]),
            )
        assert ours == theirs
    theirs = load_file(tmp_path / "peft" / "adapter_model.safetensors")
    for key, tensor in load_file(folder / "adapter_model.safetensors").items():
        assert tensor.equal(theirs[key])


def test_it_works_where_peft_space_can_not_be_imported(erased, base, tmp_path):
    batch = image_batch()
    torch.save({"batch": batch, "expected": logits(erased, batch)}, tmp_path / "expected.pt")
    folder = save_erasure_adapter(erased, tmp_path / "out")
    program = f"""
        import sys

        class Blocker:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] == "peft_space":
                    raise ImportError("blocked")

        sys.meta_path.insert(0, Blocker())
        try:
            import peft_space
        except ImportError:
            pass
        else:
            raise SystemExit("peft_space was importable")

        import torch
        from peft import AutoPeftModel, PeftModel, PeftType
        from transformers import LlavaForConditionalGeneration

        assert not hasattr(PeftType, "SPACE")
        saved = torch.load({str(tmp_path / "expected.pt")!r})
        plain = LlavaForConditionalGeneration.from_pretrained({str(base)!r})
        other = LlavaForConditionalGeneration.from_pretrained({str(base)!r})
        other.load_adapter({str(folder)!r})
        auto = AutoPeftModel.from_pretrained({str(folder)!r})
        for model in (PeftModel.from_pretrained(plain, {str(folder)!r}), auto, other):
            with torch.no_grad():
                torch.testing.assert_close(model.eval()(**saved["batch"]).logits, saved["expected"], atol=1e-6, rtol=0)
        assert "peft_space" not in sys.modules
        print("same logits")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "same logits" in done.stdout


def test_the_side_file_makes_it_space_again(erased, tmp_path):
    folder = save_erasure_adapter(erased, tmp_path / "out", side={"dose": 0.5})
    model = load_erasure(tiny_llava(), folder, is_trainable=True)
    config = model.peft_config["default"]
    assert type(config) is SpaceConfig and model.peft_type == PeftType.SPACE
    assert config.concept == "a thing" and config.record == {"dose": 0.5}
    subspace = RandomSubspace(model)
    attach_subspace(model, subspace)
    train(model, image_batch(), steps=2)
    assert leak(model, subspace) < 1e-6
    again = save_erasure_adapter(model, tmp_path / "again")
    assert SpaceConfig.from_pretrained(again).record == {"dose": 0.5}


def test_loaded_for_inference_it_is_frozen(erased, tmp_path):
    folder = save_erasure_adapter(erased, tmp_path / "out")
    assert not any(p.requires_grad for p in load_erasure(tiny_llava(), folder).parameters())


def test_beside_other_adapters(erased, tmp_path):
    batch = image_batch()
    expected = logits(erased, batch)
    folder = save_erasure_adapter(erased, tmp_path / "out")

    beside_space = space(tiny_llava())
    assert load_erasure(beside_space, folder, "loaded") is beside_space
    beside_lora = get_peft_model(tiny_llava(), LoraConfig(target_modules=["q_proj"]))
    load_erasure(beside_lora, folder, "loaded")
    for model in (beside_space, beside_lora):
        assert type(model.peft_config["loaded"]) is SpaceConfig
        model.set_adapter("loaded", inference_mode=True)
        assert logits(model, batch).allclose(expected, atol=1e-6)
    assert has_subspace(beside_space) and not has_subspace(beside_space, "loaded")
    save_erasure_adapter(beside_lora, tmp_path / "again", "loaded")
    again = load_erasure(tiny_llava(), tmp_path / "again")
    assert logits(again, batch).allclose(expected, atol=1e-6)
    beside_lora.save_pretrained(tmp_path / "both")
    assert names(tmp_path / "both" / "loaded") == FILES


def test_an_adapter_of_another_name_lies_in_the_folder_itself(tmp_path):
    peft_model = get_peft_model(tiny_llama(), SpaceConfig(r=2), adapter_name="owl")
    assert names(save_erasure_adapter(peft_model, tmp_path / "out", "owl")) == FILES
    assert list(peft_model.peft_config) == ["owl"]


def test_the_wrong_base_is_refused(erased, tmp_path):
    folder = save_erasure_adapter(erased, tmp_path / "out")
    wrong = tiny_llava(seed=1)
    with pytest.raises(ValueError, match="must be the base the adapter was made for"):
        load_erasure(wrong, folder)
    assert not hasattr(wrong, "peft_config")
    assert load_erasure(wrong, folder, check_base=False).peft_config["default"].concept == "a thing"


def test_an_adapter_that_does_not_know_its_base_is_refused(tmp_path):
    peft_model = space(tiny_llama())
    peft_model.peft_config["default"].base_fingerprint = None
    folder = save_erasure_adapter(peft_model, tmp_path / "out")
    with pytest.raises(ValueError, match="must say which base"):
        load_erasure(tiny_llama(), folder)


def test_a_taken_name_is_refused(erased, tmp_path):
    folder = save_erasure_adapter(erased, tmp_path / "out")
    with pytest.raises(ValueError, match="`adapter_name` must be new; got 'default'"):
        load_erasure(erased, folder)


def test_only_space_adapters_are_erasures(tmp_path):
    lora = get_peft_model(tiny_llama(), LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(ValueError, match="must be one of the SPACE adapters"):
        save_erasure_adapter(lora, tmp_path / "out")
    lora.save_pretrained(tmp_path / "lora")
    with pytest.raises(ValueError, match=r"must hold `space_config\.json`"):
        load_erasure(tiny_llama(), tmp_path / "lora")
    assert not (tmp_path / "out").exists()


def test_an_occupied_folder_is_refused(erased, tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    save_erasure_adapter(erased, folder)
    (folder / "report.json").write_text("{}")
    with pytest.raises(FileExistsError, match="must be new or empty"):
        save_erasure_adapter(erased, folder)
    save_erasure_adapter(erased, folder, side={"second": True}, overwrite=True)
    assert names(folder) == FILES | {"report.json"}
    assert SpaceConfig.from_pretrained(folder).record == {"second": True}
    with pytest.raises(FileExistsError, match="must be a folder"):
        save_erasure_adapter(erased, folder / "report.json", overwrite=True)
    assert names(tmp_path) == {"base", "out"}


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("failing", ["peft.peft_model.safe_save_file", "pathlib.Path.write_text"])
def test_a_full_disk_leaves_nothing_half_written(erased, tmp_path, monkeypatch, overwrite, failing):
    folder = tmp_path / "deep" / "out"
    if overwrite:
        save_erasure_adapter(erased, folder)
    before = {file.name: file.read_bytes() for file in folder.iterdir()} if overwrite else None

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(failing, full)
        with pytest.raises(OSError, match="No space left"):
            save_erasure_adapter(erased, folder, side={"new": 1}, overwrite=overwrite)
    assert type(erased.peft_config["default"]) is SpaceConfig and erased.peft_config["default"].record == {}
    if overwrite:
        assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
        assert names(folder.parent) == {"out"}
    else:
        assert names(folder.parent) == set()
