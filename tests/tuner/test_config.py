import json
from dataclasses import fields

import peft
import pytest
from peft import LoraConfig, PeftConfig, PeftType

from peft_space import SpaceConfig

REFUSED = {
    "use_dora": True,
    "use_bdlora": peft.BdLoraConfig(nblocks=2) if hasattr(peft, "BdLoraConfig") else None,
    "arrow_config": peft.ArrowConfig() if hasattr(peft, "ArrowConfig") else None,
    "alora_invocation_tokens": [1, 2],
    "velora_config": peft.VeloraConfig() if hasattr(peft, "VeloraConfig") else None,
    "monteclora_config": {"num_samples": 2},
    "kasa_config": {},
    "loftq_config": {"loftq_bits": 4},
    "use_qalora": True,
    "target_parameters": ["experts.gate_up_proj"],
    "layer_replication": [(0, 1)],
    "lora_bias": True,
    "bias": "all",
    "modules_to_save": ["lm_head"],
    "trainable_token_indices": [1],
    "init_lora_weights": "pissa",
}


@pytest.mark.parametrize("name", [n for n in REFUSED if n in {f.name for f in fields(LoraConfig)}])
def test_what_breaks_the_null_space_is_refused(name):
    value = REFUSED[name]
    if name == "kasa_config":
        value = peft.KasaConfig()
    with pytest.raises(ValueError, match=f"`{name}` must .*SPACE"):
        SpaceConfig(**{name: value})


def test_every_lora_variant_of_this_peft_is_refused():
    variants = [f.name for f in fields(LoraConfig) if f.metadata.get("is_lora_variant")]
    assert variants
    for name in variants:
        with pytest.raises(ValueError, match=f"`{name}` must not be set"):
            SpaceConfig(**{name: True})


@pytest.mark.parametrize("start", [True, False, "gaussian", "orthogonal"])
def test_initialisations_that_leave_the_base_alone_are_allowed(start):
    assert SpaceConfig(init_lora_weights=start).init_lora_weights == start


@pytest.mark.parametrize("concept", ["", "  ", [], ["a", ""], [3]])
def test_a_concept_has_a_name(concept):
    with pytest.raises(ValueError, match="`concept` must"):
        SpaceConfig(concept=concept)


@pytest.mark.parametrize("parts", [(), ("audio",), "nothing"])
def test_unknown_parts_are_refused(parts):
    with pytest.raises(ValueError, match="`parts` must be some of language, vision, projector"):
        SpaceConfig(parts=parts)


def test_it_is_lora_on_disk_and_itself_again_with_the_side_file(tmp_path):
    config = SpaceConfig(concept=["a", "b"], parts="vision", r=3, target_modules=["q_proj"], record={"seed": 1})
    assert config.peft_type is PeftType.SPACE
    config.save_pretrained(tmp_path)
    on_disk = json.loads((tmp_path / "adapter_config.json").read_text())
    LoraConfig(target_modules=["q_proj"]).save_pretrained(tmp_path / "lora")
    assert on_disk["peft_type"] == "LORA"
    assert on_disk.keys() == json.loads((tmp_path / "lora" / "adapter_config.json").read_text()).keys()
    assert type(PeftConfig.from_pretrained(tmp_path)) is LoraConfig

    again = SpaceConfig.from_pretrained(tmp_path)
    assert type(again) is SpaceConfig and again.peft_type is PeftType.SPACE
    assert again.to_dict() == config.to_dict()


def test_an_adapter_without_side_file_is_not_an_erasure(tmp_path):
    LoraConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"must hold `space_config\.json`"):
        SpaceConfig.from_pretrained(tmp_path)


def test_a_side_file_of_another_format_is_refused(tmp_path):
    SpaceConfig().save_pretrained(tmp_path)
    (tmp_path / "space_config.json").write_text('{"format": 99}')
    with pytest.raises(ValueError, match="must be of format 1"):
        SpaceConfig.from_pretrained(tmp_path)


def test_a_record_that_is_not_json_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="`record` must hold only what JSON can"):
        SpaceConfig(record={"x": object()}).save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()
