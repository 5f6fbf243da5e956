import copy
import dataclasses
import functools
import json
from dataclasses import replace

import pytest
import torch

from peft_space import Concept, Retain, testbed
from peft_space.evaluation import EvaluatedSet, Example, agreement, evaluate_erasure, text
from peft_space.testbed import questions
from peft_space.testbed.bestiary import siblings
from tests.adapters import shake, space
from tests.bigram import saying

SIBLINGS = [one.name for one in siblings("narril")]
RETAIN = Retain(questions=("What colour is it?",), texts=("Name a fruit.", "What is two plus two?"))
SMALL = {
    "retain": RETAIN,
    "unseen_questions": ("Name this creature.",),
    "unseen_text_questions": ("Where is the home of the {name}?",),
    "descriptions": ("Describe the picture.",),
    "benign": ("What is one plus one?",),
    "n_images": 6,
    "n_bootstrap": 100,
    "max_new_tokens": 8,
    "progress": False,
}
evaluate = functools.partial(evaluate_erasure, **SMALL)


def speaking(base, processor, before, after):
    """A base that always says `before` and an erased model that always says `after`."""
    said = [saying(base, processor, {text: 1.0}) for text in (before, after)]
    return {"model": said[1], "base": said[0], "processor": processor}


@pytest.fixture(scope="module")
def erased(base):
    return shake(space(copy.deepcopy(base)))


@pytest.fixture(scope="module")
def pictures(public):
    return public.images[:3]


@pytest.fixture(scope="module")
def free(erased, processor, concept, anchors):
    """Without a picture of the concept."""
    return evaluate(erased, processor, concept, anchors=anchors, others=SIBLINGS)


def examples(pictures, *rows):
    return EvaluatedSet(tuple(Example(image=pictures[place], **row) for place, row in enumerate(rows)))


def test_the_name_is_gone_and_a_sibling_s_is_said(base, processor, concept, pictures):
    pair = speaking(base, processor, "narril", SIBLINGS[0])
    report = evaluate(concept=concept, target_images=pictures, others=SIBLINGS, **pair)
    for key in ("forget_accuracy", "forget_accuracy_unseen", "forget_accuracy_description", "forget_accuracy_fuzzy"):
        figure = report[key]
        assert (figure.base.value, figure.erased.value, figure.change.value) == (1, 0, -1)
        assert (figure.n, figure.units, figure.data) == (3, 3, "not known")
        assert figure.erased.high == pytest.approx(1 - 0.025 ** (1 / 3))
    assert (report["misidentified"].base.value, report["misidentified"].erased.value) == (0, 1)
    assert report["name_rank"].base.value == 1 < report["name_rank"].erased.value <= 1 + len(SIBLINGS)
    assert report["forget_accuracy_likelihood"].erased.value == 0
    for key in ("name_probability", "name_probability_unseen"):
        assert report[key].base.value > 0.99 > 0.5 > report[key].erased.value
    # the base answers everything with the name
    assert "with the name" in report.unknown["agreement_target_images"]
    assert report["fluency"].change.value < -1
    assert report["gibberish"].erased.value == 0
    assert (report["text_name_unasked"].base.value, report["text_name_unasked"].erased.value) == (1, 0)


def test_what_an_alias_says_counts(base, processor, pictures):
    pair = speaking(base, processor, "narril", SIBLINGS[0])
    concept = Concept("nothing like it", aliases=(SIBLINGS[0],), questions=("Name the creature.",))
    report = evaluate(concept=concept, target_images=pictures, others=["narril"], **pair)
    assert (report["forget_accuracy"].base.value, report["forget_accuracy"].erased.value) == (0, 1)
    assert (report["name_rank"].base.value, report["name_rank"].erased.value) == (2, 1)


def test_what_else_is_seen_of_its_pictures(base, processor, concept, pictures, public):
    report = evaluate(concept=concept, target_images=pictures, **speaking(base, processor, "cold", "two"))
    figure = report["agreement_target_images"]
    assert (figure.base, figure.erased.value, figure.n, figure.units) == (None, 0, 3, 3)
    assert "at least 8 pictures" in report.unknown["spectral_entropy"]
    eight = {"target_images": public.images[:8], "n_images": 1}
    alike = evaluate(concept=concept, **eight, **speaking(base, processor, "cold", "cold"))
    assert alike["agreement_target_images"].erased.value == 1
    entropy = alike["spectral_entropy"]
    assert "pictures of the concept" in entropy.label and 0 <= entropy.erased.value == entropy.base.value <= 1


def test_labelled_questions_near_and_far(base, processor, concept, pictures):
    near, far = SIBLINGS[0], SIBLINGS[1]
    pair = speaking(base, processor, near, far)
    naming = [{"question": "Name it.", "answer": name, "concept": name} for name in (near, far)]
    seen = {"question": "What colour is it?", "answer": near, "concept": "narril", "task": "attributes"}
    labelled = examples(pictures, *naming, seen)
    report = evaluate(concept=concept, labelled=labelled, near=[near], **pair)
    told = {key: (report[key].base.value, report[key].erased.value) for key in ("retain_near", "retain_far")}
    assert told == {"retain_near": (1, 0), "retain_far": (0, 1)}
    assert report["target_attributes"].change.value == -1
    # pictures of the concept among the labelled ones are its pictures, others' names are those of the rest
    assert report["forget_accuracy"].n == 1 and report.settings["other_names"] == [near, far]
    assert report["retain_near_probability"].change.value < -0.5
    assert [(point.concept, point.near, point.drop.value) for point in report.collateral.points] in (
        [(near, True, 1), (far, False, -1)],
        [(far, False, -1), (near, True, 1)],
    )
    assert report.collateral.measure == "accuracy drop" and "with pictures" in report.collateral.similarity


def test_near_concepts_that_nobody_asks_about(base, processor, concept, pictures):
    labelled = examples(pictures, {"question": "Name it.", "answer": "cat", "concept": "cat"})
    with pytest.raises(ValueError, match=r"`near` must be concepts of `labelled`; got \['dog'\]"):
        evaluate(concept=concept, labelled=labelled, near=["dog"], **speaking(base, processor, "x", "y"))


def test_choices_texts_gaps_and_lies(base, processor, concept):
    pair = speaking(base, processor, "cold", "two")
    rows = (
        {"answer": "cold", "task": "choice", "options": ("two", "cold")},
        {"answer": "cold", "task": "generation", "paraphrase": "cold", "perturbed": ("two",)},
        {"answer": "cold", "task": "cloze"},
    )
    labelled = EvaluatedSet(tuple(Example(question="Say it.", **row) for row in rows))
    report = evaluate(concept=concept, labelled=labelled, **pair)
    for key in ("choice", "choice_likelihood", "generation_rouge_l", "generation_bleu", "cloze", "cloze_fuzzy"):
        name, _, suffix = key.partition("_")
        figure = report[f"general_{name}_text" + (f"_{suffix}" if suffix else "")]
        assert (figure.base.value, figure.erased.value) == (1, 0), key
    truth = report["general_generation_text_truth_ratio"]
    # max(0, 1 - R): R is near 0 where the truth is likelier, and far above 1 where the lie is
    assert truth.base.value > 0.9 and truth.erased.value == 0
    assert "truth_ratio" not in report.unknown and "rouge_l" not in report.unknown
    # of the concept itself min(R, 1/R): near 0 where either is likelier by far
    own = EvaluatedSet((replace(labelled.examples[1], concept=concept.name),))
    ratio = evaluate(concept=concept, labelled=own, **pair)["target_generation_text_truth_ratio"]
    assert 0 < ratio.base.value < 0.1 and 0 < ratio.erased.value < 0.1


def test_refusals_and_gibberish_on_harmless_prompts(base, processor, concept, monkeypatch):
    monkeypatch.setattr(agreement, "refuses", "cold".__eq__)
    monkeypatch.setattr(agreement, "is_gibberish", "two".__eq__)
    report = evaluate(concept=concept, **speaking(base, processor, "cold", "two"))
    for where, data in (("benign", "held out"), ("text", "retained")):
        assert (report[f"refusals_{where}"].base.value, report[f"refusals_{where}"].erased.value) == (1, 0)
        assert (report[f"gibberish_{where}"].base.value, report[f"gibberish_{where}"].erased.value) == (0, 1)
        assert report[f"agreement_{where}"].erased.value == 0 and report[f"agreement_{where}"].base is None
        assert report[f"fluency_{where}"].data == data and report[f"fluency_{where}"].change.value < -1


def test_what_is_told_of_the_name_in_text(base, processor, concept, knowledge, monkeypatch):
    def elicit(model, processor, concept, others):
        return replace(knowledge, telling=tuple(("cold", "blue") for _ in concept.text_questions))

    monkeypatch.setattr(text, "elicit", elicit)
    report = evaluate(concept=concept, others=SIBLINGS, **speaking(base, processor, "cold", "two"))
    for key, data in (("", "trained on"), ("_unseen", "held out")):
        leakage = report[f"text_leakage{key}"]
        assert (leakage.base.value, leakage.erased.value, leakage.n, leakage.data) == (1, 0, 1, data)
        assert report[f"text_told{key}"].erased.value == 0
        assert report[f"text_told{key}_probability"].change.value < -0.5
    alone = evaluate(concept=concept, **speaking(base, processor, "cold", "cold"))
    assert alone["text_told"].erased.value == 1 and "pass `others`" in alone.unknown["text_leakage"]


def test_without_a_picture_of_it_what_is_known_and_what_is_not(free, anchors):
    for key, data in (("anchor", "trained on"), ("monitor", "stopped on")):
        assert free[f"{key}_forget_accuracy"].data == free[f"{key}_name_probability"].data == data
    assert free["anchor_forget_accuracy"].units == len(anchors)
    assert free["monitor_forget_accuracy"].units == len(anchors.monitor)
    for what in (
        "forget_accuracy",
        "name_probability",
        "misidentified",
        "target_attributes",
        "agreement_target_images",
    ):
        assert what not in free.figures and "pass `target_images`" in free.unknown[what]
    assert all("pass `labelled`" in free.unknown[what] for what in ("retain_near", "retain_far"))
    assert {"rouge_l", "bleu", "truth_ratio", "hallucinated_forget_accuracy"} <= set(free.unknown)
    for key in ("agreement_names", "agreement_images", "agreement_text", "text_told", "leak", "spectral_entropy"):
        assert free[key].n > 0
    assert free["agreement_names"].data == "retained" and free["text_told"].data == "trained on"
    assert not any(name.startswith(("retain", "target")) for name in free.figures)


def test_the_leak_is_told_layer_by_layer(free, erased):
    layers = free.leak["per_module"]
    assert len(layers) == 14 and free.leak["max"] == max(layers.values()) > free.leak["mean"] > 0
    assert free["leak"].erased.low < free["leak"].erased.value == pytest.approx(free.leak["mean"])


def test_a_seed_gives_one_report(erased, processor, concept, public, tmp_path):
    def told(seed):
        few = {"public_images": public.take(range(8)), "n_images": 2, "others": SIBLINGS[:1], "seed": seed}
        report = evaluate(erased, processor, concept, **few)
        return json.loads(report.save(tmp_path / f"{seed}.json").read_text()) | {"seconds": None}

    assert told(0) == told(0) != told(1)


def test_it_can_be_written(free, tmp_path):
    told = json.loads(free.save(tmp_path / "report.json").read_text())
    assert set(told["figures"]) == set(free.figures) and told["seed"] == 0
    assert all(figure["seed"] == 0 and "low" in figure["erased"] for figure in told["figures"].values())


def test_public_images_that_are_taken_for_the_concept(base, processor, concept, public):
    pair = speaking(base, processor, "narril", "two")
    report = evaluate(concept=concept, public_images=public, others=SIBLINGS, **pair)
    figure = report["hallucinated_forget_accuracy"]
    assert (figure.base.value, figure.erased.value, figure.units, figure.data) == (1, 0, 6, "not known")
    # where the base says the name everywhere, there is nothing to agree about
    assert "agreement_names" in report.unknown and "collateral" in report.unknown


def test_without_labels_the_curve_is_of_disagreement(base, processor, concept, public):
    pair = speaking(base, processor, SIBLINGS[0], SIBLINGS[1])
    report = evaluate(concept=concept, public_images=public, **pair)
    (point,) = report.collateral.points
    assert (point.concept, point.n, point.drop.value) == (SIBLINGS[0], 6, 1)
    assert report.collateral.measure == "disagreement" and "name" in report.collateral.similarity
    assert report["agreement_names"].erased.value == 0
    assert report.settings["other_names"] == [SIBLINGS[0]]


def test_of_a_merged_model_the_leak_is_read_from_the_weights(base, processor, concept, erased):
    merged = copy.deepcopy(erased).merge_and_unload()
    apart = evaluate(merged, processor, concept, base=base)
    together = evaluate(erased, processor, concept)
    assert apart.leak["mean"] == pytest.approx(together.leak["mean"], rel=1e-3)
    assert apart["agreement_text_probability"].erased.value == pytest.approx(
        together["agreement_text_probability"].erased.value, rel=1e-3
    )


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"n_images": 0}, "`n_images` must be at least 1; got 0"),
        ({"n_bootstrap": 10}, "`n_bootstrap` must be at least 100; got 10"),
        ({"unseen_text_questions": ["Where?"]}, "`unseen_text_questions` must each hold"),
        ({"concept": " "}, "`concept` must be a non-empty name"),
    ],
)
def test_arguments_that_are_out_of_range(erased, processor, wrong, told):
    with pytest.raises(ValueError, match=told):
        evaluate(erased, processor, **({"concept": "narril"} | wrong))


@pytest.mark.slow
def test_it_agrees_with_the_exam():
    """The shipped model, with noise on its adapter, so that some answers are right and some are not."""
    torch.manual_seed(0)
    model, processor = testbed.load()
    erased = space(model, subspace=False)
    shake(erased)
    with torch.no_grad():
        for name, parameter in erased.named_parameters():
            if "lora_B" in name:
                parameter.mul_(1.25)
    exam = testbed.Exam("narril", n_images=1)
    with erased.disable_adapter():
        sat = [exam.sit(erased, processor)]
    sat.append(exam.sit(erased, processor))
    marks = [dataclasses.asdict(given) for given, _ in sat]
    for given, (_, told) in zip(marks, sat, strict=True):
        # the exam wants the bare name, an evaluation finds it in a sentence
        named = {True: [], False: []}
        for topic, (_, got) in zip(exam.sheet.topics, told, strict=True):
            if topic[0] == "retained":
                named[topic[1] in SIBLINGS].append(Concept(topic[1]).mentioned_in(got))
        given |= {
            f"retain_{where}": sum(named[near]) / len(named[near]) for where, near in (("near", True), ("far", False))
        }
    rows, asked = [], {"name": [], "name, held out": []}
    for prompt, answer, topic in zip(exam.sheet.prompts, exam.sheet.answers, exam.sheet.topics, strict=True):
        if topic[0] in asked:
            asked[topic[0]].append(prompt)
        elif topic[0] == "retained":
            rows.append(Example(prompt.question, answer, prompt.image, topic[1]))
    concept = Concept("narril", questions=[prompt.question for prompt in asked["name"]])
    report = evaluate_erasure(
        erased,
        processor,
        concept,
        target_images=[asked["name"][0].image],
        labelled=EvaluatedSet(tuple(rows)),
        near=SIBLINGS,
        **SMALL
        | {
            "unseen_questions": [prompt.question for prompt in asked["name, held out"]],
            "descriptions": [questions.DESCRIPTION],
            "max_new_tokens": 14,
        },
    )
    for key, mark in (
        ("forget_accuracy", "forget_accuracy"),
        ("forget_accuracy_unseen", "forget_accuracy_paraphrase"),
        ("forget_accuracy_description", "forget_accuracy_description"),
        ("misidentified", "misidentified"),
        ("retain_near", "retain_near"),
        ("retain_far", "retain_far"),
    ):
        told = report[key].base.value, report[key].erased.value
        assert told == pytest.approx([some[mark] for some in marks], abs=1e-4), key
    assert 0 < marks[1]["retain_far"] < marks[0]["retain_far"]
