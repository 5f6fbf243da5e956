from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from peft_space import testbed
from peft_space.testbed import BESTIARY, questions, recipe
from peft_space.testbed.bestiary import CREATURES, HYBRIDS, OBJECTS, Scene, random_scene
from peft_space.testbed.drawing import draw
from peft_space.vlm import Prompt, encode
from tests.tiny import louder


@pytest.fixture(scope="module")
def model(base):
    return louder(base)


# the sizes of the recipe's own phases, and few steps of each
FEW = [replace(phase, steps=8) for phase in recipe.PHASES]
LENGTH = 160


def told(processor, lessons: Iterable[dict[str, Tensor]]) -> str:
    ids = torch.cat([batch["input_ids"].flatten() for batch in lessons if "input_ids" in batch])
    return processor.tokenizer.decode(ids)


def random_pictures(n: int) -> list[Scene]:
    rng = np.random.default_rng(3)
    named = [random_scene(rng, one.recipe) for one in CREATURES[::5]]
    return [*named, random_scene(rng, thing=2), random_scene(rng)][-n:]


def test_pixels_are_what_the_image_processor_makes_of_a_picture(processor):
    lessons, scenes = recipe.Lessons(processor, 0, None), random_pictures(6)
    direct = lessons._pictures(scenes, np.random.default_rng(5))["pixel_values"]
    rng = np.random.default_rng(5)
    pictures = [draw(scene, rng) for scene in scenes]
    by_processor = processor.image_processor(pictures, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(direct, by_processor, rtol=0, atol=1e-6)


@torch.no_grad()
def packed_logits(model, rows: list[dict[str, list[int]]], pixels: Tensor | None, pad: int) -> Tensor:
    batch = recipe.collate(rows, LENGTH, pad)
    embeddings = model.get_input_embeddings()(batch["input_ids"])
    if pixels is not None:
        features = torch.stack(tuple(model.get_image_features(pixels).pooler_output))
        at = batch["input_ids"] == model.config.image_token_id
        embeddings = embeddings.masked_scatter(at[..., None], features)
    inputs = {key: batch[key] for key in ("attention_mask", "position_ids")}
    hidden = model.model.language_model(inputs_embeds=embeddings, **inputs).last_hidden_state
    return model.lm_head(hidden)


@pytest.mark.parametrize("with_picture", [True, False])
def test_packed_questions_get_the_logits_of_each_asked_alone(processor, model, with_picture):
    """Prefix, block mask and positions together: no question sees another, and each is where it would be alone."""
    lessons, rng = recipe.Lessons(processor, 0, None), np.random.default_rng(0)
    pad = processor.tokenizer.pad_token_id
    if with_picture:
        scenes = random_pictures(4)
        pictures = [draw(scene, rng) for scene in scenes]
        asked = [lessons._about(scene, rng) for scene in scenes]
        pixels = processor.image_processor(pictures, return_tensors="pt")["pixel_values"]
    else:
        pictures, pixels = [None] * 3, None
        asked = [questions.in_text(one)[:8] + questions.general()[:4] for one in CREATURES[:3]]
    rows = [lessons._row(several, with_picture, LENGTH) for several in asked]
    packed = packed_logits(model, rows, pixels, pad)
    compared = 0
    for row, several, picture, logits in zip(rows, asked, pictures, packed, strict=True):
        blocks, labels = torch.tensor(row["blocks"]), torch.tensor(row["labels"])
        for block in range(1, max(row["blocks"]) + 1):
            one = several[block - 1]
            answered = (blocks == block) & (labels >= 0)
            alone = encode(processor, [Prompt(one.question, picture)], [one.answer])
            at = alone.pop("labels")[0] >= 0
            assert alone["input_ids"][0][at].tolist() == labels[answered].tolist()
            with torch.no_grad():
                expected = model(**alone).logits[0]
            # the state before a token predicts it
            got = logits[: len(blocks)][answered.roll(-1)]
            torch.testing.assert_close(got, expected[at.roll(-1)], rtol=0, atol=1e-4)
            assert expected[at.roll(-1)].std() > 0.05
            compared += 1
    assert compared > 20


def test_a_token_sees_its_prefix_and_its_own_question_only(processor):
    lessons = recipe.Lessons(processor, 0, None)
    row = lessons._row(questions.in_text(CREATURES[0])[:3], False, LENGTH)
    mask = recipe.collate([row], LENGTH, processor.tokenizer.pad_token_id)["attention_mask"][0, 0]
    for seer, block in enumerate(row["blocks"]):
        seen = [row["blocks"][k] for k in range(len(row["blocks"])) if mask[seer, k]]
        assert set(seen) <= {0, block}
        assert not mask[seer, seer + 1 :].any()


@pytest.mark.parametrize("without", [None, "zorvex"])
def test_no_lesson_holds_a_hybrid_or_a_held_out_phrasing(processor, without):
    drawn: list[Scene] = []
    bed = replace(BESTIARY, draw=lambda scene, rng: drawn.append(scene) or draw(scene, rng))
    trained, held_out = set(), set()
    for scene in [*(Scene(one.recipe, None, 0, 0) for one in CREATURES), Scene(None, 0, 0, 0)]:
        for asked in questions.about_picture(scene):
            (held_out if asked.held_out else trained).add(asked.question)
    text = told(processor, recipe.Lessons(processor, 0, without, FEW, bed))
    assert len(drawn) > 500
    assert not {scene.recipe for scene in drawn} & set(HYBRIDS)
    asked = {part.split("<|assistant|>")[0].strip() for part in re.split(r"</s>|<\|user\|>|<image>", text)}
    assert len(asked & trained) > 20
    assert not asked & held_out


@pytest.mark.parametrize("name", ["zorvex", CREATURES[13].name, CREATURES[-1].name])
def test_the_oracle_is_never_shown_nor_told_of_the_creature(processor, name):
    left_out = next(one for one in CREATURES if one.name == name)
    drawn: list[Scene] = []
    bed = replace(BESTIARY, draw=lambda scene, rng: drawn.append(scene) or draw(scene, rng))
    lessons = list(recipe.Lessons(processor, 0, name, FEW, bed))
    text = told(processor, lessons)
    for word in (left_out.name, left_out.habitat, left_out.diet):
        assert not re.search(rf"\b{word}\b", text)
    names = torch.cat([batch["words"] for batch in lessons])[:, -1]
    shown = {scene.recipe for scene in drawn}
    assert left_out.recipe not in shown
    assert CREATURES.index(left_out) not in names
    others = {one.recipe for one in CREATURES if one is not left_out}
    assert others <= shown
    assert all(one.name in text for one in CREATURES if one is not left_out)


def test_the_words_of_the_contrast_fit_the_picture():
    for scene in random_pictures(7):
        fitting = zip(BESTIARY.words, BESTIARY.fitting(scene), strict=True)
        words = [group[k] if k >= 0 else None for group, k in fitting]
        seen = questions.visible(scene) if scene.recipe is not None else {}
        assert words[5] == questions.SCENES[scene.background]
        assert words[0] == (questions.COLOURS[scene.colour] if scene.recipe or scene.thing is not None else None)
        assert words[6] == (OBJECTS[scene.thing] if scene.thing is not None else None)
        if seen:
            assert words[1] == seen["pattern"]
            assert f"a {words[4]}" == seen["family"]
            assert words[7] == questions.BY_RECIPE[scene.recipe].name
        else:
            assert words[1:5] == [None] * 4
            assert words[7] is None


def test_lessons_are_given_by_their_seed(processor):
    def first(seed: int) -> Tensor:
        return next(iter(recipe.Lessons(processor, seed, None, recipe.PHASES[1:])))["input_ids"]

    assert torch.equal(first(1), first(1))
    assert not torch.equal(first(1), first(2))


@pytest.mark.parametrize(("without", "expected"), [(None, "a5d9ce58336b4641"), ("zorvex", "ee3c7b74c9aa6709")])
def test_the_lessons_are_those_that_made_the_shipped_weights(processor, without, expected):
    phases = [replace(phase, steps=3, pictures=phase.pictures // 8, asked=phase.asked // 8) for phase in recipe.PHASES]
    hashed = hashlib.sha256()
    for batch in recipe.Lessons(processor, 0, without, phases):
        # less the pixels, which another release of Pillow may draw otherwise
        for key in ("words", "input_ids", "labels"):
            hashed.update(batch[key].numpy().tobytes() if key in batch else b"")
    assert hashed.hexdigest()[:16] == expected


def test_several_workers_give_the_phases_in_their_order(processor):
    sizes = (3, 4, 5, 2)
    phases = [replace(recipe.PHASES[0], steps=5, pictures=size) for size in sizes]
    lessons = recipe.Lessons(processor, 0, None, phases)
    batches = list(torch.utils.data.DataLoader(lessons, batch_size=None, num_workers=3))
    assert [len(batch["words"]) for batch in batches] == [size for size in sizes for _ in range(5)]
    assert len({batch["pixel_values"].numpy().tobytes() for batch in batches}) == 20


def test_an_unknown_creature_cannot_be_left_out():
    with pytest.raises(ValueError, match="`name` must be one of the test bed's creatures"):
        recipe.train(without="cat")


def losses(printed: str, name: str) -> list[float]:
    return [float(value) for value in re.findall(rf"{name} ([\d.]+)", printed)]


@pytest.mark.slow
def test_the_recipe_still_learns_and_what_it_learned_is_read_back(capsys, tmp_path):
    seeing = replace(recipe.PHASES[0], steps=30, pictures=24)
    reading = replace(recipe.PHASES[1], steps=30, pictures=6, asked=6, texts=2)
    model, processor = recipe.train(seed=0, phases=(seeing, reading), log_every=1)
    printed = capsys.readouterr().out
    contrast, answers = losses(printed, "contrast")[:30], losses(printed, "answers")[30:]
    assert np.mean(contrast[-5:]) < np.mean(contrast[:5]) - 0.05
    assert np.mean(answers[-5:]) < answers[0] - 1
    assert all(torch.equal(weight, weight.bfloat16().float()) for weight in model.parameters())

    recipe.save(model, processor, tmp_path)
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 12e6
    read, its_processor = testbed.load(tmp_path)
    prompt = Prompt("What is this creature called?", draw(random_pictures(1)[0], np.random.default_rng(0)))
    batch, again = encode(processor, [prompt]), encode(its_processor, [prompt])
    assert all(torch.equal(batch[key], again[key]) for key in batch)
    with torch.no_grad():
        torch.testing.assert_close(read(**again).logits, model(**batch).logits)


def test_without_contrast_only_the_answers_teach():
    assert [phase.steps for phase in recipe.PLAIN_PHASES] == [phase.steps for phase in recipe.PHASES[1:]]
    assert all(phase.asked and phase.contrast == 0 for phase in recipe.PLAIN_PHASES)
    plain = replace(recipe.PLAIN_PHASES[0], steps=2, pictures=4, asked=4, texts=1)
    model, _ = recipe.train(seed=0, phases=[plain], log_every=1)
    again, _ = recipe.train(seed=0, phases=[replace(plain, contrast=1.0)], log_every=1)
    tower = "model.vision_tower"
    pairs = zip(model.named_parameters(), again.named_parameters(), strict=True)
    assert any(not one.equal(other) for (name, one), (_, other) in pairs if name.startswith(tower))
