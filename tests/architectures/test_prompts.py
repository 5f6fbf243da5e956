"""Names in any script and of any number of tokens; chat templates with and without a system prompt."""

from __future__ import annotations

import pytest

from peft_space import Concept, vlm
from peft_space.anchors import suppressed_answers
from peft_space.anchors.scores import concept_embedding, name_likelihood
from peft_space.concepts.concept import find_any
from peft_space.training import concept_directions
from peft_space.vlm import Prompt
from tests.architectures.checks import picture
from tests.architectures.zoo import ZOO

NAMES = {
    "many pieces": "Pneumonoultramicroscopicsilicovolcanoconiosis",
    "several words": "the Great Barrier Reef",
    "Cyrillic": "Чебурашка",
    "Chinese": "大熊猫",
    "Japanese": "ピカチュウ",
    "Korean": "고양이",
    "Arabic": "القطة",
    "Hindi": "हाथी",
    "Thai": "ช้าง",
    "emoji": "🦄",
}
SPEAKERS = "LLaVA-1.5", "Qwen2-VL", "PaliGemma"


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
@pytest.mark.parametrize("speaker", SPEAKERS)
def test_a_name_is_written_scored_and_repelled_whatever_its_script(speaker, name):
    model, processor = ZOO[speaker].make()
    concept = Concept(name, questions=("What is it called?",))
    prompt = Prompt("What is it called?", picture())
    ids = vlm.answer_tokens(processor, prompt, name, end=False)
    assert len(ids) > 1
    assert processor.tokenizer.decode(ids).strip() == name
    closed = vlm.answer_tokens(processor, prompt, name)
    assert closed[: len(ids) + 1] == [*ids, processor.tokenizer.eos_token_id]
    assert concept_embedding(model, processor, concept).norm() == pytest.approx(1)
    likelihood = name_likelihood(model, processor, concept, [picture(0), picture(1)])
    assert likelihood.isfinite().all() and (likelihood < 0).all()
    rows = concept_directions(model, processor, [name])
    assert len(rows) == len(set(processor.tokenizer(name, add_special_tokens=False)["input_ids"]))


@pytest.mark.parametrize("name", ["大熊猫", "Чебурашка", "🦄"])
def test_a_name_of_several_bytes_a_letter_is_kept_out_of_an_answer(name):
    """The model is made to say it, piece by piece."""
    model, processor = ZOO["LLaVA-1.5"].make()
    prompt = Prompt("What is it called?", picture())
    ids = vlm.answer_tokens(processor, prompt, name, end=False)
    length = vlm.encode(processor, [prompt])["input_ids"].shape[1]

    def says(module, args, given, output):
        step = given["past_key_values"].get_seq_length() - length
        output.logits[:, -1, ids[step]] += 1e3
        return output

    model.register_forward_hook(says, with_kwargs=True)
    assert vlm.generate(model, processor, [prompt], max_new_tokens=len(ids))[0] == name
    (other,) = suppressed_answers(model, processor, [prompt], [(name,)], max_new_tokens=len(ids))
    assert other and name not in other


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("大熊猫", "这是大熊猫。"),
        ("ピカチュウ", "これはピカチュウです"),
        ("고양이", "그것은 고양이입니다"),
        ("ช้าง", "นี่คือช้างตัวใหญ่"),
        ("zorvex", "这是zorvex。"),
        ("Чебурашка", "Это чебурашка."),
        ("القطة", "هذه القطة"),
        ("🦄", "a 🦄!"),
    ],
)
def test_a_name_is_found_where_its_script_puts_no_spaces(name, text):
    assert find_any((name,), text) == text.lower().index(name.lower())
    assert name.lower() not in Concept(name).replaced_in(text, "moss").lower()


@pytest.mark.parametrize(("name", "text"), [("cat", "concatenate"), ("кот", "который"), ("قط", "قطار")])
def test_part_of_a_word_is_not_the_name(name, text):
    assert find_any((name,), text) is None


WITH_SYSTEM = (
    "{{ bos_token }}<|system|>You see well.\n{% for message in messages %}{{ message['role'] }}: "
    "{% for part in message['content'] %}{{ '<image>' if part['type'] == 'image' else part['text'] }}{% endfor %}"
    "{{ eos_token if message['role'] == 'assistant' else '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


@pytest.mark.parametrize("with_picture", [True, False])
def test_a_system_prompt_of_the_template_stands_before_the_question_and_not_in_the_answer(with_picture):
    prompt = Prompt("What is it called?", picture() if with_picture else None)
    answers = {}
    for template in (WITH_SYSTEM, WITH_SYSTEM.replace("<|system|>You see well.\n", "")):
        model, processor = ZOO["LLaVA-1.5"].make(template)
        text = vlm.chat(processor, prompt)
        assert text.count("You see well.") == ("system" in template)
        batch = vlm.encode(processor, [prompt], ["zorvex"])
        begin = processor.tokenizer.bos_token_id
        assert (batch["input_ids"] == begin).sum() == 1 and batch["input_ids"][0, 0] == begin
        answers[template] = batch["labels"][batch["labels"] >= 0].tolist()
        assert vlm.log_likelihood(model, processor, [prompt], ["zorvex"]).isfinite().all()
    first, second = answers.values()
    assert first == second and processor.tokenizer.decode(first) == "zorvex</s>"


@pytest.mark.parametrize("speaker", ["LLaVA-1.5", "LLaVA-NeXT", "InstructBLIP", "Gemma 3", "Mllama", "PaliGemma"])
@pytest.mark.parametrize("with_picture", [True, False])
def test_a_prompt_begins_once(speaker, with_picture):
    """Whether the template writes the token for it or leaves it to the tokenizer."""
    _, processor = ZOO[speaker].make()
    batch = vlm.encode(processor, [Prompt("What?", picture() if with_picture else None)] * 2)
    assert (batch["input_ids"] == processor.tokenizer.bos_token_id).sum(1).tolist() == [1, 1]


def test_a_template_of_the_tokenizer_will_do():
    _, processor = ZOO["LLaVA-1.5"].make()
    prompt = Prompt("What?", picture())
    expected = vlm.encode(processor, [prompt], ["moss"])
    processor.tokenizer.chat_template, processor.chat_template = processor.chat_template, None
    batch = vlm.encode(processor, [prompt], ["moss"])
    assert all(batch[key].equal(value) for key, value in expected.items())
