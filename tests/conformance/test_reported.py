"""What users of PEFT and transformers reported, and what becomes of it here. Each test is named after its issue."""

import json

import pytest
import torch
from peft import AutoPeftModel, LoraConfig, PeftModel, PeftType, get_peft_model
from safetensors.torch import load_file
from transformers import BitsAndBytesConfig, Glm4MoeConfig, Glm4MoeForCausalLM, LlavaForConditionalGeneration

from peft_space import SpaceConfig, attach_subspace, load_erasure, merge_and_save, save_erasure_adapter
from peft_space._peft import is_low_bit, lora_layers
from peft_space.tuner import default_targets, language_model_targets, targeted_modules
from peft_space.vlm import base_of
from tests.adapters import RandomSubspace, shake, space, train
from tests.conformance.cases import CASES, close
from tests.tiny import TEXT, logits, qwen_batch, text_batch, tiny_llama, tiny_llava, tiny_mixtral, tiny_qwen


def test_peft_2615_names_that_the_vision_tower_shares_target_the_language_model_only(tmp_path):
    """In Qwen2.5-VL `mlp.gate_proj` and others are names in the vision tower too."""
    lora = get_peft_model(tiny_qwen(), LoraConfig(target_modules=["gate_proj", "up_proj", "down_proj"]))
    assert any(".visual." in f".{name}" for name, _ in lora_layers(base_of(lora)))

    model = shake(space(tiny_qwen()))
    names = targeted_modules(model)
    assert names == language_model_targets(tiny_qwen()) and any("gate_proj" in name for name in names)
    vision = [module for name, module in base_of(model).named_modules() if "visual" in name]
    assert vision and not any(hasattr(module, "lora_A") for module in vision)
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(tiny_qwen(), tmp_path)
    assert targeted_modules(again) == names
    close(logits(again, qwen_batch()), logits(model, qwen_batch()))


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_peft_2880_an_adapter_in_the_vision_tower_gets_gradients_under_checkpointing(reentrant):
    """Reentrant checkpointing passes no gradient where the input of the tower asks for none."""
    gradients = []
    for checkpointing in (False, True):
        base = tiny_qwen()
        if checkpointing:
            base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
        torch.manual_seed(0)
        model = shake(space(base, parts=("vision", "language")))
        train(model, qwen_batch(), steps=1)
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    assert any(".visual." in name for name in gradients[0])
    for name, gradient in gradients[0].items():
        assert gradient.abs().max() > 0
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-5, rtol=1e-4)


@pytest.fixture
def base_4bit(tmp_path):
    """A tiny LLaVA on disk, and the same as it is loaded in 4 bits, its head and all that sees in full."""
    tiny_llava().save_pretrained(tmp_path / "base")
    skip = ["model.vision_tower", "model.multi_modal_projector", "lm_head"]
    low = LlavaForConditionalGeneration.from_pretrained(
        tmp_path / "base", quantization_config=BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=skip)
    )
    for module in low.modules():
        # a processor with AVX512-BF16 repacks the weight at the first forward pass
        module.support_avx512bf16_for_cpu = False
    return tmp_path / "base", low


def test_peft_1043_merging_into_a_quantised_base_is_refused_and_merging_on_16_bits_changes_no_output(
    base_4bit, tmp_path
):
    """There the merged model answers otherwise than the model with the adapter."""
    base, low = base_4bit
    batch = CASES["llava"].batch()
    model = shake(space(low))
    before = logits(model, batch)
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(ValueError, match="the base weights must have 16 or 32 bits to be merged into"):
            merge()
    assert logits(model, batch).equal(before)
    save_erasure_adapter(model, tmp_path / "adapter")
    full = load_erasure(LlavaForConditionalGeneration.from_pretrained(base), tmp_path / "adapter")
    merged = merge_and_save(tmp_path / "adapter", base, tmp_path / "merged")
    close(logits(LlavaForConditionalGeneration.from_pretrained(merged), batch), logits(full, batch))


def test_peft_2321_a_merge_that_rounds_to_4_bits_is_an_error_where_peft_warns(base_4bit, tmp_path):
    """PEFT merges with a warning of rounding errors; of an erasure nothing might be left."""
    _, low = base_4bit
    save_erasure_adapter(shake(space(tiny_llava())), tmp_path / "adapter")
    with pytest.raises(ValueError, match="`base` must have 16 or 32 bits; got a quantised model"):
        merge_and_save(tmp_path / "adapter", low, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
    plain = PeftModel.from_pretrained(low, tmp_path / "adapter")
    with pytest.warns(UserWarning, match="rounding errors"):
        plain.merge_adapter()


def test_peft_1932_an_adapter_for_a_base_whose_vocabulary_was_resized_since_is_refused(tmp_path):
    """PEFT names hundreds of missing keys; here one sentence tells what is wrong, and nothing is loaded."""
    save_erasure_adapter(shake(space(tiny_llama())), tmp_path / "adapter")
    resized = tiny_llama()
    resized.resize_token_embeddings(72)
    with pytest.raises(ValueError, match=r"must be the base the adapter was made for.*a network of another shape"):
        load_erasure(resized, tmp_path / "adapter")
    assert not hasattr(resized, "peft_config")
    again = load_erasure(resized, tmp_path / "adapter", check_base=False)
    expected = logits(load_erasure(tiny_llama(), tmp_path / "adapter"), text_batch())
    close(logits(again, text_batch())[..., :64], expected)


def test_peft_2273_a_method_from_outside_saves_and_loads_without_a_change_to_peft(tmp_path):
    """A method of one's own used to need edits in PEFT's files; what is saved here needs nothing but PEFT."""
    base = tiny_llama()
    base.save_pretrained(tmp_path / "base")
    model = shake(space(type(base).from_pretrained(tmp_path / "base")))
    assert model.peft_type is PeftType.SPACE
    model.save_pretrained(tmp_path / "adapter")
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["peft_type"] == "LORA"
    again = AutoPeftModel.from_pretrained(tmp_path / "adapter")
    assert again.peft_type is PeftType.LORA
    close(logits(again, text_batch()), logits(model, text_batch()))


def test_peft_3009_fused_experts_are_left_out_and_asking_for_them_is_refused():
    """transformers 5 keeps a mixture's experts in one parameter, whose inputs no hook sees."""
    assert all(".self_attn." in name for name in default_targets(tiny_mixtral()))
    for names in (["q_proj", "w1", "w2", "w3"], ["q_proj", "w1"]):
        with pytest.raises(ValueError, match="`target_modules` must name modules that PEFT finds again; got 'w1'"):
            get_peft_model(tiny_mixtral(), SpaceConfig(target_modules=names))
    with pytest.raises(ValueError, match="`target_parameters` must not be set for SPACE"):
        SpaceConfig(target_parameters=["experts.gate_up_proj"])


def tiny_glm():
    """A dense first layer, and a second one with fused experts and a shared one, whose projections are linear."""
    torch.manual_seed(0)
    experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1, "moe_intermediate_size": 16}
    experts |= {"first_k_dense_replace": 1, "n_group": 1, "topk_group": 1}
    return Glm4MoeForCausalLM(Glm4MoeConfig(**TEXT, **experts, head_dim=16)).eval()


def test_peft_3711_what_peft_would_load_into_fused_experts_is_not_adapted(tmp_path, caplog):
    """PEFT redirects dense layers and shared experts that are called like experts; an erasure would lose them."""
    dense, shared = "model.layers.0.mlp.down_proj", "model.layers.1.mlp.shared_experts.down_proj"
    assert {dense, shared} <= set(default_targets(tiny_glm()))
    model = get_peft_model(tiny_glm(), SpaceConfig(r=4))
    attach_subspace(shake(model), RandomSubspace(model))
    assert "would load them into fused experts" in caplog.text and "shared_experts.down_proj" in caplog.text
    model.save_pretrained(tmp_path)
    assert len(load_file(tmp_path / "adapter_model.safetensors")) == 2 * len(targeted_modules(model))
    for again in (PeftModel.from_pretrained(tiny_glm(), tmp_path), load_erasure(tiny_glm(), tmp_path)):
        close(logits(again, text_batch()), logits(model, text_batch()))
        assert targeted_modules(again) == targeted_modules(model)
    for name in (dense, shared):
        with pytest.raises(ValueError, match=f"got '{name}' and 0 more that it takes for the fused experts"):
            get_peft_model(tiny_glm(), SpaceConfig(target_modules=[name]))


def test_peft_3711_a_pattern_means_the_same_layers_after_loading(tmp_path):
    """On a mixture PEFT shortens a pattern to the last components of what it matches, in all layers."""
    model = shake(space(tiny_mixtral(), target_modules=r"model\.layers\.1\.self_attn\.(q|v)_proj"))
    assert targeted_modules(model) == [f"model.layers.1.self_attn.{leaf}_proj" for leaf in "qv"]
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(tiny_mixtral(), tmp_path)
    assert targeted_modules(again) == targeted_modules(model)
    close(logits(again, text_batch()), logits(model, text_batch()))


def test_transformers_45674_a_head_in_4_bits_can_carry_an_erasure_but_not_take_it_in(tmp_path):
    """A skip list of one's own drops `lm_head` from the automatic one, and the head is quantised without a word."""
    tiny_llava().save_pretrained(tmp_path / "base")
    skip = ["model.vision_tower", "model.multi_modal_projector"]
    low = LlavaForConditionalGeneration.from_pretrained(
        tmp_path / "base", quantization_config=BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=skip)
    )
    for module in low.modules():
        module.support_avx512bf16_for_cpu = False
    batch = CASES["llava"].batch()
    assert is_low_bit(low.lm_head) and not is_low_bit(low.model.vision_tower.encoder.layers[0].mlp.fc1)
    assert not any("lm_head" in name for name in default_targets(low))
    model = shake(space(low))
    with model.disable_adapter():
        base = logits(model, batch)
    assert (logits(model, batch) - base).abs().max() > 1e-2
    with pytest.raises(ValueError, match="`base` must have 16 or 32 bits"):
        merge_and_save(save_erasure_adapter(model, tmp_path / "adapter"), low, tmp_path / "merged")
