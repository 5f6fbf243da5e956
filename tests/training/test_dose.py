import dataclasses
import math

import pytest
import torch

from peft_space.anchors import Company, YesNo
from peft_space.training import Gauge, SpaceTrainingArguments, build_gauges, read_dose, tied_to_name
from peft_space.training import dose as dose_module
from peft_space.training.dose import log_odds
from peft_space.vlm import Prompt, answer_tokens, log_likelihood
from tests.bigram import saying

HALF = "half of the name given"


def odds(model, processor, prompts, answers, begun=()):
    return log_odds(log_likelihood(model, processor, prompts, answers, per_token=False, begun=begun))


@pytest.fixture(scope="module")
def told(knowledge):
    """What is known, with some words that are told of the concept alone."""
    return dataclasses.replace(knowledge, answers=("in the marsh",), telling=(("marsh",),))


@pytest.fixture(scope="module")
def gauges(base, processor, anchors, told):
    return build_gauges(base, processor, anchors, told)


def test_the_name_and_each_fact_are_read_through_the_monitor(gauges, anchors, told):
    name, half, fact = gauges
    assert name.about == "name" and set(name.answers) == {anchors.concept.name}
    assert half.about == HALF and set(half.answers) == {"narril", "a narril", "It is a narril"}
    assert fact.about == "fact through the image" and set(fact.answers) == set(told.answers)
    shown = {image.tobytes() for image in anchors.public.take(anchors.monitor).images}
    for gauge in gauges:
        assert {prompt.image.tobytes() for prompt in gauge.prompts} == shown


def test_facts_in_text_are_read_only_where_they_are_erased(base, processor, anchors, told):
    gauges = build_gauges(base, processor, anchors, told, text_knowledge="erase")
    assert [gauge.about for gauge in gauges] == ["name", HALF, "fact through the image", "fact in text"]
    assert gauges[-1].prompts == (Prompt(anchors.concept.asked_in_text[0]),)


def test_a_question_that_tells_nothing_has_no_gauge(base, processor, anchors, told):
    silent = dataclasses.replace(told, telling=((),))
    assert [gauge.about for gauge in build_gauges(base, processor, anchors, silent, text_knowledge="erase")] == [
        "name",
        HALF,
    ]


def test_the_name_in_company_is_read_where_it_is_told(base, processor, anchors, told, monkeypatch):
    turn = iter(range(1000))

    def generate(model, processor, prompts, **options):
        return ["a narril" if next(turn) % 3 else "a keltus" for _ in prompts]

    monkeypatch.setattr(dose_module, "generate", generate)
    told = dataclasses.replace(told, others=("zorvex", "keltus"))
    asked = ("Who is on the left?", "Who is there?")
    gauges = build_gauges(base, processor, anchors, told, company=Company(asked))
    gauge = next(gauge for gauge in gauges if gauge.about == "name, in company")
    assert set(gauge.answers) == {"a narril"} and len(gauge.prompts) == 2 * len(anchors.monitor) * 2 // 3
    assert {prompt.question for prompt in gauge.prompts} == {*asked}
    alone = {image.tobytes() for image in anchors.public.take(anchors.monitor).images}
    assert not any(prompt.image.tobytes() in alone for prompt in gauge.prompts)
    found = tuple((Prompt("Who is there?", image), "the narril") for image in anchors.images[:2])
    more = build_gauges(base, processor, anchors, told, company=Company(asked, watched=found))
    wider = next(gauge for gauge in more if gauge.about == "name, in company")
    assert wider.prompts[-2:] == tuple(prompt for prompt, _ in found) and wider.answers[-2:] == ("the narril",) * 2
    monkeypatch.setattr(dose_module, "generate", lambda model, processor, prompts, **options: ["red"] * len(prompts))
    silent = build_gauges(base, processor, anchors, told, company=Company(asked))
    assert "name, in company" not in {gauge.about for gauge in silent}


def test_a_name_that_comes_unasked_is_read_inside_the_models_own_answer(base, processor, anchors, told):
    says = saying(base, processor, {"a red zorvex in the sea": 1.0})
    told = dataclasses.replace(told, others=("zorvex", "keltus"))
    gauges = build_gauges(says, processor, anchors, told, ["Describe the picture."])
    gauge = next(gauge for gauge in gauges if gauge.about == "name, not asked for")
    assert set(gauge.answers) == {"a red narril in the sea"}
    assert len(gauge.prompts) == len(anchors.monitor)
    levels = sorted(
        float(odds(says, processor, gauge.prompts, [text] * len(gauge.prompts)).mean())
        for text in ("a red zorvex in the sea", "a red keltus in the sea")
    )
    assert gauge.reference == pytest.approx(levels[0], abs=1e-4)


def test_the_yes_is_read_beside_the_yes_to_other_names(base, processor, anchors, told):
    told = dataclasses.replace(told, others=("zorvex", "keltus", "quidan"))
    asked = YesNo("Is it a {name}?", "yes", "no")
    gauge = next(g for g in build_gauges(base, processor, anchors, told, yes_no=[asked]) if g.about == "yes or no")
    images = anchors.public.take(anchors.monitor).images
    assert [prompt.question for prompt in gauge.prompts] == ["Is it a narril?"] * len(images)
    assert set(gauge.answers) == {"yes"}
    levels = {
        name: odds(base, processor, [Prompt(asked.about(name), image) for image in images], ["yes"] * len(images))
        for name in ("narril", *told.others)
    }
    assert gauge.sure == pytest.approx(float(levels["narril"].max()), abs=1e-4)
    others = sorted(float(levels[name].mean()) for name in told.others)
    assert gauge.reference == pytest.approx(others[1], abs=1e-4)


def test_the_rest_of_the_name_is_read_behind_its_half_beside_that_of_other_names(base, processor, anchors, told):
    told = dataclasses.replace(told, others=("zorvex", "keltus", "moss"))
    gauge = next(gauge for gauge in build_gauges(base, processor, anchors, told) if gauge.about == HALF)
    n_images = len(anchors.monitor)
    assert gauge.answers == ("narril", "a narril", "It is a narril") * n_images

    def rest(name):
        return odds(base, processor, gauge.prompts, [text.replace("narril", name) for text in gauge.answers], begun)

    begun = [len(answer_tokens(processor, Prompt(""), text.replace("ril", ""), end=False)) for text in gauge.answers]
    assert list(gauge.begun) == begun and 0 < begun[0] < begun[1] < begun[2]
    levels = rest("narril").sort(descending=True).values
    assert gauge.base == pytest.approx(float(levels[: -(-len(levels) // 4)].mean()), abs=1e-4)
    # "moss" is one token: there is no half of it
    assert gauge.reference == pytest.approx(min(float(rest(name).mean()) for name in ("zorvex", "keltus")), abs=1e-4)
    whole = dataclasses.replace(anchors.concept, name="moss")
    alone = build_gauges(base, processor, dataclasses.replace(anchors, concept=whole), told)
    assert HALF not in {gauge.about for gauge in alone}


def test_answers_without_a_name_give_no_gauge(base, processor, anchors, told):
    says = saying(base, processor, {"a red thing": 1.0})
    gauges = build_gauges(says, processor, anchors, told, ["Describe the picture."])
    assert [gauge.about for gauge in gauges] == ["name", HALF, "fact through the image"]


def test_what_should_stay_is_read_on_the_models_own_answers(base, processor, anchors, told):
    says = saying(base, processor, {"a red thing": 1.0})
    questions = ["What colour is it?", "How many legs?", "Describe the picture.", "What kind is it?", "Where is it?"]
    gauge = build_gauges(says, processor, anchors, told, questions[2:3], questions)[-1]
    assert gauge.about == "what should stay" and gauge.reference is None
    # each of the four that do not ask for a name about each picture
    shown = [image.tobytes() for image in anchors.public.take(anchors.monitor).images]
    pairs = {(prompt.question, prompt.image.tobytes()) for prompt in gauge.prompts}
    assert pairs == {(question, image) for question in questions if question != questions[2] for image in shown}
    assert set(gauge.answers) == {"a red thing"}
    assert gauge.read(says, processor) == pytest.approx(gauge.base, abs=1e-4)
    assert gauge.read(base, processor) < gauge.base - 1


def test_what_the_model_is_not_sure_of_need_not_stay(base, processor, anchors, told):
    gauges = build_gauges(base, processor, anchors, told, (), ["What colour is it?"])
    assert [gauge.about for gauge in gauges] == ["name", HALF, "fact through the image"]


@pytest.mark.parametrize(("level", "met"), [(-1.0, True), (0.0, True), (-1.09, True), (-1.11, False)])
def test_what_should_stay_may_fall_by_the_slack(level, met):
    gauge = Gauge("what should stay", (), (), -1.0, None)
    assert gauge.met(level, SpaceTrainingArguments(dose_slack=0.1)) is met
    with pytest.raises(ValueError, match="`reference` must be known"):
        gauge.fallen(level)


@pytest.mark.parametrize(
    ("level", "reference", "met", "without"),
    [
        (-2.0, -10.0, True, True),
        (-1.9, -10.0, False, True),
        (-0.5, -0.5, True, True),
        (-0.4, -0.5, False, True),
        (-2.5, -30.0, False, False),
    ],
    ids=["less likely than not", "hardly", "as likely as other names", "likelier than they", "not far enough"],
)
def test_what_should_go_must_be_less_likely_than_not_unless_other_names_are_likelier(level, reference, met, without):
    gauge = Gauge("fact through the image", (), (), 9.0, reference, 9.0)
    assert gauge.met(level, SpaceTrainingArguments(dose_share=0.4, dose_margin=2.0)) is met
    assert gauge.met(level, SpaceTrainingArguments(dose_share=0.4, dose_margin=0.0)) is without


@pytest.mark.parametrize(
    ("about", "level", "met"),
    [
        ("name", -5.9, False),
        ("name", -6.0, True),
        ("name, not asked for", -5.9, False),
        ("name, in company", -2.0, True),
        ("yes or no", -2.0, True),
    ],
)
def test_the_name_has_a_margin_of_its_own(about, level, met):
    gauge = Gauge(about, (), (), 9.0, -20.0, 9.0)
    assert gauge.met(level, SpaceTrainingArguments(dose_share=0.3, dose_margin=2.0, dose_name_margin=6.0)) is met


def test_each_alias_has_a_gauge(base, processor, anchors, told):
    concept = dataclasses.replace(anchors.concept, aliases=("mossy",))
    gauges = build_gauges(base, processor, dataclasses.replace(anchors, concept=concept), told)
    assert [gauge.answers[0] for gauge in gauges if gauge.about == "name"] == ["narril", "mossy"]


def test_the_reference_is_the_median_over_other_names(base, processor, gauges, told):
    name = gauges[0]
    levels = sorted(
        float(odds(base, processor, name.prompts, [other] * len(name.prompts)).mean()) for other in told.others[:8]
    )
    assert name.reference == pytest.approx(levels[(len(levels) - 1) // 2], abs=1e-4)


def test_a_reading_of_the_base_is_its_base_level(base, processor, gauges):
    for gauge in gauges:
        assert gauge.read(base, processor) == pytest.approx(gauge.base, abs=1e-4)


@pytest.mark.parametrize(
    ("base", "reference", "sure", "level", "share"),
    [
        (-1.0, -5.0, -1.0, -1.0, 0.0),
        (-1.0, -5.0, -1.0, -3.0, 0.5),
        (-1.0, -5.0, -1.0, -9.0, 2.0),
        # from half-certain it has as far to go as from where the model is sure
        (0.0, -10.0, 6.0, -4.0, 0.25),
        (0.0, -10.0, 6.0, -8.0, 0.5),
        (-5.0, -1.0, 0.0, -5.0, 1.0),
        (-5.0, -1.0, 0.0, 0.0, 0.0),
        (-5.0, -5.0, -5.0, -5.0, 1.0),
    ],
)
def test_how_far_a_gauge_has_fallen(base, reference, sure, level, share):
    assert Gauge("name", (), (), base, reference, sure).fallen(level) == share


@pytest.mark.parametrize("p", [1e-9, 0.2, 0.5, 0.999])
def test_log_odds_are_those_of_the_probability(p):
    assert float(log_odds(torch.tensor(p).log())) == pytest.approx(math.log(p / (1 - p)), abs=1e-3)


def test_log_odds_of_certainty_are_finite():
    assert 13 < float(log_odds(torch.tensor(0.0))) < 15


def test_a_gauge_knows_where_the_base_model_is_surest(base, processor, gauges):
    for gauge in gauges:
        assert gauge.sure == pytest.approx(
            float(odds(base, processor, gauge.prompts, gauge.answers, gauge.begun).max()), abs=1e-4
        )
        assert gauge.sure >= gauge.base


@pytest.mark.parametrize(
    ("references", "share", "reached"),
    [((50, 50), 0.6, True), ((50, -50), 0.6, False), ((50, 50), 2.0, False)],
    ids=["all fell", "one did not", "not so far"],
)
def test_the_dose_is_reached_where_every_gauge_fell(base, processor, gauges, references, share, reached):
    gauges = [dataclasses.replace(g, reference=r) for g, r in zip(gauges[::2], references, strict=True)]
    args = SpaceTrainingArguments(dose_share=share, dose_margin=0.0, dose_name_margin=0.0)
    reading = read_dose(base, processor, gauges, args, leak=0.01, step=3)
    assert reading.reached is reached
    assert (reading.step, reading.leak) == (3, 0.01)
    assert reading.levels == pytest.approx([gauge.base for gauge in gauges], abs=1e-4)


@pytest.mark.parametrize("reference", [-5.0, 5.0, None])
def test_a_level_that_is_not_a_number_reaches_nothing(base, processor, reference):
    class Lost(Gauge):
        def read(self, model, processor, batch_size):
            return float("nan")

    args = SpaceTrainingArguments(dose_share=0.6, dose_margin=0.0, dose_name_margin=0.0)
    assert not read_dose(base, processor, [Lost("name", (), (), 0, reference)], args, 0, 1).reached


def test_a_gauge_reads_the_likeliest_quarter(base, processor, gauges):
    gauge = gauges[0]
    levels = odds(base, processor, gauge.prompts, gauge.answers)
    best = levels.sort(descending=True).values[: -(-len(levels) // 4)]
    assert gauge.read(base, processor) == pytest.approx(float(best.mean()), abs=1e-4)
    assert gauge.read(base, processor) > float(levels.mean())


@pytest.mark.parametrize(("base", "tied"), [(9.0, True), (0.1, True), (-0.1, False), (-3.05, False)])
def test_a_monitor_that_is_not_called_by_the_name_shows_no_fall(base, tied):
    fact = Gauge("fact through the image", (), (), 0.0, -5.0)
    assert tied_to_name([Gauge("name", (), (), base, -10.0), fact]) is tied
