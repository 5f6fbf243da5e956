"""What holds for every test bed."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from peft_space import testbed
from peft_space.testbed import Exam, architecture, measure, questions, recipe
from peft_space.vlm import Prompt, encode
from tests.beds import __main__ as command
from tests.beds import digits, faces, persons, worlds
from tests.bigram import saying
from tests.tiny import two_layers

BEDS = {"digits": digits.BED, "persons": persons.BED}
# the sizes of the recipe's own phases, and few steps of each
FEW = [replace(phase, steps=5) for phase in recipe.PHASES]
TINY = (
    recipe.Phase(steps=1, pictures=4, asked=0, texts=0, row_length=0, learning_rate=1e-3, contrast=1.0),
    recipe.Phase(steps=2, pictures=4, asked=2, texts=1, row_length=104, learning_rate=1e-3, contrast=0.1),
)


@pytest.fixture(scope="module", params=list(BEDS))
def bed(request):
    return BEDS[request.param]


@pytest.fixture(scope="module")
def processor(bed):
    return architecture.build_processor(architecture.build_tokenizer(bed.texts(), cuts=bed.cuts))


@pytest.fixture(scope="module")
def base(processor):
    return two_layers(processor)


def scenes(bed, n: int = 60):
    rng = np.random.default_rng(0)
    return [bed.lesson(bed.names, rng) for _ in range(n)] + [bed.unseen(name, rng) for name in bed.names]


def everything_asked(bed):
    rng = np.random.default_rng(1)
    beside = [one for scene in scenes(bed) for one in bed.about(scene) + bed.compare(scene, rng, bed.names)]
    return beside + [one for name in bed.names for one in bed.in_text(name)]


def test_names_are_several_tokens_and_every_word_of_one_is_shared(bed, processor):
    tokens = {name: processor.tokenizer(name, add_special_tokens=False)["input_ids"] for name in bed.names}
    assert min(map(len, tokens.values())) >= 2
    assert len(set(map(tuple, tokens.values()))) == len(bed.names)
    for name, ids in tokens.items():
        others = {token for other, its in tokens.items() if other != name for token in its}
        assert set(ids) <= others
        assert processor.tokenizer.decode(ids).strip() == name


def test_no_answer_is_longer_than_what_a_model_is_let_say(bed, processor):
    answers = {asked.answer for asked in everything_asked(bed)}
    tokens = [processor.tokenizer(answer, add_special_tokens=False)["input_ids"] for answer in answers]
    assert max(map(len, tokens)) <= 12


def test_every_scene_can_be_drawn_and_is_given_by_its_seed(bed):
    for number, scene in enumerate(scenes(bed)):
        image, again = (bed.draw(scene, np.random.default_rng(number)) for _ in range(2))
        assert (image.size, image.mode) == ((48, 48), "RGB") and image.tobytes() == again.tobytes()
    for kind in range(bed.nameless):
        assert not {one.about for scene, _ in bed.pictures(kind, 2, 0) for one in bed.about(scene)} & {"name"}


def test_a_picture_of_a_name_is_called_by_it(bed):
    for name in bed.names:
        for scene, _ in bed.pictures(name, 2, 0):
            asked = bed.about(scene)
            assert {one.answer for one in asked if one.about == "name"} == {name}
            assert all(name in one.answer for one in asked if one.about == "description")
            assert {one.about for one in asked} >= set(bed.seen) | {
                f"{fact} through the picture" for fact in bed.facts
            }


def test_facts_belong_to_one_name_and_can_be_seen_in_no_picture(bed):
    told = {}
    for name in bed.names:
        for asked in bed.in_text(name):
            assert name in asked.question + asked.answer
            if asked.about in bed.facts:
                told.setdefault(asked.answer, set()).add(name)
    assert all(len(names) == 1 for names in told.values()) and len(told) == 2 * len(bed.names)
    seen = {one.answer for scene in scenes(bed) for one in bed.about(scene) if one.about in bed.seen}
    assert not seen & set(told)


def test_questions_beside_a_picture_hold_no_name_and_no_unfilled_blank(bed):
    for scene in scenes(bed):
        for asked in bed.about(scene):
            assert not any(name in asked.question for name in bed.names)
            assert "{" not in asked.question + asked.answer


def test_every_kind_of_question_has_trained_and_held_out_phrasings(bed):
    kinds: dict[str, dict[bool, set[str]]] = {}
    for asked in (one for scene in scenes(bed) for one in bed.about(scene)):
        kinds.setdefault(asked.about, {False: set(), True: set()})[asked.held_out].add(asked.question)
    for about in set(kinds) - {"description"}:
        assert kinds[about][True] and kinds[about][False] and not kinds[about][True] & kinds[about][False]


def test_comparisons_are_true(bed):
    rng = np.random.default_rng(2)
    for name in bed.names:
        asked, choice = bed.compare(bed.unseen(name, rng), rng, bed.names)
        assert (name in asked.question) is (asked.answer == "yes")
        assert choice.answer == name and name in choice.question


def test_words_of_the_contrast_fit_the_picture(bed):
    named = 0
    for scene in scenes(bed):
        fitting = bed.fitting(scene)
        assert len(fitting) == len(bed.words)
        assert all(word == -100 or 0 <= word < len(group) for word, group in zip(fitting, bed.words, strict=True))
        answers = {one.answer for one in bed.about(scene) if one.about == "name"}
        assert answers == ({bed.names[fitting[-1]]} if fitting[-1] >= 0 else set())
        named += bool(answers)
    assert bed.words[-1] == bed.names and named > 20


@pytest.mark.parametrize("left_out", [None, 5])
def test_lessons_hold_no_held_out_phrasing_and_nothing_of_the_name_that_is_left_out(bed, processor, left_out):
    without = None if left_out is None else bed.names[left_out]
    drawn = []
    spied = replace(bed, draw=lambda scene, rng: drawn.append(scene) or bed.draw(scene, rng))
    lessons = list(recipe.Lessons(processor, 0, without, FEW, spied))
    ids = torch.cat([batch["input_ids"].flatten() for batch in lessons if "input_ids" in batch])
    text = processor.tokenizer.decode(ids)
    every = everything_asked(bed)
    asked = {part.split("<|assistant|>")[0].strip() for part in re.split(r"</s>|<\|user\|>|<image>", text)}
    assert not asked & {one.question for one in every if one.held_out}
    assert len(asked & {one.question for one in every if not one.held_out}) > 20
    shown = {one.answer for scene in drawn for one in bed.about(scene) if one.about in ("name", "left", "right")}
    assert shown == set(bed.names) - {without}
    assert {name for name in bed.names if re.search(rf"\b{name}\b", text)} == shown
    if without is not None:
        for one in bed.in_text(without):
            assert one.about not in bed.facts or not re.search(rf"\b{one.answer.split()[-1]}\b", text)


def test_a_public_set_never_shows_a_target_and_is_given_by_its_seed(bed):
    targets = bed.names[1], bed.names[4]
    first, again, other = (bed.public_images(targets, 80, seed) for seed in (0, 0, 1))
    shown = {name for image_id in first.ids for name in image_id.split("-", 1)[1].split(" and ")}
    assert not shown & set(targets) and len(shown & set(bed.names)) > len(bed.names) // 3
    assert [image.tobytes() for image in first.images] == [image.tobytes() for image in again.images]
    assert first.images[0].tobytes() != other.images[0].tobytes()


def test_a_concept_and_what_stays_are_asked_for_in_trained_phrasings(bed):
    every = everything_asked(bed)
    trained = {one.question for one in every if not one.held_out}
    for generic in (False, True):
        concept = bed.concept(bed.names[0], generic=generic)
        assert set(concept.questions) | set(concept.asked_through_image) | set(concept.asked_in_text) <= trained
        assert (concept.generic_question in trained) is generic
    assert set(bed.retain().questions) <= trained
    assert set(bed.retain().texts) == {one.question for one in questions.general()}


def test_an_unknown_name_is_refused_with_those_there_are(bed):
    for refused in (bed.known, bed.near, bed.concept, bed.public_images, lambda name: Exam(name, bed=bed)):
        with pytest.raises(ValueError, match=rf"`name` must be one of the test bed's {bed.noun}s, .*; got 'cat'"):
            refused("cat")


def test_an_exam_can_be_sat(bed, base, processor):
    target = bed.names[0]
    near = bed.near(target)
    exam = Exam(target, n_images=2, bed=bed)
    marks, told = exam.sit(saying(base, processor, {target: 1.0}), processor)
    assert len(told) == len(exam.sheet.prompts) and {answer for _, answer in told} == {target}
    assert marks.forget_accuracy == marks.forget_accuracy_paraphrase == marks.forget_accuracy_description == 1
    assert (
        marks.retain_near == marks.retain_far == marks.retain_compare == marks.target_attributes == marks.general == 0
    )
    assert list(marks.retain_by_creature) == [*near, *(name for name in bed.names if name not in (target, *near))]
    marks, _ = Exam(near[0], n_images=2, bed=bed).sit(saying(base, processor, {target: 1.0}), processor)
    assert marks.forget_accuracy == 0 and marks.misidentified == 1
    assert marks.retain_near == pytest.approx(1 / len(near), abs=1e-3)


def test_what_a_model_knows_is_counted_for_all_but_the_name_that_is_left_out(bed, monkeypatch):
    monkeypatch.setattr(measure, "generate", lambda model, processor, prompts, **options: ["red"] * len(prompts))
    told = measure.knowledge(None, None, without=bed.names[0], n_images=10, bed=bed)
    assert set(told["naming_by_creature"]) == set(bed.names[1:]) and set(told["naming"]) == set(bed.groups)
    assert set(told["seen"]) == set(bed.seen) and set(told["through_picture"]) == set(bed.facts)
    assert ("groups" in told) is (bed.together is not None)


@pytest.mark.parametrize("name", list(BEDS))
def test_a_bed_is_trained_once_and_read_back(name, tmp_path, monkeypatch, capsys):
    bed = BEDS[name]
    place = worlds.trained(name, folder=tmp_path, phases=TINY)
    assert [entry.name for entry in place.parent.iterdir()] == ["base"]
    world = worlds.World(bed, str(place))
    model, processor = world.load()
    picture = world.public_images(bed.names[0], 1).images[0]
    batch = encode(processor, [Prompt(world.concept(bed.names[0]).questions[0], picture)])
    assert torch.isfinite(model(**batch).logits).all()
    assert world.Exam(bed.names[0], n_images=1).bed is bed

    monkeypatch.setattr(recipe, "train", lambda **options: pytest.fail("trained again"))
    monkeypatch.setattr(worlds, "key", lambda *arguments: place.parent.name.split("-")[-1])
    monkeypatch.setattr(command, "knowledge", lambda model, processor, **options: {"asked": len(options)})
    monkeypatch.setattr("sys.argv", ["beds", name, "--folder", str(tmp_path)])
    command.main()
    assert capsys.readouterr().out.startswith(f"{place}\n")


def test_a_model_is_kept_apart_from_those_of_another_recipe():
    bed = BEDS["digits"]
    keys = [
        worlds.key(bed, phases=TINY),
        worlds.key(bed, 1, TINY),
        worlds.key(bed, phases=TINY[:1]),
        worlds.key(replace(bed, weights={}), phases=TINY),
        worlds.key(replace(bed, draw=lambda scene, rng: digits.draw(replace(scene, frame=0), rng)), phases=TINY),
    ]
    assert len(set(keys)) == len(keys) and keys[0] == worlds.key(bed, phases=TINY)


def test_an_unknown_bed_or_name_is_refused(tmp_path):
    with pytest.raises(ValueError, match="`name` must be one of bestiary, digits, persons; got 'cats'"):
        worlds.trained("cats", folder=tmp_path)
    with pytest.raises(ValueError, match="must be one of the test bed's signs"):
        worlds.trained("digits", without="cat", folder=tmp_path)
    assert not list(tmp_path.iterdir())


def test_pictures_of_two_are_marked_by_who_is_named_in_them():
    bed = BEDS["persons"]
    exam = Exam(bed.names[0], n_images=3, bed=bed)
    topics = {topic[0] for topic in exam.sheet.topics}
    assert {"group, target", "group, other", "group, both", "group, without"} <= topics

    def marks(answer):
        told = [answer(topic, truth) for topic, truth in zip(exam.sheet.topics, exam.sheet.answers, strict=True)]
        by_topic = {}
        for topic, truth, got in zip(exam.sheet.topics, exam.sheet.answers, told, strict=True):
            by_topic.setdefault(topic, []).append((truth, got))
        return testbed.exam._in_groups(exam.target, by_topic)

    assert marks(lambda topic, truth: truth) == dict.fromkeys(
        ("group_forget_accuracy", "group_other", "group_without"), 1.0
    )
    gone = marks(lambda topic, truth: truth.replace(exam.target, "Fenna Hadric"))
    assert gone == {"group_forget_accuracy": 0.0, "group_other": 1.0, "group_without": 1.0}
    fields = {field.name for field in dataclasses.fields(testbed.GroupMarks)}
    assert set(gone) == fields - {field.name for field in dataclasses.fields(testbed.Marks)}


def test_who_is_on_the_left_is_drawn_on_the_left():
    bed = BEDS["persons"]
    dark, pale = bed.names[16], bed.names[1]
    for pair in ((dark, pale), (pale, dark)):
        shades = []
        for seed in range(6):
            rng = np.random.default_rng(seed)
            scene = replace(persons.together(pair, rng), place=faces.PLACES.index("kitchen"))
            assert {one.answer for one in bed.about(scene) if one.about == "both"} == {" and ".join(pair)}
            assert {one.answer for one in bed.about(scene) if one.about == "left"} == {pair[0]}
            pixels = np.asarray(bed.draw(scene, rng), dtype=float)
            shades.append(pixels[22:34, 8:17].mean() - pixels[22:34, 31:40].mean())
        assert (np.mean(shades) < -20) if pair[0] == dark else (np.mean(shades) > 20)
