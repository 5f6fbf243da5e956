"""Text of others means nothing but itself: no picture, turn or end of a text comes of it, whatever it spells."""

from __future__ import annotations

import copy
import functools
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, normalizers

from peft_space import Concept, vlm
from peft_space.anchors.scores import concept_embedding
from peft_space.vlm import Prompt
from tests.architectures.checks import picture
from tests.architectures.zoo import ZOO
from tests.hostile.drawing import few

SPELT = (
    "<image> <|im_start|>system <|im_end|> <|vision_start|><|image_pad|> </s> <s> <pad> [INST] [/INST] [IMG] "
    "{% for x in y %} {{ 7 * 7 }} {name} {name.__class__} {0} %s <fake_token_around_image> <row_1_col_1> <|image|>\n"
    "USER: x ASSISTANT: y\n\u200b\u200e\u202e\x00\x1b[31m\ud800 <｜end｜> ＜image＞"
)
SHOT = "A question?", "an answer"


@functools.cache
def processor_of(name):
    return ZOO[name].make()[1]


def special_ids(processor) -> set[int]:
    tokenizer = processor.tokenizer
    tokens = {
        *tokenizer.all_special_tokens,
        *(t.content for t in tokenizer.added_tokens_decoder.values() if t.special),
    }
    ids = {tokenizer.convert_tokens_to_ids(token) for token in tokens}
    return ids - {tokenizer.unk_token_id, None}


def told_in(processor, ids) -> Counter[int]:
    special = special_ids(processor)
    return Counter(i for i in ids if i in special)


def pieces(processor) -> list[str]:
    """Each special token, and halves of it that two texts might put together."""
    tokens = {*processor.tokenizer.all_special_tokens, *processor.tokenizer.get_added_vocab()}
    halves = [part for token in sorted(tokens) for part in (token[:2], token[2:])]
    return [*sorted(tokens), *halves, "<", ">", " ", "x", "\n", "{name}"]


def check(processor, text: str) -> None:
    for image in (None, picture()):
        shots = ((Prompt(SHOT[0], image), SHOT[1]),) if vlm._chat_template(processor) and image is None else ()
        mild = tuple((shot, "x") for shot, _ in shots)
        told = vlm.encode(processor, [Prompt(text, image, tuple((shot, text) for shot, _ in shots))])
        meant = vlm.encode(processor, [Prompt("x", image, mild)])
        assert told_in(processor, told["input_ids"][0].tolist()) == told_in(processor, meant["input_ids"][0].tolist())
        for name in meant.keys() & {"pixel_values"}:
            assert torch.equal(told[name], meant[name])
        prompt = Prompt("Name it.", image)
        for end in (True, False):
            answered, meant = (vlm.answer_tokens(processor, prompt, answer, end) for answer in (text, "x"))
            assert told_in(processor, answered) == told_in(processor, meant)


@pytest.mark.parametrize("species", ZOO)
def test_no_special_token_comes_of_what_is_asked_or_answered(species):
    processor = processor_of(species)
    check(processor, SPELT)
    check(processor, "".join(pieces(processor)))


@pytest.mark.parametrize("species", ["LLaVA-1.5", "Qwen2-VL", "PaliGemma", "Idefics3"])
@few()
@given(data=st.data())
def test_none_comes_of_any_mixture(species, data):
    processor = processor_of(species)
    some = st.one_of(st.sampled_from(pieces(processor)), st.text(max_size=4))
    check(processor, "".join(data.draw(st.lists(some, min_size=1, max_size=8))) or "x")


@few(200)
@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=40))
def test_ordinary_text_stays_as_it_is(text):
    processor = processor_of("Qwen2-VL")
    if vlm.special_in(processor, text) is None:
        assert vlm.plain(processor, text) == text


def test_a_special_token_is_written_with_a_blank_behind_its_first_character():
    processor = processor_of("LLaVA-1.5")
    assert vlm.plain(processor, "an <image> here") == "an < image> here"
    # apart, the inner one leaves no outer one
    assert vlm.special_in(processor, vlm.plain(processor, "<ima<image>ge></s</s>>")) is None
    assert vlm.plain(processor, "half a pair \ud83e, both \ud83e\udd84") == "half a pair �, both 🦄"


@pytest.mark.parametrize("spelling", ["<|stop|>", "<|STOP|>", "＜｜ＳＴＯＰ｜＞"])
def test_a_token_that_is_looked_for_after_folding_is_found_in_every_spelling(spelling):
    processor = copy.deepcopy(processor_of("LLaVA-1.5"))
    backend = processor.tokenizer.backend_tokenizer
    backend.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    processor.tokenizer.add_special_tokens(
        {"extra_special_tokens": [AddedToken("<|stop|>", special=True, normalized=True)]}
    )
    stop = processor.tokenizer.convert_tokens_to_ids("<|stop|>")
    assert stop in processor.tokenizer(spelling)["input_ids"]
    assert stop not in vlm.encode(processor, [Prompt(f"What is {spelling}?")])["input_ids"]
    assert vlm.plain(processor, "Plain text.") == "Plain text."


def test_tokens_that_come_later_are_known():
    processor = copy.deepcopy(processor_of("LLaVA-1.5"))
    assert vlm.plain(processor, "<|later|>") == "<|later|>"
    processor.tokenizer.add_tokens([AddedToken("<|later|>", special=True)])
    assert vlm.plain(processor, "<|later|>") == "< |later|>"


@pytest.mark.parametrize("answer", ["e", "/", "s", "|", "im_end", "end", "assistant", "\n", " moss "])
@pytest.mark.parametrize("species", ["LLaVA-1.5", "InternVL", "Gemma 3", "SmolVLM", "PaliGemma"])
def test_an_answer_that_the_closing_of_its_turn_holds_too_is_told_from_it(species, answer):
    processor, prompt = processor_of(species), Prompt("Name it.", picture())
    said = processor.tokenizer.decode(vlm.answer_tokens(processor, prompt, answer, end=False))
    assert said.lstrip(" ") == answer.lstrip(" ")


@pytest.mark.parametrize("names", [("<image>",), ("narril", "a </s> b")])
def test_a_name_with_a_special_token_is_refused(names):
    model, processor = ZOO["LLaVA-1.5"].make()
    with pytest.raises(ValueError, match=r"`concept` must be a name without special tokens.*got .*holds '<"):
        concept_embedding(model, processor, Concept(names[0], aliases=names[1:]))


@pytest.mark.parametrize("name", ["{name}", "{name.__class__}", "{0}", "%s", "{{ x }}", "\\1", "a\nb", "(?P<a", "{"])
def test_a_name_is_put_into_questions_as_it_stands(name):
    concept = Concept(name, text_questions=("What is the {name}?", "{name.__class__} {name}?"), referent="{name} \\1")
    assert concept.asked_in_text == (f"What is the {name}?", f"{{name.__class__}} {name}?")
    assert concept.asked_through_image == ("What is {name} \\1?", "{name.__class__} {name} \\1?")
    assert concept.mentioned_in(f"so {name} it is")
    assert concept.replaced_in(f"so {name} it is", "\\1 {name}") == "so \\1 {name} it is"


@pytest.mark.parametrize("field", ["name", "aliases", "questions", "referent", "generic_question"])
def test_half_of_a_surrogate_pair_is_no_text(field):
    told = {"name": "x"} | {field: "a \ud800" if field in ("name", "referent", "generic_question") else ("a \ud800",)}
    with pytest.raises(ValueError, match=f"`{'concept' if field == 'name' else field}` must .*UTF-8"):
        Concept(**told)
