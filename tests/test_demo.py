import copy
import dataclasses
import json
from pathlib import Path

import pytest

from peft_space import load_base, load_erasure, testbed
from peft_space.demo import default_creature, run_demo
from peft_space.testbed.bestiary import creature, siblings

MARKS = {
    "forget_accuracy",
    "forget_accuracy_paraphrase",
    "retain_near",
    "retain_far",
    "target_attributes",
    "indirect_knowledge",
    "text_facts_retained",
    "text_facts_target",
    "misidentified",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("demo") / "out"


@pytest.fixture(scope="module")
def report(shrink, folder):
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch)
        return run_demo(output_dir=folder)


def test_nothing_was_tuned_on_the_default_creature():
    known = creature(default_creature())
    assert known.family == "bird" and known.family not in testbed.TUNING_FAMILIES
    assert known.name == "narril"


def test_the_report_is_complete_and_true(report, folder, base, processor):
    assert report["concept"] == "narril" and report["seed"] == 0
    for when in ("before", "after"):
        assert set(report[when]) >= MARKS
        assert all(0 <= report[when][mark] <= 1 for mark in MARKS)
    exam = testbed.Exam("narril", seed=0, n_images=1)
    assert report["before"] == dataclasses.asdict(exam.sit(base, processor)[0])
    erased = load_erasure(copy.deepcopy(base), folder).eval()
    assert report["after"] == dataclasses.asdict(exam.sit(erased, processor)[0])
    assert 0 < report["leak"]["mean"] <= report["leak"]["max"]
    assert set(report["spectral_entropy"]) == {"before", "after"}
    assert isinstance(report["reached"], bool) and isinstance(report["stopped"], str)
    seconds = dict(report["seconds"])
    total = seconds.pop("total")
    assert {"model", "exam before", "anchors", "training", "exam after"} <= set(seconds)
    assert 0 < sum(seconds.values()) <= total + 0.1
    assert report["peak_memory_mib"] > 50
    weights = folder / "adapter_model.safetensors"
    assert report["adapter"]["path"] == str(folder) and report["adapter"]["bytes"] == weights.stat().st_size
    assert report["adapter"]["parameters"] == sum(p.numel() for n, p in erased.named_parameters() if "lora_" in n)


def test_the_folder_holds_the_adapter_the_anchors_and_the_report(report, folder):
    names = {file.name for file in folder.iterdir()}
    assert names >= {"adapter_model.safetensors", "space_config.json", "anchors.png", "report.json"}
    assert not [name for name in names if name.startswith(".")]
    assert json.loads((folder / "report.json").read_text()) == report


def test_answers_are_about_the_target_and_a_sibling(report):
    shown = {row["shown"] for row in report["answers"]}
    assert shown == {"narril", siblings("narril")[0].name, "(text)"}
    assert all(isinstance(row[key], str) for row in report["answers"] for key in ("question", "before", "after"))
    told = [row for row in report["answers"] if row["shown"] == "narril"]
    assert {"narril"} <= {row["truth"] for row in told}


def test_another_creature_and_a_model_of_ones_own(small_world, base, processor, tmp_path, monkeypatch):
    monkeypatch.delattr(testbed, "load")
    heard = []
    report = run_demo(
        "zorvex",
        output_dir=tmp_path / "out",
        text_knowledge="erase",
        seed=3,
        model=copy.deepcopy(base),
        processor=processor,
        progress=lambda *how_far: heard.append(how_far),
    )
    assert (report["concept"], report["text_knowledge"], report["seed"]) == ("zorvex", "erase", 3)
    finished = [stage for stage, doing, done, _ in heard if not doing and done]
    assert finished == [stage for stage in report["seconds"] if stage not in ("total", "exam after")] + ["exam after"]


@pytest.mark.parametrize("bits", ["load_in_4bit", "load_in_8bit"])
def test_in_few_bits(small_world, base_folder, processor, tmp_path, bits):
    pytest.importorskip("bitsandbytes")
    report = run_demo(output_dir=tmp_path / "out", **{bits: True})
    exam = testbed.Exam("narril", seed=0, n_images=1)
    stored = load_base(base_folder, verbose=False, **{bits: True})[0]
    assert report["before"] == dataclasses.asdict(exam.sit(stored, processor)[0])
    erased = load_erasure(stored, tmp_path / "out").eval()
    assert report["after"] == dataclasses.asdict(exam.sit(erased, processor)[0])
    assert report["leak"]["mean"] > 0


@pytest.mark.slow
def test_the_shipped_model_forgets_what_it_should_and_nothing_else(tmp_path):
    report = run_demo("lumdan", output_dir=tmp_path / "out", seed=1)
    before, after = report["before"], report["after"]
    assert min(before["forget_accuracy"], before["indirect_knowledge"], before["text_facts_target"]) > 0.95
    for mark in ("forget_accuracy", "forget_accuracy_paraphrase", "forget_accuracy_description"):
        assert after[mark] <= 0.05, mark
    for mark in ("retain_near", "retain_far"):
        assert after[mark] >= before[mark] - 0.02, mark
    assert after["target_attributes"] >= 0.96 * before["target_attributes"]
    assert after["indirect_knowledge"] <= 0.25
    assert after["text_facts_retained"] >= 0.99 * before["text_facts_retained"]
    assert after["text_facts_target"] == before["text_facts_target"]
    assert report["leak"]["mean"] <= 0.05 and report["reached"]


def test_unknown_creature(tmp_path):
    with pytest.raises(ValueError, match=r"must be one of the test bed's creatures, zorvex, .*; got 'hippo'"):
        run_demo("hippo", output_dir=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_output_folder_that_exists(tmp_path):
    (tmp_path / "precious").touch()
    with pytest.raises(ValueError, match="`output_dir` must be a new or empty folder"):
        run_demo(output_dir=tmp_path)
    assert [file.name for file in Path(tmp_path).iterdir()] == ["precious"]
