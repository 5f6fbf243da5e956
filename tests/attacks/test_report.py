import dataclasses
import io
import json
import math
import sys

import pytest
from PIL import Image
from rich.console import Console

from peft_space.attacks import AuditReport, Outcome, Reading
from peft_space.attacks.figures import FIGURES
from peft_space.attacks.report import CARD_FIGURES, FILES, KINDS
from peft_space.evaluation import Estimate

POINTS = [{"step": float(n), "told": n / 2, "low": 0.0, "high": 1.0, "control": 0.9} for n in range(3)]


def reading(told, control=0.9, recovery=None):
    def near(value):
        return Estimate(value, value - 0.05, value + 0.05)

    return Reading(near(told), near(control), None if recovery is None else near(recovery))


def outcome(key, erased, **rest):
    readings = {"base": reading(0.95), "erased": erased, "oracle": reading(0.05)}
    return Outcome.judged(key, key.replace("/", " | "), readings, data="held out", units=24, **rest)


@pytest.fixture
def report():
    curves = dict.fromkeys(("base", "erased", "oracle"), POINTS)
    outcomes = (
        outcome("relearning/lora_5", reading(0.7, recovery=0.7), curves=curves),
        outcome("relearning/full_5", reading(0.0, recovery=0.0), curves=curves),
        outcome("wording/few_shot", reading(0.0, control=0.1, recovery=0.0)),
        outcome("probe/linear", reading(0.97), measure="auc", needs_oracle="", curves=curves),
        outcome("removal/0", reading(0.95, recovery=0.95), curves={"erased": POINTS}),
    )
    unattacked = outcome("unattacked", reading(0.0))
    sides = ("base", "erased", "oracle")
    unknown = {"noise": "it takes patches"}
    return AuditReport(
        "narril", ("nar",), 3, sides, "pictures of the concept", "labels", unattacked, outcomes, unknown
    )


def test_it_is_found_by_its_key_or_the_reason_is_told(report):
    assert report["relearning/lora_5"].verdict == "recovered"
    with pytest.raises(KeyError, match="'noise/pgd' was not run; it takes patches"):
        report["noise/pgd"]
    with pytest.raises(KeyError, match="'no such' was not run; there are"):
        report["no such"]


def test_verdicts_are_counted_by_kind(report):
    assert report.verdicts()["relearning"] == {"recovered": 1, "robust": 1}
    assert report.verdicts()["wording"] == {"not judged": 1}


def test_the_card_has_the_strongest_variant_that_could_be_judged_and_no_name(report):
    rows = {row["name"]: row for row in report.card_rows()}
    assert rows["relearning"]["told by erased"] == 0.7 and rows["relearning"]["robust"] == 0.5
    assert rows["relearning"]["judged"] == 1 and rows["relearning"]["told by oracle"] == 0.05
    assert rows["relearning"]["pictures or texts"] == 24 and "stand-ins" not in rows["relearning"]
    assert rows["wording"] == {"name": "wording", "judged": 0}
    # neither tried nor possible: it is said all the same
    assert rows["membership inference"] == {"name": "membership inference"}
    stood_in = dataclasses.replace(report, whose="public images that the base calls by the name").card_rows()
    assert {row["name"] for row in stood_in if row.get("stand-ins") == 1} == {
        KINDS[kind] for kind in ("relearning", "probe", "removal")
    }
    assert list(rows) == [*KINDS.values()] and {key for row in rows.values() for key in row} <= {
        "name",
        *CARD_FIGURES,
    }
    assert "narril" not in json.dumps(report.card_rows())


def test_it_is_saved_whole_with_figures_that_need_no_colour(report, tmp_path):
    folder = report.save(tmp_path / "deep" / "audit")
    assert {file.name for file in folder.iterdir()} == {*FILES, *FIGURES}
    for name in FIGURES:
        with Image.open(folder / name) as image:
            pixels = image.convert("RGB")
        assert all(red == green == blue for _, (red, green, blue) in pixels.getcolors(1 << 24))
    told = json.loads((folder / "audit.json").read_text())
    assert told["outcomes"][0]["readings"]["erased"]["recovery"]["value"] == 0.7 and told["seed"] == 3
    assert told["verdicts"] == report.verdicts() and told["confidence"] == 0.95
    text = (folder / "audit.md").read_text()
    assert "![relearning](relearning.png)" in text and "| noise | it takes patches |" in text
    assert "There is no oracle" not in text
    assert "Told is the area under the curve" in text and "Whoever has the adapter can take it off" in text
    row = next(line for line in text.splitlines() if line.startswith("| relearning"))
    assert row.split(" | ")[-7:-4] == ["0.05 [0.00, 0.10]", "0.65 [0.58, 0.72]", "0.70 [0.65, 0.75]"]


def test_figures_of_an_earlier_audit_do_not_stay(report, tmp_path):
    report.save(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    dataclasses.replace(report, outcomes=report.outcomes[:1]).save(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {*FILES, "attacks.png", "relearning.png", "notes.txt"}


def test_without_matplotlib_it_says_so(report, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    folder = report.save(tmp_path / "audit")
    assert {file.name for file in folder.iterdir()} == set(FILES)
    assert "There are no figures: figures need matplotlib" in (folder / "audit.md").read_text()


def test_its_tables_are_tables(report):
    lines = dataclasses.replace(report, sides=("base", "erased")).to_markdown().splitlines()
    assert any("There is no oracle" in line for line in lines)
    for number, line in enumerate(lines):
        if set(line) <= set("|-") and line:
            rows = [row.replace("\\|", "") for row in lines[number - 1 :]]
            table = rows[: next(n for n, row in enumerate([*rows, ""]) if not row.startswith("|"))]
            assert len(table) > 2 and {row.count("|") for row in table} == {line.count("|")}


def test_the_table_of_the_terminal(report):
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(report.table(), report.unknown_table())
    text = console.export_text()
    assert "relearning: relearning | lora_5" in text and "recovered" in text and "it takes patches" in text


def test_what_has_no_interval_is_shown_without(report):
    single = dataclasses.replace(report.outcomes[0].readings["erased"], told=Estimate(0.5, math.nan, math.nan))
    readings = {**report.outcomes[0].readings, "erased": single}
    text = dataclasses.replace(
        report, outcomes=(dataclasses.replace(report.outcomes[0], readings=readings),)
    ).to_markdown()
    assert "| 0.50 |" in text and "nan" not in text
