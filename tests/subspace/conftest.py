"""A random LLaVA of two language blocks, and batches for it."""

import pytest
import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

IMAGE_TOKEN, IMAGE_TOKENS, WIDTH = 5, 16, 32


@pytest.fixture
def llava():
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=16,
            patch_size=4,
            projection_dim=16,
        ),
        text_config=LlamaConfig(
            vocab_size=64,
            hidden_size=WIDTH,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
        ),
        image_token_id=IMAGE_TOKEN,
        image_seq_length=IMAGE_TOKENS,
        vision_feature_layer=-1,
    )
    return LlavaForConditionalGeneration(config)


@pytest.fixture
def make_batch():
    def make(seed=0, size=3, length=24, image=True, padding=True):
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(10, 64, (size, length), generator=generator)
        mask = torch.ones_like(ids)
        if padding:
            mask[0, -4:] = 0
        batch = {"input_ids": ids, "attention_mask": mask}
        if image:
            ids[:, 1 : 1 + IMAGE_TOKENS] = IMAGE_TOKEN
            batch["pixel_values"] = torch.randn(size, 3, 16, 16, generator=generator)
        return batch

    return make


@pytest.fixture
def batches(make_batch):
    return [make_batch(0), make_batch(1, image=False), make_batch(2)]
