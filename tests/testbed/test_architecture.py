from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from peft_space.testbed.architecture import IMAGE_TOKENS
from peft_space.testbed.bestiary import CREATURES
from peft_space.testbed.drawing import SIZE
from peft_space.vlm import Prompt, check_multimodal, encode, text_decoder_name
from tests.concepts.test_images import picture


@pytest.mark.parametrize("name", [one.name for one in CREATURES])
@pytest.mark.parametrize("text", ["{}", "the {}", "a red {} in the sea", "{}?", "Is this a {} or a {}?"])
def test_every_name_is_several_tokens_and_comes_back_as_it_went_in(processor, name, text):
    encode = processor.tokenizer
    assert len(encode(name, add_special_tokens=False)["input_ids"]) >= 2
    said = text.format(name, name)
    assert encode.decode(encode(said, add_special_tokens=False)["input_ids"]).strip() == said


def test_no_two_names_share_their_tokens(processor):
    ids = {tuple(processor.tokenizer(one.name, add_special_tokens=False)["input_ids"]) for one in CREATURES}
    assert len(ids) == len(CREATURES)


@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=40).filter(lambda text: "<" not in text))
def test_any_text_comes_back_as_it_went_in(processor, text):
    encode = processor.tokenizer
    back = encode.decode(encode(text, add_special_tokens=False)["input_ids"])
    assert back.removeprefix(" ") == text.removeprefix(" ")


def test_a_prompt_holds_one_token_per_patch(processor, base):
    batch = encode(processor, [Prompt("What is it?", picture())])
    assert batch["pixel_values"].shape == (1, 3, SIZE, SIZE)
    assert (batch["input_ids"] == base.config.image_token_id).sum() == IMAGE_TOKENS
    assert (batch["input_ids"] == processor.tokenizer.bos_token_id).sum() == 1


def test_the_model_is_a_small_llava(base):
    check_multimodal(base)
    assert text_decoder_name(base) == "model.language_model"
    assert sum(parameter.numel() for parameter in base.parameters()) < 3_000_000
    assert torch.isfinite(torch.cat([parameter.flatten() for parameter in base.parameters()])).all()
