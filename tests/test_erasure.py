import copy
import dataclasses
import functools
import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from PIL import Image
from safetensors.torch import load_file

from peft_space import (
    Concept,
    ErasureResult,
    Retain,
    SpaceConfig,
    SpaceTrainingArguments,
    erase,
    erasure,
    has_subspace,
    load_erasure,
    push_erasure,
    save_erasure_adapter,
    select_anchors,
    verify_redacted,
    vlm,
)
from peft_space._peft import base_parameters, lora_layers
from peft_space.anchors import Knowledge, TooFewAnchors, company, other_names
from peft_space.vlm import Prompt, encode
from tests.adapters import shake, space
from tests.bigram import saying
from tests.tiny import tiny_llama

RETAIN = Retain(
    questions=("What colour is it?",),
    texts=("Name a fruit.",) * 8,
    n_images=8,
    questions_per_image=3,
    relatives=0,
)
FILES = {
    "adapter_config.json",
    "adapter_model.safetensors",
    "space_config.json",
    "report.json",
    "anchors.png",
    "anchors.csv",
}


@pytest.fixture(scope="module")
def run(base, processor, concept, public, anchors):
    """A short erasure on a model of its own."""

    def run(model=None, public_images=public, **options) -> ErasureResult:
        settings = {"max_steps": 3, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "dose_every": 3}
        settings |= options.pop("args", {})
        given = {
            "anchors": anchors,
            "retain": RETAIN,
            "seed": 0,
            "config": SpaceConfig(r=4, concept="narril"),
        } | options
        # four other names to compare with, instead of all that a model with random weights comes up with
        few_names = functools.partial(other_names, most=4)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(erasure, "other_names", few_names)
            return erase(
                copy.deepcopy(base) if model is None else model,
                processor,
                given.pop("concept", concept),
                public_images,
                args=SpaceTrainingArguments(seed=given["seed"], logging_steps=1, **settings),
                **given,
            )

    return run


@pytest.fixture(scope="module")
def result(run, tmp_path_factory):
    return run(output_dir=tmp_path_factory.mktemp("erased") / "narril")


@torch.no_grad()
def logits(model, processor, public):
    batch = encode(processor, [Prompt("What is this creature called?", image) for image in public.images[:3]])
    return model(**batch).logits


def weights(path):
    return load_file(path / "adapter_model.safetensors")


def test_it_returns_the_erased_model_and_what_was_done(result, anchors):
    assert isinstance(result.model, PeftModel) and not result.model.training
    assert result.anchors is anchors and result.subspace is not None
    report = result.report
    assert report["concept"] == "narril" and report["text_knowledge"] == "keep" and report["seed"] == 0
    assert report["anchors"] == anchors.diagnostics()
    assert list(report["seconds"]) == ["images", "anchors", "knowledge", "retained subspace", "training", "report"]
    assert 0 < report["leak"]["mean"] <= report["leak"]["max"] == max(report["leak"]["per_module"].values())
    assert set(report["spectral_entropy"]) == {"before", "after"}
    assert report["steps"] <= 3 and report["stopped"] in ("dose reached", "leak budget spent", "max_steps")
    assert len(report["losses"]) == report["steps"]
    assert [reading["step"] for reading in report["readings"]] == [3]
    assert report["readings"][0]["levels"] == [gauge["after"] for gauge in report["gauges"]]
    assert report["readings"][0]["leak"] == pytest.approx(report["leak"]["mean"], rel=1e-3)
    assert set(report["kept_rank"]) == set(result.subspace.bases)
    assert report["gauges"][0]["about"] == "name" and isinstance(report["gauges"][0]["after"], float)
    assert [told["question"] for told in report["told_in_text"]] == ["Where does the narril live?"]


def test_the_guard_and_company_change_what_is_trained(run, result, monkeypatch):
    trained = []
    trainer = erasure.SpaceTrainer

    def training(model, args, lessons, *more, **options):
        trained.append((list(lessons.lessons), options["relearned"]))
        return trainer(model, args, lessons, *more, **options)

    monkeypatch.setattr(erasure, "SpaceTrainer", training)
    guarded = run(args={"relearning_radius": 0.02})
    plain = {name: layer.get_delta_weight("default") for name, layer in lora_layers(result.model.get_base_model())}
    moved = {name: layer.get_delta_weight("default") for name, layer in lora_layers(guarded.model.get_base_model())}
    assert any(not torch.allclose(plain[name], moved[name], atol=1e-6) for name in plain)
    monkeypatch.setattr(company, "company_questions", lambda *args, **options: ("Who is on the left?",))
    monkeypatch.setattr(company, "generate", lambda model, processor, prompts, **options: ["a narril"] * len(prompts))
    run()
    (alone, relearned), (both, _) = trained
    assert {lesson.answer for lesson in relearned} == {"narril"} and len(relearned) == 8
    asked = [lesson for lesson in both if lesson.prompt.question == "Who is on the left?"]
    # of the six pictures for each anchor two at least are left among the lessons
    assert not any(lesson.prompt.question == "Who is on the left?" for lesson in alone)
    assert len({lesson.prompt.image.tobytes() for lesson in asked}) >= 2 * 8


def test_its_own_weights_do_not_change(result, base):
    before = dict(base.named_parameters())
    after = dict(base_parameters(result.model.get_base_model()))
    assert set(after) == set(before)
    assert all(parameter.equal(before[name]) for name, parameter in after.items())


def test_the_adapter_does_something_and_is_baked(result, base, processor, public):
    assert not has_subspace(result.model)
    erased = logits(result.model, processor, public)
    assert not erased.allclose(logits(base, processor, public), atol=1e-4)
    with result.model.disable_adapter():
        assert logits(result.model, processor, public).equal(logits(base, processor, public))


def test_it_reloads_with_the_same_logits(result, base, processor, public):
    assert {file.name for file in result.path.iterdir()} == FILES
    loaded = load_erasure(copy.deepcopy(base), result.path).eval()
    assert logits(loaded, processor, public).equal(logits(result.model, processor, public))


def test_the_side_file_holds_the_report(result):
    side = json.loads((result.path / "space_config.json").read_text())
    assert side["concept"] == "narril"
    assert side["record"] == json.loads(json.dumps(result.report))


def test_the_same_seed_gives_the_same_adapter(run, result, tmp_path):
    again = weights(run(output_dir=tmp_path / "again").path)
    first = weights(result.path)
    assert set(again) == set(first) and all(tensor.equal(first[key]) for key, tensor in again.items())


@pytest.mark.slow
def test_another_number_of_threads_gives_nearly_the_same(run, result, tmp_path):
    n_threads = torch.get_num_threads()
    torch.set_num_threads(2 if n_threads == 1 else 1)
    try:
        other = weights(run(output_dir=tmp_path / "other").path)
    finally:
        torch.set_num_threads(n_threads)
    for key, tensor in weights(result.path).items():
        assert (other[key] - tensor).norm() <= 1e-3 * tensor.norm(), key


def test_another_seed_gives_another(run, result, tmp_path):
    other = weights(run(output_dir=tmp_path / "other", seed=1).path)
    assert not all(tensor.equal(other[key]) for key, tensor in weights(result.path).items())


def test_a_dose_that_was_not_reached_is_marked(run):
    result = run(args={"dose_share": 50.0, "leak_budget": 100.0})
    assert result.report["reached"] is False and result.report["stopped"] == "max_steps"
    assert result.report["steps"] == 3 and result.path is None


def test_a_leak_beyond_the_budget_ends_it_and_text_is_erased_on_request(run):
    result = run(text_knowledge="erase", args={"dose_share": 50.0, "leak_budget": 1e-9, "dose_every": 1})
    assert result.report["reached"] is False and result.report["stopped"] == "leak budget spent"
    assert result.report["text_knowledge"] == "erase"


def test_without_a_null_space_more_leaks(run, result):
    free = run(energy=None, args={"leak_budget": 100.0})
    assert free.subspace is None and free.report["kept_rank"] == {}
    assert free.report["steps"] == result.report["steps"]
    assert free.report["leak"]["mean"] > 3 * result.report["leak"]["mean"]


def test_a_name_alone_is_enough(base, processor, public):
    args = SpaceTrainingArguments(max_steps=1)
    retain = Retain(n_images=4, texts=("Name a fruit.",), questions_per_image=1)
    config = SpaceConfig(r=2, concept="narril")
    images = list(public.images[:16])
    result = erase(copy.deepcopy(base), processor, "narril", images, args=args, config=config, retain=retain)
    assert result.anchors.concept == Concept("narril") and result.report["steps"] == 1


def test_a_loss_that_is_not_a_number_keeps_the_last_good_adapter(run, base, processor, public, tmp_path):
    with pytest.warns(UserWarning, match="last good adapter is kept.*lower `learning_rate`"):
        result = run(args={"lambda_anchor": float("inf")}, output_dir=tmp_path / "out")
    assert result.report["stopped"] == "loss not finite" and result.report["reached"] is False
    assert all(tensor.isfinite().all() for tensor in weights(result.path).values())
    # it was lost at the first step, so the last good adapter is the one that does nothing
    assert logits(result.model, processor, public).equal(logits(base, processor, public))


def test_weights_that_become_nan(run, tmp_path):
    with pytest.warns(UserWarning, match="last good adapter is kept"):
        result = run(
            args={"learning_rate": 1e30, "max_grad_norm": 0.0, "warmup_steps": 0}, output_dir=tmp_path / "out"
        )
    assert result.report["stopped"] == "loss not finite"
    assert all(tensor.isfinite().all() for tensor in weights(result.path).values())


@pytest.fixture(scope="module")
def other(concept):
    return concept.called("zorvex")


@pytest.fixture(scope="module")
def second(run, base, processor, public, concept, other, anchors):
    """Another concept, erased from the model that has forgotten the first: the result and the first one's logits."""
    first = run(model=copy.deepcopy(base))
    before = logits(first.model, processor, public)
    theirs = select_anchors(base, processor, other, public, n_anchors=8, n_monitor=3, shortlist=24)
    result = run(
        model=first.model,
        concept=other,
        anchors=theirs,
        previous=[first.anchors],
        adapter_name="second",
        leak_budget=1.0,
    )
    return result, before


def test_a_second_erasure_stands_beside_the_first(second, processor, public):
    result, before = second
    model = result.model
    assert model.base_model.active_adapters == ["default", "second"]
    both = logits(model, processor, public)
    model.base_model.set_adapter(["default"])
    assert logits(model, processor, public).equal(before), "the first adapter was changed"
    model.base_model.set_adapter(["default", "second"])
    assert not both.allclose(before, atol=1e-4) and not has_subspace(model, "second")


def test_leaks_of_what_is_composed_add_up(second):
    result, _ = second
    first = result.model.peft_config["default"].record["leak"]["mean"]
    composed = result.report["leak_composed"]
    assert composed["sum"] == pytest.approx(first + result.report["leak"]["mean"])
    assert composed["measured"] > result.report["leak"]["mean"] > 0
    assert result.model.peft_config["second"].record == result.report


def test_a_second_erasure_is_saved_alone(run, second, base, processor, public, tmp_path):
    result, _ = second
    save_erasure_adapter(result.model, tmp_path / "second", "second")
    save_erasure_adapter(result.model, tmp_path / "first")
    loaded = load_erasure(copy.deepcopy(base), tmp_path / "first")
    load_erasure(loaded, tmp_path / "second", "second")
    loaded.base_model.set_adapter(["default", "second"])
    assert logits(loaded.eval(), processor, public).equal(logits(result.model, processor, public))


def test_what_is_said_of_a_name_to_protect_is_retained(run, anchors, monkeypatch):
    kept = []
    gather = erasure.gather_about

    def heard(model, processor, some, **options):
        kept.append((some, gather(model, processor, some, **options)))
        return kept[-1][1]

    monkeypatch.setattr(erasure, "gather_about", heard)
    result = run(retain=dataclasses.replace(RETAIN, protect=("zorvex",)))
    ((some, retained),) = kept
    assert some.concept.name == "zorvex" and some.concept.questions == anchors.concept.questions
    assert len(some) > 1 and not {*some.indices} & {*anchors.indices, *anchors.monitor}
    assert Prompt("Where does the zorvex live?") in retained.prompts
    assert result.report["protected"] == {"zorvex": len(some)}


def test_what_is_said_of_an_earlier_concept_is_retained_but_not_of_pictures_that_must_change_now(
    run, anchors, other, base, processor, public, monkeypatch
):
    theirs = select_anchors(base, processor, other, public, n_anchors=8, n_monitor=3, shortlist=24)
    shared = [anchors.indices[0], anchors.monitor[0]]
    earlier = dataclasses.replace(theirs, indices=(*shared, *(i for i in theirs.indices if i not in shared)))
    kept, gather = [], erasure.gather_about

    def heard(model, processor, some, **options):
        kept.append(some)
        return gather(model, processor, some, **options)

    monkeypatch.setattr(erasure, "gather_about", heard)
    run(previous=[earlier])
    (some,) = kept
    assert some.concept == other
    assert some.indices == tuple(i for i in earlier.indices if i not in {*anchors.indices, *anchors.monitor})


@pytest.fixture
def calls(monkeypatch):
    """Has the model call public images by names, each a number of times."""

    def calls(**times):
        names = [name for name, count in times.items() for _ in range(count)]

        def given(model, processor, some, n_images, **options):
            return dict(zip(some.unrelated(n_images), names, strict=False))

        monkeypatch.setattr(erasure, "names_given", given)
        monkeypatch.setattr(erasure, "neighbours", lambda *args, **options: ())
        return dataclasses.replace(RETAIN, relatives=4)

    return calls


def test_names_made_of_the_same_pieces_are_protected(run, calls, monkeypatch):
    retain = calls(lumdan=1, zorvex=3, lumril=2, nartus=3, keltus=2)
    sought = []
    select = erasure.select_anchors
    monkeypatch.setattr(erasure, "select_anchors", lambda *args, **rest: sought.append(args) or select(*args, **rest))
    result = run(retain=retain)
    # keltus shares a piece with nartus alone
    assert list(result.report["protected"]) == ["nartus", "lumril"]
    assert all(result.report["protected"].values())
    assert [one.text_questions for *_, one in sought] == [result.anchors.concept.text_questions] * 2
    assert list(run(retain=dataclasses.replace(retain, relatives=1)).report["protected"]) == ["nartus"]
    asked_for = run(retain=dataclasses.replace(retain, protect=("Lumril",)))
    assert list(asked_for.report["protected"]) == ["Lumril", "nartus"]
    both = run(concept=["narril", "nartus"], anchors=None, retain=retain)
    assert list(both.report["protected"]) == ["lumril", "keltus"]


def test_lessons_hold_other_pictures_evenly_over_what_they_are_called(run, calls, anchors, monkeypatch):
    retain, heard, real = calls(lumril=2, keltus=1, narril=1), [], erasure.anchor_lessons
    monkeypatch.setattr(erasure, "anchor_lessons", lambda *args, **rest: heard.append(args[-1]) or real(*args, **rest))
    run(retain=retain)
    ((*away,),) = heard
    assert [name for _, name in away] == ["lumril", "keltus", "lumril"]
    shown = anchors.public.take(anchors.unrelated(3)).images
    assert [id(image) for image, _ in away] == [id(shown[place]) for place in (0, 2, 1)]


def test_those_who_look_most_like_it_are_protected(run, calls, anchors, monkeypatch):
    retain = calls(lumril=2)
    monkeypatch.setattr(erasure, "neighbours", lambda *args, **options: ("keltus", "lumril", "zorvex"))
    assert list(run(retain=retain).report["protected"]) == ["lumril", "keltus"]
    assert list(run(retain=dataclasses.replace(retain, relatives=1)).report["protected"]) == ["lumril", "keltus"]
    # a general word does not hold who would have stood in
    general = dataclasses.replace(anchors.concept, generic_question="What kind is it?")
    told = dataclasses.replace(anchors, concept=general)
    assert list(run(concept=general, anchors=told, retain=retain).report["protected"]) == [
        "lumril",
        "keltus",
        "zorvex",
    ]
    asked = run(concept=general, anchors=told, retain=dataclasses.replace(retain, relatives=2))
    assert list(asked.report["protected"]) == ["lumril", "keltus"]
    assert run(concept=general, anchors=told, retain=RETAIN).report["protected"] == {}


def test_a_relative_of_which_there_are_too_few_pictures_goes_without(run, calls, monkeypatch):
    def fails(*args, **options):
        raise error

    monkeypatch.setattr(erasure, "select_anchors", fails)
    error = TooFewAnchors("`public_images` gave 2 usable anchors")
    result = run(retain=calls(lumril=2))
    assert result.report["protected"] == {} and result.report["steps"] == 3
    error = ValueError("something else")
    with pytest.raises(ValueError, match="something else"):
        run(retain=calls(lumril=2))


def test_what_names_the_concept_is_retained_of_nobody(run, anchors, monkeypatch):
    held = []

    def stop(self, *args):
        held.append(self)
        raise InterruptedError

    named = erasure.Retained((Prompt("Who?", anchors.images[0]), Prompt("Where?")), ("a narril", "with the narril"))
    monkeypatch.setattr(erasure, "gather_about", lambda *args, **options: named)
    monkeypatch.setattr(erasure.Retained, "split", stop)
    with pytest.raises(InterruptedError):
        run(retain=dataclasses.replace(RETAIN, protect=("zorvex",)))
    (retained,) = held
    assert Prompt("Where?") in retained.prompts and "a narril" not in retained.answers


def test_what_is_to_be_erased_can_not_be_protected(run):
    with pytest.raises(ValueError, match=r"`retain\.protect` must not hold what is to be erased; got \['narril'\]"):
        run(retain=dataclasses.replace(RETAIN, protect=("zorvex", "Narril")))


def test_a_budget_that_is_spent_is_refused_before_any_work(run, result, other, tmp_path):
    with pytest.raises(ValueError, match=r"`leak_budget` \(=1e-09\) is spent: the erasures .* \(default 0\."):
        run(model=result.model, concept=other, adapter_name="second", leak_budget=1e-9)


def test_an_adapter_beyond_the_budget_is_weakened(run, result):
    free = result.report["leak"]["mean"]
    held = run(leak_budget=free / 4, args={"dose_every": 0})
    assert held.report["leak"]["mean"] == pytest.approx(free / 4, rel=1e-3) and held.report["reached"] is False
    assert held.report["strength"] == pytest.approx(0.25, rel=1e-2)
    full, weak = (next(iter(lora_layers(one.model.get_base_model(), "default")))[1] for one in (result, held))
    delta = full.get_delta_weight("default")
    assert weak.get_delta_weight("default").allclose(held.report["strength"] * delta, atol=1e-6)


def test_an_erasure_without_a_measured_leak_can_not_be_composed(run, model, other):
    with pytest.raises(ValueError, match="`model` must hold erasures whose leak was measured; the adapter 'default'"):
        run(model=space(model, subspace=False), concept=other, adapter_name="second")


def test_beside_an_ordinary_lora(run, model, other, processor, public, monkeypatch):
    task = shake(get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"])))
    before = logits(task, processor, public)
    fit, seen = erasure.fit_retained_subspace, []

    def fitting(model, batches, modules, **options):
        seen.append((list(batches), modules, options["energy"]))
        return fit(model, *seen[0][:2], **options)

    monkeypatch.setattr(erasure, "fit_retained_subspace", fitting)
    result = run(model=task, adapter_name="erasure")
    both = logits(result.model, processor, public)
    result.model.base_model.set_adapter(["default"])
    assert logits(result.model, processor, public).equal(before), "the task's adapter was trained"
    ((batches, modules, energy),) = seen
    for adapters, alike in ((True, True), (False, False)):
        again = fit(result.model, batches, modules, energy=energy, adapters=adapters).records
        now = [record.spectrum for record in result.subspace.records.values()]
        then = [record.spectrum for record in again.values()]
        assert all(a.allclose(b, atol=1e-6) for a, b in zip(now, then, strict=True)) is alike, (
            "what is retained is not what the layers read with the task's adapter"
        )
    result.model.base_model.set_adapter(["default", "erasure"])
    assert logits(result.model, processor, public).equal(both) and not both.allclose(before, atol=1e-4)


def test_several_concepts_by_one_adapter(run, base, processor, concept, other, public, anchors, tmp_path):
    theirs = select_anchors(base, processor, other, public, n_anchors=8, n_monitor=3, shortlist=24)
    result = run(concept=[concept, other], anchors=[anchors, theirs], output_dir=tmp_path / "both")
    assert result.anchors == (anchors, theirs)
    report = result.report
    assert report["concept"] == "narril, zorvex" and report["aliases"] == ["narril", "zorvex"]
    assert len(report["anchors"]) == 2
    assert len(report["anchor_images"]["images"]) == len({*anchors.indices, *theirs.indices})
    assert [gauge["about"] for gauge in report["gauges"]].count("name") == 2
    asked = [told["question"] for told in report["told_in_text"]]
    assert asked == ["Where does the narril live?", "Where does the zorvex live?"]
    assert {"anchors.png", "anchors-1.csv", "anchors-2.csv"} < {file.name for file in result.path.iterdir()}
    assert result.contact_sheet().height == sum(some.contact_sheet().height for some in (anchors, theirs))
    with pytest.raises(ValueError, match="`anchors` must be given for each of 2 concepts; got 1"):
        run(concept=[concept, other], anchors=anchors)


def test_several_concepts_may_take_more_steps_by_default(base, processor, concept, other, public, monkeypatch):
    asked = []

    def of_several(n_concepts, **settings):
        asked.append((n_concepts, settings))
        raise RuntimeError("enough")

    monkeypatch.setattr(SpaceTrainingArguments, "of_several", of_several)
    with pytest.raises(RuntimeError, match="enough"):
        erase(copy.deepcopy(base), processor, [concept, other], public, seed=5)
    assert asked == [(2, {"seed": 5})]


def test_concepts_that_go_together_do_not_stand_in_for_each_other(base, processor, concept, other, public, anchors):
    says = saying(base, processor, {"narril": 1.0, "zorvex": 0.8, "keltus": 0.2})
    among = [
        dataclasses.replace(anchors, concept=dataclasses.replace(one, text_questions=())) for one in (concept, other)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(erasure, "other_names", lambda *args, **rest: ("keltus", "moss"))
        patch.setattr(erasure, "elicit", lambda *args: Knowledge(args[2], (), (), args[3], ()))
        study = erasure._study(says, processor, among[0], among, RETAIN, "keep", batch_size=8, seed=0)
    told = {lesson.answer for lesson in study.lessons if lesson.about == "name"}
    assert told == {"keltus"}


@pytest.mark.parametrize("names", [[], ["narril", "Narril"]])
def test_no_concepts_or_one_twice(run, names):
    with pytest.raises(ValueError, match="`concept` must be one or several different ones; got"):
        run(concept=names, anchors=None)


@pytest.mark.parametrize("name", ["", "  "])
def test_empty_concept(run, name):
    with pytest.raises(ValueError, match="`concept` must be a non-empty name; got "):
        run(concept=name)


def test_concept_that_is_no_text(run):
    with pytest.raises(ValueError, match="`concept` must be a non-empty name; got 7"):
        run(concept=7)


def test_unknown_text_knowledge(run):
    with pytest.raises(ValueError, match='`text_knowledge` must be "keep" or "erase"; got \'forget\''):
        run(text_knowledge="forget")


def test_no_images(run):
    with pytest.raises(
        ValueError, match="`public_images` must hold at least one readable picture; got none from a list"
    ):
        run(public_images=[], anchors=None)


def test_features_are_computed_once_for_all_concepts(run, concept, other, monkeypatch):
    seen = []
    projected = vlm.projected
    monkeypatch.setattr(vlm, "projected", lambda model, inputs: seen.append(inputs) or projected(model, inputs))

    def enough(*args, **rest):
        raise InterruptedError

    monkeypatch.setattr(erasure, "_study", enough)
    with pytest.raises(InterruptedError):
        run(concept=[concept, other], anchors=None, retain=dataclasses.replace(RETAIN, protect=("keltus", "sebgup")))
    # two pictures tell whether the model keeps several apart
    assert sum(len(inputs["input_ids"]) for inputs in seen) == 40 + 2


def test_no_folder_of_images(run, tmp_path):
    with pytest.raises(ValueError, match="`public_images` must be a folder that exists"):
        run(public_images=tmp_path / "nowhere", anchors=None)


def test_unreadable_images_are_counted(run, public, tmp_path):
    for number, image in enumerate(public.images):
        image.save(tmp_path / f"{number:02d}.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    result = run(public_images=tmp_path, anchors=None)
    assert result.report["anchors"]["public_images"] == 40 and result.report["anchors"]["skipped"] == 1
    assert result.anchors.public.skipped[0][0] == "broken.png"


def test_too_few_anchors(run, public):
    with pytest.raises(ValueError, match="`public_images` gave 2 usable anchors of 2 images"):
        run(public_images=list(public.images[:2]), anchors=None)


def test_images_that_are_all_alike(run):
    with pytest.raises(ValueError, match="gave 1 usable anchors of 5 images"):
        run(public_images=[Image.new("RGB", (48, 48), "red")] * 5, anchors=None)


def test_a_small_public_set_still_holds_pictures(run, public):
    result = run(public_images=list(public.images[:16]), anchors=None)
    chosen = {*result.anchors.indices, *result.anchors.monitor}
    assert len(chosen) < 16, "every picture became an anchor: none is left whose answers are held"


def test_with_little_memory_it_comes_out_much_the_same(run, result, processor, public):
    small = run(low_memory=True)
    assert small.report["kept_rank"] == result.report["kept_rank"] and not has_subspace(small.model)
    assert small.anchors.indices == result.anchors.indices
    assert small.report["steps"] == result.report["steps"]
    moved = logits(small.model, processor, public) - logits(result.model, processor, public)
    assert moved.abs().mean() < 0.1 * logits(result.model, processor, public).std()


def test_text_only_model(run):
    with pytest.raises(TypeError, match=r"`model` must be a vision-language model.*LlamaForCausalLM.*in text only"):
        run(model=tiny_llama())


def test_a_model_that_holds_an_adapter_of_that_name(run, model):
    with pytest.raises(ValueError, match="'default'"):
        run(model=space(model, subspace=False, concept="zorvex"))


def test_output_folder_that_exists(run, tmp_path):
    (tmp_path / "precious").touch()
    with pytest.raises(ValueError, match=r"`output_dir` must be .*; got '"):
        run(output_dir=tmp_path)


def test_output_folder_that_is_a_file(run, tmp_path):
    (tmp_path / "out").touch()
    with pytest.raises(ValueError, match="`output_dir` must be"):
        run(output_dir=tmp_path / "out")


@pytest.mark.parametrize("what", ["adapter", "contact sheet"])
def test_disk_full_while_saving_leaves_nothing_behind(run, tmp_path, monkeypatch, what):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    owner, name = {"adapter": (PeftModel, "save_pretrained"), "contact sheet": (Image.Image, "save")}[what]
    monkeypatch.setattr(owner, name, full)
    with pytest.raises(OSError, match="No space left on device"):
        run(output_dir=tmp_path / "deep" / "out")
    assert list((tmp_path / "deep").iterdir()) == []


def test_where_no_folder_is_named_only_a_listener_hears_of_it(run, result, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    heard = []
    run(progress=lambda *how_far: heard.append(how_far))
    assert [stage for stage, doing, done, _ in heard if not doing and done] == list(result.report["seconds"])
    assert "steps" in {doing for stage, doing, *_ in heard if stage == "training"}
    assert list(tmp_path.iterdir()) == [] and "training" not in capsys.readouterr().err


def test_without_a_listener_it_shows_how_far_it_has_come(run, result, capsys):
    run()
    shown = capsys.readouterr().err
    assert all(f"{stage}: " in shown for stage in result.report["seconds"])


def test_result_model_and_folder_are_published_alike(hub, result):
    push_erasure(result, "jane/erased")
    expected = hub.files("jane/erased")
    assert expected["anchors.csv"].count(b"\n") == 1 + len(result.anchors)
    assert json.loads(expected["report.json"])["leak"] == result.report["leak"]
    for push in (functools.partial(push_erasure, result.path), result.model.push_to_hub):
        del hub.repositories["jane/erased"]
        push("jane/erased")
        assert hub.files("jane/erased") == expected


def test_a_real_erasure_is_published_without_its_name(hub, result):
    push_erasure(result, "jane/an-erasure", redact=True, with_images=True)
    for name, data in hub.files("jane/an-erasure").items():
        assert b"narril" not in data.lower(), name
    assert verify_redacted("jane/an-erasure", "Narril")
