import io
import json
import math

import pytest
from PIL import Image
from rich.console import Console

from peft_space.evaluation import Collateral, CollateralPoint, ErasureReport, Estimate
from peft_space.evaluation.report import Ledger


@pytest.fixture
def ledger():
    ledger = Ledger(seed=3, n_bootstrap=200)
    ledger.add("forget_accuracy", "called by the name", [1, 1, 1, 0], [0, 0, 1, 0], "aabb", data="held out")
    ledger.add("agreement_text", "the same as before", None, [1.0, 0.0], "ab", data="retained")
    return ledger


def report(ledger, collateral=None):
    return ErasureReport("narril", (), 3, ledger.figures, ledger.unknown, collateral)


def curve(*points):
    return Collateral("accuracy drop", "projector cosine", "held out", points)


POINTS = (
    CollateralPoint("keltus", 0.6, True, 8, 1.0, 0.5, Estimate(0.5, 0.2, 0.8)),
    CollateralPoint("brumok", -0.2, False, 1, 1.0, 1.0, Estimate(0.0, math.nan, math.nan)),
)


def test_a_figure_tells_both_models_and_what_became_of_it(ledger):
    figure = report(ledger)["forget_accuracy"]
    assert (figure.base.value, figure.erased.value, figure.change.value) == (0.75, 0.25, -0.5)
    assert (figure.n, figure.units, figure.seed, figure.data) == (4, 2, 3, "held out")
    assert figure.change.low <= -0.5 <= figure.change.high


def test_what_compares_the_two_has_no_base(ledger):
    figure = report(ledger)["agreement_text"]
    assert figure.base is None and figure.change is None and figure.erased.value == 0.5


def test_a_figure_without_answers_is_among_what_is_not_known(ledger):
    ledger.add("leakage", "still said", [], [], [], data="held out")
    with pytest.raises(KeyError, match="'leakage' was not measured; no answer counts towards it: still said"):
        report(ledger)["leakage"]
    with pytest.raises(KeyError, match=r"there are .*forget_accuracy"):
        report(ledger)["no such"]


def test_it_is_written_whole_with_what_is_not_finite_as_null(ledger, tmp_path):
    path = report(ledger, curve(*POINTS)).save(tmp_path / "deep" / "report.json")
    told = json.loads(path.read_text())
    assert told["figures"]["forget_accuracy"]["erased"]["value"] == 0.25 and told["confidence"] == 0.95
    assert told["collateral"]["points"][0]["concept"] == "keltus"
    assert told["collateral"]["points"][1]["drop"] == {"value": 0.0, "low": None, "high": None}
    assert [file.name for file in path.parent.iterdir()] == ["report.json"]


def test_the_table_marks_what_was_trained_on(ledger):
    ledger.add("anchor", "anchors called by the [name]", [1.0, 0.5], [0.0, 0.1], "ab", data="trained on", unit="ratio")
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(report(ledger).table())
    rows = {line.split("│")[1].strip(): line for line in console.export_text().splitlines() if line.count("│") > 4}
    assert "trained on" in rows["anchors called by the [name]"] and "0.050" in rows["anchors called by the [name]"]
    assert "0.750" in rows["called by the name"] and "4/2" in rows["called by the name"]


def test_the_curve_is_drawn_and_told_apart_without_colour(ledger, tmp_path):
    path = report(ledger, curve(*POINTS)).plot_collateral(tmp_path / "curve.png")
    with Image.open(path) as image:
        pixels = image.convert("RGB")
    assert all(red == green == blue for _, (red, green, blue) in pixels.getcolors(1 << 20))
    alone = report(ledger, curve(POINTS[0])).plot_collateral(tmp_path / "alone.png")
    assert alone.read_bytes() != path.read_bytes()


def test_without_a_curve_nothing_is_drawn(ledger, tmp_path):
    ledger.unknown["collateral"] = "it needs labels"
    with pytest.raises(ValueError, match="got none: it needs labels"):
        report(ledger).plot_collateral(tmp_path / "curve.png")
    assert list(tmp_path.iterdir()) == []
