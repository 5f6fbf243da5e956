import json

import pytest
from huggingface_hub import ModelCard

from peft_space import inspect_erasure, push_erasure
from peft_space.attacks.report import CARD_FIGURES, KINDS
from peft_space.hub import record_attacks
from tests.hub.test_redaction import tells

REPO = "jane/an-erasure"
ROWS = [
    {"name": name, **dict(zip(CARD_FIGURES, (1.0, 0.5, 0.96, 0.25, 0.125, 0.97, 24, 1.0), strict=True))}
    for name in KINDS.values()
]


def test_the_card_and_the_report_tell_them_and_all_else_stays(folder):
    before = json.loads((folder / "report.json").read_text())
    path = record_attacks(folder, ROWS)
    after = json.loads((folder / "report.json").read_text())
    assert after == before | {"attacks": ROWS} and path == folder / "README.md"
    card = ModelCard.load(path)
    told = "told by base 0.960, told by erased 0.250, told by oracle 0.125, control 0.970, pictures or texts 24, "
    told += "stand-ins 1.000"
    assert f"| relearning | judged 1.000, robust 0.500, {told} |" in card.text and "None was run" not in card.text
    assert str(folder.parent) not in str(card)


def test_what_was_not_run_is_told(folder):
    card = ModelCard.load(record_attacks(folder, [{"name": "linear probe"}]))
    assert "| linear probe | not run |" in card.text


def test_those_of_an_earlier_audit_give_way_and_the_licence_stays(folder):
    path = record_attacks(folder, ROWS)
    card = ModelCard.load(path)
    card.data.license = "apache-2.0"
    path.write_text(str(card))
    record_attacks(folder, ROWS[:1])
    assert [row["name"] for row in inspect_erasure(folder)["attacks"]] == ["relearning"]
    assert ModelCard.load(path).data.license == "apache-2.0"


def test_a_push_tells_them(hub, folder):
    record_attacks(folder, ROWS)
    push_erasure(folder, REPO)
    assert "| linear probe | judged 1.000" in hub.files(REPO)["README.md"].decode()
    assert len(inspect_erasure(REPO)["attacks"]) == len(KINDS)


def test_a_redacted_push_tells_the_figures_and_no_name(hub, folder, cheap):
    (folder / "audit").mkdir()
    (folder / "audit" / "audit.md").write_text("# Audit: Zilverkop Narril")
    record_attacks(folder, [*ROWS, {"name": "prefix zilverkop", "robust": 1.0}, {"name": "x", "narril": 0.5}])
    assert "narril" in (folder / "README.md").read_text().lower()
    push_erasure(folder, REPO, redact=True)
    for name, data in hub.files(REPO).items():
        assert tells(name.encode() + b"\n" + data) == [], name
    assert json.loads(hub.files(REPO)["report.json"])["attacks"] == ROWS
    assert "| relearning | judged 1.000" in hub.files(REPO)["README.md"].decode()


@pytest.mark.parametrize("name", ["Control", "Relearning", "Linear Probe"])
def test_a_name_that_every_audit_holds_can_not_be_kept_out(hub, folder, name):
    record_attacks(folder, ROWS)
    with pytest.raises(ValueError, match="which every adapter for this base has"):
        push_erasure(folder, REPO, redact=[name])


def test_what_is_no_adapter(tmp_path):
    with pytest.raises(ValueError, match="result_or_dir"):
        record_attacks(tmp_path / "nowhere", ROWS)
