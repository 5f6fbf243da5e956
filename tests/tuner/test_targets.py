import pytest
from peft import get_peft_model
from torch import nn
from transformers import MllamaConfig, MllamaForConditionalGeneration

from peft_space import SpaceConfig, targeted_modules
from peft_space.tuner import default_targets, describe_targets, language_model_targets
from tests.adapters import space
from tests.tiny import tiny_gpt2, tiny_llama, tiny_llava, tiny_mixtral, tiny_qwen

LEAVES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def leaves(names):
    return sorted(name.rsplit(".", 1)[1] for name in names)


@pytest.mark.parametrize("build", [tiny_llava, tiny_qwen])
def test_only_the_language_model_by_default(build):
    names = language_model_targets(build())
    assert leaves(names) == sorted(LEAVES * 2)
    assert all(name.startswith("model.language_model.layers.") for name in names)


def test_a_language_model_alone():
    assert leaves(language_model_targets(tiny_llama())) == sorted(LEAVES * 2)


@pytest.mark.parametrize("build", [tiny_llava, tiny_qwen])
def test_the_adapter_goes_where_the_default_says(build):
    model = build()
    names = language_model_targets(model)
    peft_model = get_peft_model(model, SpaceConfig())
    assert targeted_modules(peft_model) == names
    peft_model.add_adapter("second", SpaceConfig())
    assert targeted_modules(peft_model, "second") == names
    assert language_model_targets(peft_model) == names


def test_vision_and_projector_are_an_explicit_choice():
    llava = tiny_llava()
    assert default_targets(llava, ["projector"]) == [f"model.multi_modal_projector.linear_{i}" for i in (1, 2)]
    vision = default_targets(llava, ["vision"])
    assert leaves(vision) == sorted(["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"] * 2)
    both = default_targets(llava, ["language", "vision"])
    assert both == language_model_targets(llava) + vision
    assert targeted_modules(space(llava, subspace=False, parts=("projector",))) == default_targets(
        llava, ["projector"]
    )


def test_a_projector_inside_the_vision_tower():
    qwen = tiny_qwen()
    assert default_targets(qwen, ["projector"]) == ["model.visual.merger.mlp.0", "model.visual.merger.mlp.2"]
    assert all(name.startswith("model.visual.blocks.") for name in default_targets(qwen, ["vision"]))


def test_a_vision_tower_inside_the_decoder_is_left_out():
    model = tiny_llama()
    tower = nn.ModuleDict({"layers": nn.ModuleList([nn.ModuleDict({"q_proj": nn.Linear(8, 8)})])})
    model.model.visual = tower
    model.model.layers[0].vision_expert = nn.Linear(8, 8)
    assert leaves(language_model_targets(model)) == sorted(LEAVES * 2)


def test_routers_are_left_out_and_experts_are_not():
    model = tiny_llama()
    moe = nn.Module()
    moe.gate, moe.router, moe.shared_expert_gate = nn.Linear(32, 4), nn.Linear(32, 4), nn.Linear(32, 1)
    moe.experts = nn.ModuleList([nn.ModuleDict({"gate_proj": nn.Linear(32, 8)}) for _ in range(3)])
    model.model.layers[0].mlp = moe
    names = [name for name in language_model_targets(model) if "layers.0.mlp" in name]
    assert names == [f"model.layers.0.mlp.experts.{i}.gate_proj" for i in range(3)]


def test_other_architectures():
    assert leaves(language_model_targets(tiny_gpt2())) == sorted(["c_attn", "c_fc", "c_proj", "c_proj"] * 2)
    assert leaves(language_model_targets(tiny_mixtral())) == sorted(["q_proj", "k_proj", "v_proj", "o_proj"] * 2)


def test_cross_attention_counts_as_attention():
    text = {"vocab_size": 16, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2, "pad_token_id": 0}
    text |= {"num_attention_heads": 2, "num_key_value_heads": 1, "cross_attention_layers": [1], "bos_token_id": 0}
    vision = {"hidden_size": 8, "num_hidden_layers": 1, "num_global_layers": 1, "attention_heads": 2}
    vision |= {"intermediate_size": 8, "image_size": 8, "patch_size": 4, "intermediate_layers_indices": [0]}
    vision |= {"vision_output_dim": 16, "supported_aspect_ratios": [[1, 1]], "max_num_tiles": 1}
    model = MllamaForConditionalGeneration(MllamaConfig(text_config=text, vision_config=vision))
    names = language_model_targets(model)
    assert any("layers.1.cross_attn.q_proj" in name for name in names)
    assert not any("vision" in name for name in names)


def test_quantised_layers_of_other_libraries_are_found_by_name():
    class QuantLinear(nn.Module):
        in_features = out_features = 32

    model = tiny_llama()
    model.model.layers[0].mlp.up_proj = QuantLinear()
    assert "model.layers.0.mlp.up_proj" in language_model_targets(model)


def test_only_some_layers():
    model = tiny_llava()
    assert all(".layers.1." in name for name in language_model_targets(model, layers=1))
    peft_model = space(model, subspace=False, layers_to_transform=[1])
    assert targeted_modules(peft_model) == language_model_targets(model, layers=[1])
    with pytest.raises(ValueError, match=r"no language modules were found in layers \[7\]"):
        language_model_targets(model, layers=7)


def test_what_is_not_there_is_an_error():
    with pytest.raises(ValueError, match="without a vision tower"):
        default_targets(tiny_llama(), ["vision"])
    with pytest.raises(ValueError, match="no projector modules were found"):
        default_targets(tiny_llama(), ["projector"])
    with pytest.raises(TypeError, match="get_decoder"):
        language_model_targets(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="must be one of"):
        targeted_modules(tiny_llama(), "nobody")


def test_targets_are_described_in_few_lines(caplog):
    text = describe_targets(language_model_targets(tiny_llava()))
    assert text.splitlines()[0] == "model.language_model.layers.{0-1}.self_attn.q_proj  x2"
    assert len(text.splitlines()) == len(LEAVES)
    assert describe_targets(["a.0.b", "a.2.b", "a.3.b", "c"]) == "a.{0,2-3}.b  x3\nc"
    with caplog.at_level("INFO", logger="peft_space"):
        space(tiny_llama(), subspace=False)
    assert "model.layers.{0-1}.mlp.up_proj" in caplog.text
