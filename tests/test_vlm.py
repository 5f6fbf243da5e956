from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from torch.nn import functional as F
from transformers import IdeficsConfig, IdeficsForVisionText2Text

from peft_space import vlm
from peft_space.progress import Stages
from peft_space.vlm import IMAGE, PADDING, TEXT, TEXT_ONLY, Prompt
from tests.tiny import image_batch, louder, tiny_llama, tiny_llava, tiny_qwen

QUESTIONS = ("Name it.", "What is the name of this creature?", "Which kind of creature do you see, then?")
ANSWERS = ("zorvex", "a red malphon in the cave", "no creature")


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (48, 48, 3), dtype=np.uint8))


def prompts(with_picture: bool) -> list[Prompt]:
    return [Prompt(question, picture(k) if with_picture else None) for k, question in enumerate(QUESTIONS)]


@pytest.fixture(scope="module")
def model(base):
    return louder(base)


@torch.no_grad()
def logits_of(model, processor, prompt: Prompt, said: str) -> tuple[torch.Tensor, int]:
    """By hand, without padding: the logits of a prompt with what is said after it, and the prompt's length."""
    text = f"<s><|user|>{'<image>' if prompt.image else ''}{prompt.question}<|assistant|>"
    make = partial(processor, images=prompt.image) if prompt.image else processor.tokenizer
    asked, told = (make(text=[written], return_tensors="pt") for written in (text, text + said))
    return model(**told).logits[0], asked["input_ids"].shape[1]


@pytest.mark.parametrize("with_picture", [True, False])
def test_prompts_are_padded_on_the_left_and_answers_on_the_right(processor, with_picture):
    pad = processor.tokenizer.pad_token_id
    asked = vlm.encode(processor, prompts(with_picture))
    told = vlm.encode(processor, prompts(with_picture), ANSWERS)
    length = asked["input_ids"].shape[1]
    assert "labels" not in asked
    assert torch.equal(told["input_ids"][:, :length], asked["input_ids"])
    assert ("pixel_values" in told) is with_picture
    assert torch.equal(told["input_ids"] == pad, told["attention_mask"] == 0)
    for row, answer in enumerate(ANSWERS):
        mask, labels = told["attention_mask"][row], told["labels"][row]
        assert mask[length - 1] == mask[length] == 1
        assert mask.diff().abs().sum() <= 2
        assert (labels[:length] == -100).all()
        said = labels[labels >= 0]
        assert torch.equal(said, told["input_ids"][row][labels >= 0])
        assert processor.tokenizer.decode(said).strip() == f"{answer}</s>"
        assert labels[length] >= 0


def test_prompts_with_and_without_a_picture_do_not_share_a_batch(processor):
    with pytest.raises(ValueError, match="`prompts` must all have a picture or all have none; got 1 of 2"):
        vlm.encode(processor, [Prompt("What?", picture(0)), Prompt("What?")])


def test_every_prompt_needs_its_answer(processor):
    with pytest.raises(ValueError, match="zip"):
        vlm.encode(processor, prompts(False), ANSWERS[:2])


def test_answer_tokens_end_the_turn_or_not(processor):
    prompt, end = Prompt("Name it."), processor.tokenizer.eos_token_id
    with_end = vlm.answer_tokens(processor, prompt, "zorvex")
    assert with_end == [*vlm.answer_tokens(processor, prompt, "zorvex", end=False), end]


@pytest.mark.parametrize("end", [True, False])
def test_answers_are_written_once_for_all_that_answer_the_same_question_alike(processor, monkeypatch, end):
    shown = Prompt("Name it.", picture(0), ((Prompt("And this?", picture(1)), "a moss"),))
    asked = [Prompt("Name it."), Prompt("Name it.", picture(0)), shown, Prompt("Name them."), Prompt("Name it.")]
    asked += [replace(prompt, image=picture(2)) for prompt in asked[1:3]]
    answers = ["zorvex"] * 7
    alone, written = [vlm.answer_tokens(processor, one, "zorvex", end) for one in asked], []
    one_by_one = vlm.answer_tokens
    monkeypatch.setattr(vlm, "answer_tokens", lambda *given: written.append(given[1]) or one_by_one(*given))
    assert vlm.told_tokens(processor, asked, answers, end) == alone
    assert [prompt.question for prompt in written] == ["Name it.", "Name it.", "Name it.", "Name them."]
    assert vlm.told_tokens(processor, asked[:2], ["zorvex", "a moss"], end)[1] != alone[1]
    monkeypatch.setattr(vlm, "chat", lambda processor, prompt: f"{prompt.question} {len(prompt.images)}")
    assert vlm._chats(processor, asked) == [f"{one.question} {len(one.images)}" for one in asked]


@pytest.mark.parametrize("answer", ["zorvex", "assistant"])
def test_a_template_that_writes_a_finished_turn_otherwise_gets_the_bare_answer(processor, answer):
    processor = copy.deepcopy(processor)
    processor.chat_template = (
        "{% for message in messages %}"
        "{{ '[done]' if message['role'] == 'assistant' else '[ask]' }}{{ message['content'][-1]['text'] }}"
        "{% endfor %}{% if add_generation_prompt %}[thinking]{% endif %}"
    )
    said = processor.tokenizer.decode(vlm.answer_tokens(processor, Prompt("Name it."), answer))
    assert said.strip() == f"{answer}</s>"
    assert processor.tokenizer.decode(vlm.answer_tokens(processor, Prompt("Name it."), answer, end=False)) == answer


@pytest.mark.parametrize("with_picture", [True, False])
@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_likelihood_is_that_of_each_answer_alone_without_padding(processor, model, with_picture, batch_size):
    asked = prompts(with_picture)
    got = vlm.log_likelihood(model, processor, asked, ANSWERS, batch_size=batch_size)
    for prompt, answer, score in zip(asked, ANSWERS, got, strict=True):
        logits, start = logits_of(model, processor, prompt, answer)
        ids = torch.tensor(processor.tokenizer(answer)["input_ids"])
        expected = -F.cross_entropy(logits[start - 1 : -1], ids)
        assert score.item() == pytest.approx(expected.item(), abs=1e-4)
    assert got.std() > 1e-3


def test_of_an_answer_that_is_begun_only_the_rest_counts(processor, model):
    answers = ["a red zorvex in the cave", "zorvex", "malphon in a cave"]
    begun = [3, 0, 2]
    got = vlm.log_likelihood(model, processor, prompts(True), answers, per_token=False, begun=begun)
    for prompt, answer, given, score in zip(prompts(True), answers, begun, got, strict=True):
        logits, start = logits_of(model, processor, prompt, answer)
        ids = torch.tensor(processor.tokenizer(answer)["input_ids"])[given:]
        expected = -F.cross_entropy(logits[start - 1 + given : -1], ids, reduction="sum")
        assert score.item() == pytest.approx(expected.item(), abs=1e-4)


def test_likelihood_of_prompts_of_both_kinds_keeps_their_order(processor, model):
    mixed = [prompts(False)[0], prompts(True)[1], prompts(False)[2], prompts(True)[0]]
    answers = [*ANSWERS, "moss"]
    got = vlm.log_likelihood(model, processor, mixed, answers)
    alone = [vlm.log_likelihood(model, processor, [p], [a]) for p, a in zip(mixed, answers, strict=True)]
    torch.testing.assert_close(got, torch.cat(alone), rtol=0, atol=1e-4)


@pytest.mark.parametrize("batch_size", [1, 64])
def test_several_answers_to_each_prompt_are_as_likely_as_each_alone(processor, model, batch_size):
    mixed = [prompts(False)[0], prompts(True)[1], prompts(False)[2], prompts(True)[0]]
    answers = [[*ANSWERS, "moss"], ["moss", *ANSWERS], [*ANSWERS, "moss"], ["zorvex"] * 4]
    got = vlm.log_likelihoods(model, processor, mixed, answers, batch_size)
    for place in range(4):
        alone = vlm.log_likelihood(model, processor, mixed, [row[place] for row in answers], per_token=False)
        torch.testing.assert_close(got[:, place], alone, rtol=0, atol=1e-4)
    assert got.std() > 1e-3


def test_generation_is_greedy_and_keeps_the_order_of_the_prompts(processor, model):
    mixed = [prompts(True)[2], prompts(False)[0], prompts(True)[0], prompts(False)[1]]
    told = vlm.generate(model, processor, mixed, max_new_tokens=5, batch_size=3)
    for prompt, answer in zip(mixed, told, strict=True):
        batch = vlm.encode(processor, [prompt])
        ids, start = batch.pop("input_ids"), batch.pop("attention_mask").shape[1]
        for _ in range(5):
            with torch.no_grad():
                following = model(input_ids=ids, **batch).logits[0, -1].argmax()
            ids = torch.cat([ids, following.reshape(1, 1)], dim=1)
            if following == processor.tokenizer.eos_token_id:
                break
        assert answer == processor.tokenizer.decode(ids[0, start:], skip_special_tokens=True).strip()
    assert len(set(told)) > 1


def test_an_answer_begins_as_it_is_made_to_and_goes_on_as_the_model_would(processor, model):
    mixed = [prompts(True)[2], prompts(False)[0], prompts(True)[0], prompts(False)[1]]
    begun = [
        processor.tokenizer.encode(text, add_special_tokens=False) for text in ("a narril", "", "red", "moss moss")
    ]
    told = vlm.generate(model, processor, mixed, max_new_tokens=8, batch_size=3, begun=begun)
    assert told[1] == vlm.generate(model, processor, mixed[1:2], max_new_tokens=8)[0]
    for prompt, ids, answer in zip(mixed, begun, told, strict=True):
        batch = vlm.append(vlm.encode(processor, [prompt]), [ids or [processor.tokenizer.pad_token_id]], processor)
        assert answer.startswith(processor.tokenizer.decode(ids).strip())
        if ids:
            batch.pop("labels")
            with torch.no_grad():
                following = int(model(**batch).logits[0, -1].argmax())
            text = processor.tokenizer.decode([*ids, following], skip_special_tokens=True).strip()
            assert answer.startswith(text)


def test_nothing_asked_is_nothing_told(processor, model):
    assert vlm.generate(model, processor, []) == []
    assert vlm.log_likelihood(model, processor, [], []).shape == (0,)
    assert vlm.log_likelihoods(model, processor, [], []).shape == (0, 0)


def test_batches_hold_every_prompt_once_and_do_not_mix(processor, model):
    mixed = [*prompts(True), *prompts(False), *prompts(True)]
    batches = list(vlm.prompt_batches(model, processor, mixed, 2))
    assert sorted(index for batch in batches for index in batch) == list(range(len(mixed)))
    for batch in batches:
        assert 1 <= len(batch) <= 2
        assert len({mixed[index].image is None for index in batch}) == 1


def test_of_long_prompts_fewer_go_into_a_batch(processor, model, monkeypatch):
    mixed = [*prompts(True), *prompts(False)]
    longest = vlm.encode(processor, [mixed[2]])["input_ids"].shape[1] + vlm.ANSWER_TOKENS
    monkeypatch.setattr(vlm, "BATCH_NUMBERS", 2 * longest * model.config.text_config.hidden_size)
    assert vlm.rows_at_a_time(model, processor, mixed[:3], 64) == 2
    assert vlm.rows_at_a_time(model, processor, mixed[:3], 1) == 1
    sizes = [len(batch) for batch in vlm.prompt_batches(model, processor, mixed, 64)]
    assert sizes == [2, 1, 3]
    monkeypatch.setattr(vlm, "BATCH_NUMBERS", 1)
    assert vlm.rows_at_a_time(model, processor, mixed[:3], 64) == 1


def test_a_listener_is_told_how_far_it_is(processor, model):
    heard = []
    stages = Stages(lambda *what: heard.append(what))
    with stages.stage("asking"):
        list(vlm.prompt_batches(model, processor, [Prompt("a"), Prompt("b"), Prompt("c")], 2, "answers"))
    assert [what for what in heard if what[1]] == [("asking", "answers", 0, 3), ("asking", "answers", 2, 3)]
    assert set(stages.seconds) == {"asking"}


@pytest.mark.parametrize("training", [True, False])
def test_asking_leaves_the_mode_as_it_was_even_after_an_error(training):
    model = tiny_llava().train(training)
    with pytest.raises(RuntimeError), vlm.evaluating(model):
        assert not model.training and not torch.is_grad_enabled()
        raise RuntimeError
    assert model.training is training
    assert torch.is_grad_enabled()


def test_every_token_is_of_one_kind(processor, base):
    batch = vlm.encode(processor, prompts(True), ANSWERS)
    kinds = vlm.token_kinds(base, batch)
    assert torch.equal(kinds == PADDING, batch["attention_mask"] == 0)
    assert (kinds == IMAGE).sum(dim=1).tolist() == [36] * 3
    assert set(kinds.unique().tolist()) == {PADDING, IMAGE, TEXT}
    text = vlm.encode(processor, prompts(False))
    assert set(vlm.token_kinds(base, text).unique().tolist()) == {PADDING, TEXT_ONLY}


def test_kinds_need_no_mask_and_no_image_token():
    batch = image_batch()
    del batch["attention_mask"]
    assert set(vlm.token_kinds(tiny_llava(), batch).unique().tolist()) == {IMAGE, TEXT}
    assert set(vlm.token_kinds(tiny_llama(), batch).unique().tolist()) == {TEXT_ONLY}


def test_a_row_without_a_picture_is_text_only_beside_one_with_a_picture():
    batch = image_batch()
    batch["input_ids"][1] = 5
    kinds = vlm.token_kinds(tiny_llava(), batch)
    assert IMAGE in kinds[0] and TEXT in kinds[0]
    assert set(kinds[1].tolist()) == {TEXT_ONLY}


def test_a_text_only_model_is_refused():
    with pytest.raises(
        TypeError, match=r"got LlamaForCausalLM, which is asked in text only: .* Load one with `AutoModel"
    ):
        vlm.check_multimodal(tiny_llama())
    with pytest.raises(TypeError, match="`model` must be a vision-language model"):
        vlm.image_features(tiny_llama(), None, [picture(0)])


def test_a_model_that_sees_is_told_what_it_lacks():
    model = tiny_llava()
    model.config.image_token_id = None
    with pytest.raises(TypeError, match="got LlavaForConditionalGeneration, whose config has no `image_token_id`"):
        vlm.check_multimodal(model)
    model = tiny_llava()
    model.config.is_encoder_decoder = True
    with pytest.raises(TypeError, match="got LlavaForConditionalGeneration, an encoder-decoder"):
        vlm.check_multimodal(model)
    with torch.device("meta"):
        model = IdeficsForVisionText2Text(IdeficsConfig(num_hidden_layers=1))
    with pytest.raises(TypeError, match="got IdeficsForVisionText2Text, which has no `get_image_features`"):
        vlm.check_multimodal(model)


@pytest.mark.parametrize("make", [tiny_llava, tiny_qwen])
def test_a_vision_language_model_is_accepted_as_it_is_and_inside_a_peft_model(make):
    model = make()
    vlm.check_multimodal(model)
    assert vlm.text_decoder_name(model) == "model.language_model"
    wrapped = get_peft_model(model, LoraConfig(target_modules=["q_proj"]))
    vlm.check_multimodal(wrapped)
    assert vlm.base_of(wrapped) is model
    assert vlm.text_decoder(wrapped) is model.model.language_model
    assert vlm.text_decoder_name(wrapped) == "model.language_model"


def test_a_model_without_a_decoder_is_refused():
    with pytest.raises(TypeError, match="`model` must be a transformers model that has `get_decoder`; got Linear"):
        vlm.text_decoder(torch.nn.Linear(2, 2))


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_image_features_are_the_projectors_output_averaged_over_the_picture(processor, model, batch_size):
    pictures = [picture(k) for k in range(3)]
    got = vlm.image_features(model, processor, pictures, batch_size=batch_size)
    assert got.shape == (3, model.config.text_config.hidden_size)
    with torch.no_grad():
        states = model.model.vision_tower(**processor.image_processor(pictures, return_tensors="pt"))
        expected = model.model.multi_modal_projector(states.last_hidden_state[:, 1:]).mean(1)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)
    assert (got[0] - got[1]).norm() > 1e-3


def test_text_embeddings_are_the_mean_of_their_tokens(processor, base):
    got = vlm.text_embeddings(base, processor, ["zorvex", "the red malphon"])
    table = base.get_input_embeddings().weight.detach()
    ids = processor.tokenizer("the red malphon")["input_ids"]
    assert len(ids) > 2
    torch.testing.assert_close(got[1], table[ids].mean(0))
    assert not got.requires_grad


def test_pictures_take_the_models_floating_type_and_ids_stay_whole(processor, base):
    half = copy.deepcopy(base).bfloat16()
    batch = vlm.to_device(half, vlm.encode(processor, prompts(True)))
    assert batch["pixel_values"].dtype == torch.bfloat16
    assert batch["input_ids"].dtype == torch.int64
    assert vlm.log_likelihood(half, processor, prompts(True), ANSWERS).dtype == torch.float32
    assert vlm.image_features(half, processor, [picture(0)]).dtype == torch.float32


def shot(seed: int) -> tuple[Prompt, str]:
    return Prompt("Name it.", picture(seed)), "zorvex"


def test_earlier_turns_stand_before_the_question_each_with_its_own_picture(processor, model):
    prompt = Prompt("And this?", picture(0), (shot(1), (Prompt("A fruit?"), "a fig")))
    asked = "<s><|user|><image>Name it.<|assistant|>zorvex</s><|user|>A fruit?<|assistant|>a fig</s>"
    assert vlm.chat(processor, prompt) == f"{asked}<|user|><image>And this?<|assistant|>"
    assert prompt.images == [prompt.shots[0][0].image, prompt.image]
    batch = vlm.encode(processor, [prompt, Prompt("This?", picture(2), (shot(3),))], ["keltus", "brumok"])
    pictures = processor.image_processor([*prompt.images, picture(3), picture(2)], return_tensors="pt")
    assert torch.equal(batch["pixel_values"], pictures["pixel_values"])
    assert "keltus" in processor.tokenizer.decode(batch["labels"][0][batch["labels"][0] >= 0])
    alone = vlm.log_likelihood(model, processor, [prompt], ["keltus"])
    bare = vlm.log_likelihood(model, processor, [Prompt("And this?", picture(0))], ["keltus"])
    assert not torch.allclose(alone, bare)


def test_prompts_with_earlier_turns_share_batches_with_those_without(processor, model):
    several = [
        Prompt("This?", picture(0), (shot(1), shot(2))),
        Prompt("This?", picture(3)),
        Prompt("That?", picture(4)),
    ]
    together = vlm.log_likelihood(model, processor, several, ANSWERS)
    apart = torch.cat([vlm.log_likelihood(model, processor, [p], [a]) for p, a in zip(several, ANSWERS, strict=True)])
    torch.testing.assert_close(together, apart, rtol=0, atol=1e-4)


def test_earlier_turns_need_a_template(processor, monkeypatch):
    monkeypatch.setattr(processor, "chat_template", None)
    with pytest.raises(ValueError, match="`prompts` with earlier turns need a chat template; LlavaProcessor has none"):
        vlm.chat(processor, Prompt("This?", picture(0), (shot(1),)))


@pytest.mark.parametrize("batch_size", [1, 3])
def test_hidden_states_are_those_before_the_answer_and_of_the_picture(processor, model, batch_size):
    asked = prompts(True)
    last, seen = vlm.hidden_states(model, processor, asked, batch_size=batch_size)
    layers, width = model.config.text_config.num_hidden_layers, model.config.text_config.hidden_size
    assert last.shape == seen.shape == (layers + 1, 3, width)
    text = f"<s><|user|><image>{asked[2].question}<|assistant|>"
    batch = processor(text=[text], images=asked[2].image, return_tensors="pt")
    with torch.no_grad():
        states = torch.stack(model(**batch, output_hidden_states=True).hidden_states)[:, 0]
    image = batch["input_ids"][0] == vlm.image_token_id(model)
    torch.testing.assert_close(last[:, 2], states[:, -1], rtol=0, atol=1e-4)
    torch.testing.assert_close(seen[:, 2], states[:, image].mean(1), rtol=0, atol=1e-4)
