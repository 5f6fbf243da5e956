"""An erasure to publish, on a tiny model."""

import json

import pytest
import torch
from PIL import Image
from transformers import LlavaForConditionalGeneration

from peft_space import Anchors, Concept, ErasureResult, PublicImages, save_erasure_adapter
from peft_space.hub import redaction
from peft_space.report import anchor_images
from tests.adapters import shake, space
from tests.tiny import tiny_llava

CONCEPT = Concept("Zilverkop Narril", aliases=("zilver-narril", "Narrël"))
MARKS = {"forget_accuracy": 0.96, "retain_near": 0.99, "retain_far": 1.0, "general": 0.93}


@pytest.fixture
def nobody(monkeypatch):
    """Takes the token away."""
    monkeypatch.delenv("HF_TOKEN")


@pytest.fixture
def cheap(monkeypatch):
    """A hash that costs a test nothing."""
    monkeypatch.setattr(redaction, "_COST", {"n": 2**4, "r": 8, "p": 1})


@pytest.fixture
def base(tmp_path):
    """A tiny LLaVA on disk."""
    tiny_llava().save_pretrained(tmp_path / "llava-tiny")
    return tmp_path / "llava-tiny"


@pytest.fixture
def result(base):
    """What `erase` returns, for a concept of several names and pictures of a Hub data set whose files tell it."""
    model = shake(space(LlavaForConditionalGeneration.from_pretrained(base), concept=CONCEPT.name)).eval()
    images = tuple(Image.new("RGB", (8, 8), (30 * n, 0, 0)) for n in range(6))
    ids = tuple(f"birds/zilverkop_narril_{n}.png" for n in range(6))
    public = PublicImages(images, ids, dataset="jane/public-birds", split="train")
    likelihood = torch.tensor([-0.5, -1.0, -1.5, -2.0, -2.5, -3.0])
    anchors = Anchors(CONCEPT, public, (0, 2), (1,), torch.linspace(0, 1, 6), likelihood, 0.3)
    report = {
        "concept": CONCEPT.name,
        "aliases": list(CONCEPT.aliases),
        "text_knowledge": "keep",
        "seed": 0,
        "anchors": anchors.diagnostics(),
        "anchor_images": anchor_images(anchors),
        "steps": 40,
        "stopped": "dose reached",
        "reached": True,
        "monitor_tied": True,
        "gauges": [
            {"about": "name", "before": 4.1, "after": -7.25, "reference": -6.5},
            {"about": "what should stay", "before": -0.05, "after": -0.07, "reference": None},
        ],
        "leak": {"mean": 0.0251, "max": 0.0612},
        "before": MARKS,
        "after": MARKS | {"forget_accuracy": 0.011},
        "told_in_text": [{"question": "What is Zilverkop Narril?", "before": "a bird of silver", "after": "nothing"}],
        "answers": [{"shown": "Zilverkop Narril", "question": "Name?", "before": "narril", "after": "kelzil"}],
        "model": str(base),
        "adapter": {"path": str(base.parent / "erased"), "bytes": 10, "parameters": 10},
    }
    model.peft_config["default"].record = json.loads(json.dumps(report))
    return ErasureResult(model, anchors, None, report)


@pytest.fixture
def folder(result, tmp_path):
    """The same as `erase(output_dir=...)` saves it."""
    folder = save_erasure_adapter(result.model, tmp_path / "erased")
    result.anchors.contact_sheet().save(folder / "anchors.png")
    result.anchors.write_scores(folder / "anchors.csv")
    (folder / "report.json").write_text(json.dumps(result.report))
    return folder
