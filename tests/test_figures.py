"""The figures of a saved erasure: drawn from its report alone."""

import copy
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from peft_space import plot_erasure, save_erasure_adapter
from peft_space.cli import app
from peft_space.figures import FIGURES
from peft_space.subspace.retained import InputRecord
from tests.adapters import space

LAYERS = [f"model.layers.{n}.{part}" for n in (0, 1) for part in ("self_attn.q_proj", "mlp.down_proj")]
GAUGES = [
    {"about": "name", "before": 3.0, "after": -4.0, "reference": -5.0},
    {"about": "what should stay", "before": -0.1, "after": -0.12, "reference": None},
]
ANCHORS = {"histogram": {"edges": [-0.2, 0.0, 0.2, 0.4], "counts": [3.0, 5.0, 1.0]}, "threshold": 0.1}
REPORT = {
    "anchors": ANCHORS,
    "anchor_images": {
        "dataset": None,
        "split": None,
        "images": [{"id": "a", "index": 0, "cosine": 0.3, "log_likelihood": -1.0}],
    },
    "losses": [
        {"step": step, "loss": 2.0 / step, "loss_task": 1.0, "loss_orth": 0.5, "loss_div": None} for step in (1, 2, 3)
    ],
    "readings": [{"step": step, "leak": 0.01 * step, "levels": [3.0 - step, -0.1]} for step in (1, 2)],
    "gauges": GAUGES,
    "kept_rank": dict.fromkeys(LAYERS, 12),
    "spectrum": {name: InputRecord(1.0, "dense", spectrum=torch.ones(64) / 64).outside() for name in LAYERS},
    "leak": {"mean": 0.02, "max": 0.04, "per_module": dict.fromkeys(LAYERS, 0.02)},
    "before": {"forget_accuracy": 1.0},
    "after": {"forget_accuracy": 0.25},
}


@pytest.fixture
def saved(model, tmp_path):
    def save(**report):
        peft_model = space(copy.deepcopy(model), concept="narril")
        return save_erasure_adapter(peft_model, tmp_path / f"adapter{len(list(tmp_path.iterdir()))}", side=report)

    return save


def ink(path) -> float:
    """The share of a picture that is not white; raises where it has a colour."""
    pixels = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).reshape(-1, 3).int()
    assert int((pixels.max(1).values - pixels.min(1).values).max()) == 0, "not legible in black and white"
    return float((pixels[:, 0] < 250).float().mean())


def test_every_figure_is_drawn_in_black_and_white(saved, tmp_path):
    drawn = plot_erasure(saved(**REPORT), tmp_path / "figures")
    assert [path.name for path in drawn] == list(FIGURES)
    assert {path.name for path in (tmp_path / "figures").iterdir()} == set(FIGURES)
    assert all(0.01 < ink(path) < 0.5 for path in drawn)


def test_what_the_report_does_not_hold_is_not_drawn(saved, tmp_path):
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "mine.txt").touch()
    drawn = plot_erasure(saved(leak=REPORT["leak"]), tmp_path / "figures")
    assert [path.name for path in drawn] == ["leak.png"]
    assert (tmp_path / "figures" / "mine.txt").exists()
    assert plot_erasure(saved(), tmp_path / "none") == []


def test_figures_show_what_they_are_of():
    (axes,) = FIGURES["scores.png"](REPORT).axes
    assert [line.get_xdata()[0] for line in axes.lines] == [0.1, 0.3]
    several = FIGURES["scores.png"](REPORT | {"anchors": [ANCHORS, ANCHORS]}).axes
    assert len(several) == 2
    terms, levels, leaks = FIGURES["training.png"](REPORT).axes
    assert [line.get_label() for line in terms.lines] == ["loss", "loss_task", "loss_orth"]
    assert list(levels.lines[0].get_ydata()) == [3.0, 2.0, 1.0] and list(leaks.lines[0].get_ydata()) == [0.01, 0.02]
    left, right = FIGURES["spectrum.png"](REPORT).axes
    assert list(right.lines[0].get_ydata()) == [12 / 64] * 2
    assert left.lines[0].get_ydata()[0] == pytest.approx(63 / 64)
    (axes,) = FIGURES["leak.png"](REPORT).axes
    assert {line.get_label() for line in axes.lines} == {"q_proj", "down_proj"}
    (axes,) = FIGURES["marks.png"](REPORT).axes
    assert [bar.get_width() for bar in axes.patches] == [1.0, 0.25]


def test_the_command_draws_them(saved, tmp_path):
    run = CliRunner().invoke(app, ["inspect", str(saved(**REPORT)), "--plots", str(tmp_path / "figures")])
    assert run.exit_code == 0, run.stderr
    assert {path.name for path in (tmp_path / "figures").iterdir()} == set(FIGURES)


def test_without_matplotlib_it_says_so(saved, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    run = CliRunner().invoke(app, ["inspect", str(saved(**REPORT)), "--plots", str(tmp_path / "figures")])
    assert run.exit_code == 1 and "figures need matplotlib: `pip install 'peft-space[plots]'`" in run.stderr
    assert not (tmp_path / "figures").exists()


def test_what_is_no_erasure_is_refused(tmp_path):
    tmp_path.joinpath("adapter").mkdir()
    with pytest.raises(ValueError, match="adapter"):
        plot_erasure(tmp_path / "adapter", tmp_path / "figures")


def test_the_spectrum_is_told_at_few_ranks():
    shares = torch.arange(300, 0, -1) / torch.arange(301).sum()
    told = InputRecord(1.0, "dense", spectrum=shares).outside()
    assert len(told) <= 32 and told[0][0] == 1 and told[-1] == (300, 0.0)
    for rank, left in told:
        assert left == pytest.approx(float(shares[rank:].double().sum()), abs=1e-6)
    assert InputRecord(1.0, "sketch").outside() == []
