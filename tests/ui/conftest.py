"""Two erasures of the small random model, as `erase` saves them, and a workbench with both."""

import pytest
from PIL import Image

from peft_space import save_erasure_adapter, testbed
from peft_space.report import anchor_images, write_json
from tests.adapters import shake, space

LEAKS = {f"model.language_model.layers.{n}.self_attn.{kind}": 0.01 * (n + 1) for n in range(2) for kind in "qk"}


def evaluation(names=("kelzil", "<b>bold</b>")):
    """What `ErasureReport.save` writes, as far as the page reads it."""
    estimate = {"value": 0.125, "low": 0.0, "high": 0.25}
    points = [
        {
            "concept": name,
            "similarity": 0.5 - n,
            "near": n == 0,
            "n": 8,
            "base": 1.0,
            "erased": 0.875,
            "drop": {**estimate, "low": None} if n else estimate,
        }
        for n, name in enumerate(names)
    ]
    figure = {"key": "forget_accuracy", "label": "called by the name", "base": None, "erased": estimate}
    return {
        "figures": {"forget_accuracy": figure | {"n": 24, "units": 12, "data": "held out"}},
        "unknown": {"bleu": "there is no text"},
        "collateral": {"measure": "accuracy drop", "similarity": "cosine", "data": "held out", "points": points},
        "leak": {"mean": 0.015, "max": 0.02, "per_module": LEAKS},
    }


@pytest.fixture(scope="session")
def folders(base_folder, anchors, tmp_path_factory):
    """Of narril, which was evaluated, and of malwen, which was not."""
    root = tmp_path_factory.mktemp("erased")
    for seed, name in enumerate(("narril", "malwen")):
        model, _ = testbed.load(base_folder)
        erased = shake(space(model, concept=name), seed=seed)
        record = {"anchors": anchors.diagnostics(), "anchor_images": anchor_images(anchors), "reached": True}
        folder = save_erasure_adapter(erased, root / name, side=record)
        write_json(folder / "report.json", {"leak": {"mean": 0.01, "max": 0.02}})
        anchors.contact_sheet().save(folder / "anchors.png")
        anchors.write_scores(folder / "anchors.csv")
    write_json(root / "narril" / "evaluation.json", evaluation())
    return [str(root / "narril"), str(root / "malwen")]


@pytest.fixture(scope="session")
def workbench(folders):
    """On a base that is not the test bed's model, for all that is known here."""
    from peft_space.ui import Workbench

    return Workbench.load(folders, device="cpu")


@pytest.fixture
def on_testbed(folders, base_folder, monkeypatch):
    """The same, with the small random model in the place of the one that ships with the package."""
    from peft_space.ui import Workbench

    monkeypatch.setattr(testbed, "WEIGHTS", base_folder)
    return Workbench.load(folders, device="cpu")


@pytest.fixture
def picture():
    return Image.new("RGB", (48, 48), "orange")
