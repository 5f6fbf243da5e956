import re

import pytest
from huggingface_hub import ModelCard
from transformers import AutoModelForImageTextToText

from peft_space import SpaceConfig, push_erasure
from peft_space.console import MARKS
from peft_space.hub import build_card
from peft_space.hub.card import eval_results, marks
from tests.hub.conftest import CONCEPT
from tests.tiny import image_batch, logits, tiny_llava

REPO = "jane/narril-erased"


@pytest.fixture
def card(result):
    """The card of the erasure, after what a test changes in its record and its config."""

    def card(record=None, **changes):
        config = result.model.peft_config["default"]
        settings = {"r": 4, "concept": CONCEPT.name, "base_model_name_or_path": "jane/llava-tiny"} | changes
        own = SpaceConfig(**settings, base_fingerprint=config.base_fingerprint | {"revision": "abc123"})
        own.record = config.record | (record or {})
        return build_card(own, REPO)

    return card


def test_the_metadata_is_what_the_hub_reads(hub, result):
    push_erasure(result, REPO, base_model="jane/llava-tiny", license="apache-2.0")
    card = ModelCard.load(REPO)
    data = card.data.to_dict()
    assert data["base_model"] == "jane/llava-tiny" and data["base_model_relation"] == "adapter"
    assert data["library_name"] == "peft" and data["pipeline_tag"] == "image-text-to-text"
    assert data["tags"] == ["lora", "concept-erasure", "unlearning"]
    assert data["license"] == "apache-2.0" and data["datasets"] == ["jane/public-birds"]
    assert data["model-index"][0]["name"] == "narril-erased"
    told = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert told == {
        "forget_accuracy": 0.011,
        "retain_near": 0.99,
        "retain_far": 1.0,
        "general": 0.93,
        "leak_mean": 0.0251,
        "leak_max": 0.0612,
    }


def test_it_says_what_was_erased_from_which_base_and_what_was_measured(card):
    text = card().text
    assert "forget: **Zilverkop Narril** (also: zilver-narril, Narrël)." in text
    assert (
        "[jane/llava-tiny](https://huggingface.co/jane/llava-tiny)" in text and "| base revision | `abc123` |" in text
    )
    assert f"| {MARKS['forget_accuracy']} | 0.960 | 0.011 |" in text
    assert "| name | 4.10 | -6.50 | -7.25 |" in text and "| what should stay | -0.05 |  | -0.07 |" in text
    assert "**0.0251** mean over layers, 0.0612 at most" in text
    assert "None was run on this adapter" in text and "dose was not reached" not in text
    assert "could be watched" not in text
    assert "the base model's licence holds" in text


def test_its_tables_are_tables(card):
    attacks = {"relearning | 5 images": {"recovered": 0.7, "steps": 10}, "nf4": 0.012}
    lines = card({"attacks": attacks}).text.splitlines()
    rules = [number for number, line in enumerate(lines) if re.fullmatch(r"(\|---)+\|", line)]
    assert len(rules) == 5
    for rule in rules:
        columns = lines[rule].count("|")
        assert lines[rule - 1].startswith("|") and lines[rule - 2] == ""
        table = lines[rule + 1 : next(n for n in range(rule, len(lines)) if not lines[n].startswith("|"))]
        assert table and all(re.sub(r"\\\|", "", row).count("|") == columns for row in table)
    assert "| relearning \\| 5 images | recovered 0.700, steps 10 |" in lines
    assert "| nf4 | value 0.012 |" in lines


def test_a_dose_that_was_not_reached_stands_at_the_top(card):
    text = card({"reached": False, "stopped": "max_steps"}).text
    assert "> **The dose was not reached** (max_steps)" in text[: text.index("## Load it")]


def test_what_hardly_any_public_picture_told_stands_at_the_top(card):
    untied = {"about": "fact through the image", "before": -1.5, "after": -9.0, "reference": -6.5}
    text = card({"gauges": [untied, untied]}).text
    head = text[: text.index("## Load it")]
    assert "> **Not all of the dose could be watched**" in head and "begin with: fact through the image. Ask" in head
    assert "could be watched" not in card({"gauges": [untied], "reached": False}).text


def test_without_figures_it_says_so(card):
    text = card({"before": None, "after": None, "gauges": [], "leak": None, "anchor_images": None}).text
    assert "Nothing that this card knows of. Measure before you rely on it." in text
    assert "anchors.csv" not in text


def test_several_concepts_of_one_adapter_are_named_once(card):
    text = card({"aliases": ["owl", "night bird", "newt"]}, concept="owl, newt").text
    assert "forget: **owl, newt** (also: night bird)." in text


def test_an_adapter_that_was_weakened_says_so(card):
    assert "| strength | weakened to 0.250 of what was trained" in card({"strength": 0.25}).text
    assert "| strength |" not in card({"strength": 1.0}).text


def test_an_adapter_that_names_nothing(card):
    assert "it does not say which." in card({"aliases": []}, concept=None).text


def test_figures_that_are_none_are_left_out():
    report = {
        "before": {"own": 0.5, "text": "x", "gone": 1},
        "after": {"own": 0.25, "text": "y"},
        "leak": {"mean": None},
    }
    assert marks(report) == [{"key": "own", "label": "own", "before": 0.5, "after": 0.25}]
    assert [result.metric_type for result in eval_results(report)] == ["own"]


@pytest.mark.parametrize("redact", [False, True])
def test_the_ways_of_loading_that_it_shows_work(hub, result, monkeypatch, redact, cheap):
    repo_id = "jane/an-erasure"
    push_erasure(result, repo_id, base_model="jane/llava-tiny", redact=redact)
    monkeypatch.setattr(AutoModelForImageTextToText, "from_pretrained", lambda name, **revision: tiny_llava())
    expected = logits(result.model, image_batch())
    blocks = re.findall(r"```python\n(.*?)```", hub.files(repo_id)["README.md"].decode(), flags=re.DOTALL)
    assert len(blocks) == 2 + redact
    for block in blocks:
        names = {}
        exec(block, names)
        assert "model" not in names or logits(names["model"], image_batch()).allclose(expected, atol=1e-6)
    assert [name in "".join(blocks) for name in ("PeftModel", "load_erasure", "verify_redacted")] == [
        True,
        True,
        redact,
    ]
