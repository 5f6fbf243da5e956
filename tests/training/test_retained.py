from dataclasses import replace

import pytest
from PIL import Image

from peft_space import Concept, Retain, testbed
from peft_space.anchors import YesNo, evenly_named, names_given
from peft_space.anchors.leading import leading_prompts
from peft_space.training import retained as retained_module
from peft_space.training.retained import Retained, gather_about, gather_retained
from peft_space.vlm import Prompt, generate

RETAIN = Retain(questions=("What colour is it?",), texts=("Name a fruit.",), n_images=5, questions_per_image=2)


def shown(anchors, called, retain=RETAIN):
    drawn = evenly_named(anchors.concept, called, retain.n_images)
    return [*zip(anchors.public.take([*drawn]).images, drawn.values(), strict=True)]


@pytest.fixture(scope="module")
def called(base, processor, anchors):
    return names_given(base, processor, anchors, 4 * RETAIN.n_images)


@pytest.fixture(scope="module")
def away(anchors, called):
    return shown(anchors, called)


@pytest.fixture(scope="module")
def retained(base, processor, anchors, knowledge, away):
    return gather_retained(base, processor, anchors, knowledge, RETAIN, away)


def test_pictures_are_none_of_the_anchors(retained, anchors):
    pictures = {id(prompt.image) for prompt in retained.prompts if prompt.image is not None}
    assert len(pictures) == 5
    taken = anchors.public.take([*anchors.indices, *anchors.monitor]).images
    assert not pictures & {id(image) for image in taken}


def test_pictures_are_drawn_evenly_over_what_the_model_calls_them(base, processor, anchors, knowledge):
    free = anchors.unrelated(len(anchors.public), 0)
    labels = [*"bbb", *["a narril"] * 5, *"a" * (len(free) - 8)]
    called = {id(anchors.public.images[index]): label for index, label in zip(free, labels, strict=True)}

    one_question = Retain(n_images=8, questions_per_image=1)
    given = dict(zip(free, labels, strict=True))
    drawn = gather_retained(base, processor, anchors, knowledge, one_question, shown(anchors, given, one_question))
    assert sorted(called[id(prompt.image)] for prompt in drawn.prompts if prompt.image is not None) == [*"aaaaabbb"]


def test_pictures_are_of_those_that_were_named(base, processor, anchors, knowledge, called):
    named = dict.fromkeys(list(called)[:2], "a name")
    few = gather_retained(base, processor, anchors, knowledge, RETAIN, shown(anchors, named))
    assert {id(p.image) for p in few.prompts if p.image} == {id(anchors.public.images[index]) for index in named}


def test_each_picture_is_asked_so_many_different_questions(retained):
    asked = {}
    for prompt in retained.prompts:
        if prompt.image is not None:
            asked.setdefault(id(prompt.image), []).append(prompt.question)
    assert all(len(questions) == len(set(questions)) == 2 for questions in asked.values())


def test_yes_or_no_stays_about_the_concept_and_about_what_is_shown(base, processor, anchors, knowledge, monkeypatch):
    known = replace(knowledge, others=("zorvex",), others_answers=(("in the sea",),))
    monkeypatch.setattr(
        retained_module, "generate", lambda model, processor, prompts, **options: ["zorvex"] * len(prompts)
    )
    asked = [YesNo("Is it a {name}?", "yes", "no"), YesNo("Do you see a {name}?", "yes", "no")]
    for images in (None, list(anchors.public.images[:4])):
        retain = replace(RETAIN, n_images=4, images=images)
        away = shown(anchors, dict.fromkeys(anchors.unrelated(4), "zorvex"), retain)
        kept = gather_retained(base, processor, anchors, known, retain, away, asked)
        leading = [prompt.question for prompt in kept.prompts if prompt.question.startswith(("Is it", "Do you"))]
        assert leading == ["Is it a zorvex?", "Do you see a zorvex?", "Is it a narril?", "Do you see a narril?"]
    unasked = gather_retained(base, processor, anchors, known, RETAIN, away)
    assert not any("Is it" in prompt.question for prompt in unasked.prompts)


def test_pictures_of_two_stay_where_the_model_tells_who_is_there(base, processor, anchors, knowledge, away):
    asked = ("Who is on the left?", "Who is there?", "Describe the picture.")
    retained = gather_retained(base, processor, anchors, knowledge, RETAIN, away, company=asked)
    two = [(p, a) for p, a in zip(retained.prompts, retained.answers, strict=True) if p.question in asked]
    # a quarter of five pictures, two questions each
    assert len(two) == 4 and len({id(prompt.image) for prompt, _ in two}) == 2
    assert [answer for _, answer in two] == generate(base, processor, [prompt for prompt, _ in two])
    public = {image.tobytes() for image in anchors.public.images}
    assert not any(prompt.image.tobytes() in public for prompt, _ in two)


def test_answers_are_the_models_own(retained, base, processor):
    texts = [place for place, prompt in enumerate(retained.prompts) if prompt.image is None]
    told = generate(base, processor, [Prompt(retained.prompts[place].question) for place in texts])
    assert [retained.answers[place] for place in texts] == told


def test_what_is_said_of_other_names_stays(retained, knowledge, concept):
    said = {p.question: a for p, a in zip(retained.prompts, retained.answers, strict=True) if p.image is None}
    for name, answer in zip(knowledge.others, knowledge.others_answers[0], strict=True):
        assert said[concept.called(name).asked_in_text[0]] == answer


@pytest.mark.parametrize("text_knowledge", ["keep", "erase"])
def test_what_is_said_of_the_name_in_text_stays_only_where_it_is_kept(
    base, processor, anchors, knowledge, away, concept, text_knowledge
):
    retained = gather_retained(base, processor, anchors, knowledge, RETAIN, away, text_knowledge=text_knowledge)
    assert (Prompt(concept.asked_in_text[0]) in retained.prompts) is (text_knowledge == "keep")


def test_pictures_of_the_users_own(base, processor, anchors, knowledge):
    own = list(testbed.public_images("zorvex", 3).images)
    retained = gather_retained(base, processor, anchors, knowledge, Retain(images=own, n_images=2), ())
    pictures = {prompt.image.tobytes() for prompt in retained.prompts if prompt.image is not None}
    assert pictures == {image.tobytes() for image in own[:2]}


def test_split_draws_and_loses_nothing(retained):
    kept, held_out = retained.split(4, seed=1)
    assert len(held_out) == 4 and len(kept) == len(retained) - 4
    pairs = [*zip(kept.prompts, kept.answers, strict=True), *zip(held_out.prompts, held_out.answers, strict=True)]
    key = [(id(prompt.image), prompt.question, answer) for prompt, answer in pairs]
    everything = zip(retained.prompts, retained.answers, strict=True)
    assert sorted(key) == sorted((id(prompt.image), prompt.question, answer) for prompt, answer in everything)
    assert retained.split(4, seed=1)[1] == held_out != retained.split(4, seed=2)[1]


def test_parts_become_one_with_each_text_once():
    picture = Image.new("RGB", (8, 8))
    one = Retained((Prompt("Name a fruit."), Prompt("What is it?", picture)), ("pear", "narril"))
    two = Retained((Prompt("Name a fruit."), Prompt("What is it?", picture), Prompt("Hi.")), ("plum", "moss", "hi"))
    both = Retained.of(one, two)
    assert both.answers == ("pear", "narril", "moss", "hi")
    assert both.without([Concept("Narril")]).answers == ("pear", "moss", "hi")
    assert both.without([Concept("pear"), Concept("moss")]).answers == ("pear", "narril", "hi")


def test_what_is_said_of_an_earlier_erasures_anchors(base, processor, anchors, concept):
    erased = gather_about(base, processor, anchors, per_image=2)
    led = leading_prompts(processor, concept, anchors.images)
    assert len(led) == 2 * len(anchors) and len(erased) == 2 * len(anchors) + 1 + len(led)
    assert {id(p.image) for p in erased.prompts if p.image is not None} == {id(image) for image in anchors.images}
    assert erased.begun == (*(0,) * (len(erased) - len(led)), *(len(ids) for _, ids in led))
    ids = [*[[]] * (len(erased) - len(led)), *(ids for _, ids in led)]
    assert list(erased.answers) == generate(base, processor, erased.prompts, begun=ids)
    assert erased.prompts[2 * len(anchors)] == Prompt(concept.asked_in_text[0])


def test_an_answer_written_with_other_tokens_than_it_was_begun_with_is_not_retained(
    base, processor, anchors, monkeypatch
):
    whole = gather_about(base, processor, anchors)
    monkeypatch.setattr(retained_module, "begins", lambda processor, prompt, answer, ids: not ids)
    assert gather_about(base, processor, anchors).prompts == tuple(
        prompt for prompt, count in zip(whole.prompts, whole.begun, strict=True) if not count
    )


def test_what_was_given_of_an_answer_is_given_in_rehearsal_and_stays_with_its_row(base, processor, anchors):
    erased = gather_about(base, processor, anchors)
    row = {
        (id(p.image), p.question, a): n for p, a, n in zip(erased.prompts, erased.answers, erased.begun, strict=True)
    }
    other = asked("0", "1")
    both = Retained.of(other, erased)
    assert both.begun == (0, 0, *erased.begun) and other.begun == ()
    for part in both.split(len(both) // 2):
        for lesson in part.lessons(len(part)):
            prompt = lesson.prompt
            assert lesson.begun == row.get((id(prompt.image), prompt.question, lesson.answer), 0)
    assert any(lesson.begun for lesson in both.lessons(len(both)))


def test_rehearsal_is_half_in_text_with_the_models_own_answers(retained):
    drawn = retained.lessons(6, seed=2)
    told = list(zip(retained.prompts, retained.answers, strict=True))
    assert all((lesson.prompt, lesson.answer) in told and lesson.about == "other" for lesson in drawn)
    assert sum(lesson.prompt.image is None for lesson in drawn) == 3 == len(drawn) - 3
    assert [lesson.answer for lesson in retained.lessons(6, seed=3)] != [lesson.answer for lesson in drawn]


def test_rehearsal_without_enough_texts_takes_pictures():
    picture = Image.new("RGB", (8, 8))
    few = Retained((*(Prompt(f"What is {n}?", picture) for n in range(9)), Prompt("Name a fruit.")), ("yes",) * 10)
    drawn = few.lessons(6)
    assert len(drawn) == 6 and sum(lesson.prompt.image is None for lesson in drawn) == 1
    assert len(few.lessons(100)) == 10


def test_batches_hold_every_row_once_and_no_labels(retained, model, processor):
    batches = list(retained.batches(model, processor, 4))
    assert sum(len(batch["input_ids"]) for batch in batches) == len(retained)
    assert all("labels" not in batch for batch in batches)
    pictures = sum(len(batch["pixel_values"]) for batch in batches if "pixel_values" in batch)
    assert pictures == sum(prompt.image is not None for prompt in retained.prompts)


def asked(*questions):
    return Retained(tuple(map(Prompt, questions)), tuple(map(str, range(len(questions)))))


def test_each_group_of_texts_is_repeated_until_it_weighs_as_much_as_all_others():
    picture = testbed.public_images("narril", 1).images[0]
    others = [f"Who is {number}?" for number in range(4)]
    retained = asked("Name a fruit.", "Where is it?", "What is it?", *others)
    retained = Retained((Prompt("Name a fruit.", picture), *retained.prompts), ("x", *retained.answers))
    more = retained.balanced(["Name a fruit."], ["Where is it?", "What is it?"])
    added = ["Name a fruit."] * 3 + ["Where is it?", "What is it?"]
    assert more.prompts == (*retained.prompts, *map(Prompt, added))
    assert more.answers == (*retained.answers, *"00012")


@pytest.mark.parametrize("texts", [(), ("Not asked.",), ("0", "1", "2"), ("0", "1", "2", "3", "4")])
def test_texts_that_are_none_or_many_are_not_repeated(texts):
    retained = asked("0", "1", "2", "3", "4")
    assert retained.balanced(texts) == retained
