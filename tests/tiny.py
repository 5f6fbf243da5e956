"""Random models of a few thousand weights, built from configs: real architectures, no download."""

from __future__ import annotations

import copy

import torch
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    ProcessorMixin,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)
from transformers.utils import logging

from peft_space.testbed.architecture import build_model

WIDTH, VOCABULARY, IMAGE_TOKEN, IMAGE_TOKENS, PIXELS = 32, 64, 63, 4, 16

TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}


def tiny_llama(seed: int = 0) -> PreTrainedModel:
    """A language model without any vision."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**TEXT)).eval()


def tiny_gpt2(seed: int = 0) -> PreTrainedModel:
    """Its projections are `Conv1D`, whose weight is the transpose of a linear layer's."""
    torch.manual_seed(seed)
    sizes = {"vocab_size": VOCABULARY, "n_embd": WIDTH, "n_inner": 48, "n_layer": 2, "n_head": 2, "n_positions": 32}
    no_dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return GPT2LMHeadModel(GPT2Config(**sizes, **no_dropout, bos_token_id=0, eos_token_id=1)).eval()


def tiny_mixtral(seed: int = 0) -> PreTrainedModel:
    """A mixture of four experts, fused into two parameters, as transformers 5 builds them."""
    torch.manual_seed(seed)
    return MixtralForCausalLM(MixtralConfig(**TEXT, num_local_experts=4, num_experts_per_tok=2)).eval()


def tiny_llava(seed: int = 0) -> PreTrainedModel:
    """CLIP tower (its `q_proj` clashes with the decoder's), projector, Llama; an image is 4 tokens."""
    torch.manual_seed(seed)
    vision = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=PIXELS,
        patch_size=8,
        projection_dim=16,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=LlamaConfig(**TEXT),
        image_token_index=IMAGE_TOKEN,
        vision_feature_layer=-1,
    )
    return LlavaForConditionalGeneration(config).eval()


def tiny_qwen(seed: int = 0) -> PreTrainedModel:
    """Qwen2.5-VL: its vision tower has a `mlp.gate_proj` of its own, and holds the projector (`merger`)."""
    torch.manual_seed(seed)
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
    vision = {
        "depth": 2,
        "hidden_size": WIDTH,
        "intermediate_size": 48,
        "num_heads": 2,
        "patch_size": 4,
        "out_hidden_size": WIDTH,
        "fullatt_block_indexes": [1],
        "window_size": 16,
    }
    level = logging.get_verbosity()
    # The architecture's default special tokens lie outside this vocabulary, and it says so at length.
    logging.set_verbosity_error()
    config = Qwen2_5_VLConfig(
        text_config=TEXT | {"rope_parameters": rope},
        vision_config=vision,
        image_token_id=IMAGE_TOKEN,
        video_token_id=62,
        vision_start_token_id=61,
        vision_end_token_id=60,
    )
    model = Qwen2_5_VLForConditionalGeneration(config).eval()
    logging.set_verbosity(level)
    return model


def two_layers(processor: ProcessorMixin, seed: int = 0) -> PreTrainedModel:
    """The test bed's model with random weights and two layers in each of its stacks."""
    torch.manual_seed(seed)
    model = build_model(processor.tokenizer).eval()
    for stack, config in (
        (model.model.vision_tower.encoder, model.config.vision_config),
        (model.model.language_model, model.config.text_config),
    ):
        stack.layers = stack.layers[:2]
        config.num_hidden_layers = 2
    return model


def text_batch(n: int = 2, length: int = 7, seed: int = 0) -> dict[str, Tensor]:
    """`n` prompts of `length` tokens, none of them special."""
    ids = torch.randint(3, 60, (n, length), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def image_batch(n: int = 2, seed: int = 0) -> dict[str, Tensor]:
    """`n` prompts for `tiny_llava`, each an image and a few words."""
    batch = text_batch(n, seed=seed)
    batch["input_ids"] = torch.cat([torch.full((n, IMAGE_TOKENS), IMAGE_TOKEN), batch["input_ids"]], dim=1)
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    batch["pixel_values"] = torch.randn(n, 3, PIXELS, PIXELS, generator=torch.Generator().manual_seed(seed))
    return batch


def qwen_batch(n: int = 2, seed: int = 0) -> dict[str, Tensor]:
    """`n` prompts for `tiny_qwen`, each an image of 4 by 4 patches and a few words."""
    batch = image_batch(n, seed)
    patch = 3 * 2 * 4 * 4  # colours, frames, height, width
    batch["pixel_values"] = torch.randn(n * 16, patch, generator=torch.Generator().manual_seed(seed))
    batch["image_grid_thw"] = torch.tensor([[1, 4, 4]] * n)
    batch["mm_token_type_ids"] = (batch["input_ids"] == IMAGE_TOKEN).int()
    return batch


@torch.no_grad()
def logits(model: torch.nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Logits `(n, length, vocabulary)` in evaluation mode."""
    return model.eval()(**batch).logits


@torch.no_grad()
def louder(model: torch.nn.Module) -> torch.nn.Module:
    """A copy of a model with random weights, scaled so that what a token sees tells in its logits."""
    model = copy.deepcopy(model)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.mul_(3)
    return model
