import pytest

from peft_space.attacks import AuditReport
from tests.attacks.test_report import outcome, reading
from tests.beds.worlds import BEDS
from tests.benchmarks.audit import (
    N_OTHER,
    N_SIBLING,
    N_TARGET,
    TUNING,
    main,
    show,
    subjects,
    summary,
    unseen_namings,
)


@pytest.fixture
def report():
    curves = {side: [{"step": 0.0, "told": 0.0}, {"step": 40.0, "told": 0.75}] for side in ("base", "erased")}
    found = outcome("relearning/lora_5", reading(0.5, recovery=0.5), curves=curves, settings={"chosen": {}, "rank": 2})
    sides = ("base", "erased", "oracle")
    return AuditReport(
        "narril", (), 0, sides, "pictures of the concept", "labels", outcome("unattacked", reading(0.0)), (found,)
    )


def test_the_target_is_apart_from_all_others_with_their_names():
    own, others = subjects(TUNING[0], 0)
    assert len(own) == N_TARGET and len(others) == 3 * N_SIBLING + 20 * N_OTHER
    assert {example.concept == example.answer for example in others} == {True}
    assert TUNING[0] not in {example.answer for example in others} and len({e.answer for e in others}) == 23


@pytest.mark.parametrize("bed", ["digits", "persons"])
def test_other_beds_bring_their_own_names_and_words(bed):
    target, *others = BEDS[bed].names
    own, labelled = subjects(target, 0, BEDS[bed])
    assert len(own) == N_TARGET and {example.answer for example in labelled} == set(others)
    near = [example for example in labelled if example.answer in BEDS[bed].near(target)]
    assert len(near) == N_SIBLING * len(BEDS[bed].near(target))
    assert not set(unseen_namings(target, BEDS[bed])) & set(BEDS[bed].concept(target).questions)


def test_a_name_of_another_bed_is_refused(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("sys.argv", ["audit", str(tmp_path / "out.json"), "--bed", "digits", "--creatures", "narril"])
    with pytest.raises(SystemExit):
        main()
    assert "--creatures must be of habket, " in capsys.readouterr().err


def test_a_row_tells_what_came_out_of_each_model_and_the_verdict(report):
    row = summary(report, "relearning/lora_5")
    assert row["told"] == {"base": 0.95, "erased": 0.5, "oracle": 0.05} and row["verdict"] == "recovered"
    assert row["last"] == {"base": 0.75, "erased": 0.75} and row["settings"] == {"chosen": {}}
    assert summary(report, "unattacked")["recovery"] is None


def test_the_table_has_means_over_creatures_and_counts_verdicts(report):
    rows = [{"attacks": [summary(report, key) for key in ("unattacked", "relearning/lora_5")]}] * 2
    lines = show(rows).splitlines()
    assert len(lines) == 4 and {line.count("|") for line in lines[1:3]} == {8}
    assert lines[3].endswith("| 0.95 | 0.50 | 0.05 | 0.50 | 0.90 | recovered 2 |")
