"""Every benchmark that erases runs, in the small world: a table that is asked for twice a year must not rot."""

import functools

import pytest
from PIL import Image

from peft_space import erasure, testbed
from peft_space.attacks.relearning import Budget
from peft_space.vlm import Prompt, encode
from tests.beds import far
from tests.beds.test_beds import TINY
from tests.beds.worlds import trained
from tests.benchmarks import audit, erasure_sequence, erasure_table, quantised, strength
from tests.benchmarks.memory import qwen
from tests.benchmarks.runs import gather, read, write

pytestmark = pytest.mark.slow


@pytest.fixture
def small_runs(small_world, monkeypatch):
    """What the benchmarks call, as small as the world."""
    few = functools.partial(erasure.erase, args=small_world)
    for module in (erasure_sequence, quantised, strength):
        monkeypatch.setattr(module, "erase", few)
    for module in (erasure_sequence, erasure_table):
        monkeypatch.setattr(module, "select_anchors", erasure.select_anchors)
    monkeypatch.setattr(erasure_table, "SpaceTrainingArguments", lambda **settings: small_world)


@pytest.mark.parametrize("variant", ["keep", "random anchors"])
def test_a_row_of_the_table(small_runs, variant):
    row = erasure_table.run("narril", 0, variant)
    assert ("merged" in row["leak"]) is (variant in erasure_table.ON_DISK)
    if variant in erasure_table.ON_DISK:
        assert row["leak"]["merged"] == pytest.approx(row["leak"]["loaded"], rel=1e-2)
    table = erasure_table.show([row])
    assert f"| base | {variant} |" in table and "| runs | 1 | 1 |" in table


def test_a_row_of_another_bed_on_a_far_public_set(small_runs, monkeypatch, tmp_path):
    place = trained("persons", folder=tmp_path, phases=TINY)
    monkeypatch.setattr(erasure_table.far, "public_images", functools.partial(far.public_images, 24))
    row = erasure_table.run("Alsa Varnel", 0, "protect family", None, "persons", "far", str(place))
    assert (row["bed"], row["public"]) == ("persons", "far")
    table = erasure_table.show([row])
    assert "names of all other persons (far)" in table and "creature" not in table
    assert "| target still named in pictures of two |" in table


def test_rows_of_two_beds_do_not_go_into_one_file(monkeypatch, tmp_path, capsys):
    output = tmp_path / "rows.json"
    write(output, [{"target": "narril", "seed": 0, "variant": "keep"}])
    for options in (["--bed", "digits"], ["--public", "far"]):
        monkeypatch.setattr("sys.argv", ["erasure_table", str(output), *options])
        with pytest.raises(SystemExit):
            erasure_table.main()
        assert "OUTPUT holds rows of another bed or public set" in capsys.readouterr().err


def test_retained_by_name_is_the_family_without_the_target():
    kept = erasure_table._protecting(testbed, testbed.BESTIARY.near("narril")).protect
    assert len(kept) == 3 and "narril" not in {concept.name for concept in kept}


def test_strengths_go_from_the_base_to_more_than_was_trained(small_runs):
    rows = strength.run("narril", 0, n_images=1)
    assert [row["strength"] for row in rows] == list(strength.STRENGTHS)
    leaks = [row["leak"] for row in rows]
    assert leaks[0] == 0 and leaks == sorted(leaks) and leaks[4] > 0
    assert leaks[6] == pytest.approx(1.5 * leaks[4], rel=0.2)
    assert "| leak | 0.000 |" in strength.show(rows)


@pytest.mark.parametrize("stored", ["bfloat16", "NF4"])
def test_a_base_of_few_bits(small_runs, stored, base_folder, monkeypatch):
    monkeypatch.setattr(quantised.testbed, "WEIGHTS", base_folder)
    row = quantised.run("narril", stored, 0)
    assert set(row["after"]) == set(row["before"]) == set(quantised.MEASURES)
    assert ("merged" in row) is (stored == "bfloat16")
    assert f"| {stored} base | erased from {stored} |" in quantised.show([row])


@pytest.mark.parametrize("method", ["space", "graddiff"])
def test_a_sequence_of_two(small_runs, method, monkeypatch, tmp_path):
    monkeypatch.setattr(erasure_sequence, "sheet_of", functools.partial(erasure_sequence.sheet_of, n_images=1))
    for count in ("N_TARGET", "N_SIBLING", "N_OTHER"):
        monkeypatch.setattr(audit, count, 1)
    monkeypatch.setattr(erasure_sequence, "Exam", functools.partial(testbed.Exam, n_images=1))
    whole, short = audit.audit_erasure, {"max_new_tokens": 2}
    monkeypatch.setattr(audit, "audit_erasure", lambda *args, **how: whole(*args, **how | short))
    monkeypatch.setattr(erasure_sequence, "_graddiff", functools.partial(erasure_sequence._graddiff, most=1))
    brief = Budget(steps=(1,), learning_rates=(("lora", (2e-3,)), ("full", (2e-4,))))
    monkeypatch.setattr(erasure_sequence, "Budget", lambda: brief)
    saved = []
    erasure_sequence.run(method, ["narril", "zormok"], 0, saved.append)
    steps = saved[-1]
    assert [step["erased"] for step in steps] == [[], ["narril"], ["narril", "zormok"]]
    assert list(steps[2]["forget"]) == ["narril", "zormok"] and 0 <= steps[2]["worst"] <= steps[2]["retain"] <= 1
    assert list(steps[2]["left"]) == ["narril", "zormok"] and "left" not in steps[1]
    for left in steps[2]["left"].values():
        assert 0 <= left["exam"]["indirect_knowledge"] <= 1
        assert {row["key"] for row in left["wordings"]} >= {"wording/yes_or_no_1", "wording/prefix_1"}
    alone = steps[2]["others_alone"]
    assert [row["attack"] for row in alone] == ["lora", "full"]
    assert all(list(row["area"]) == ["narril", "zormok"] and 0 <= row["retain"] <= 1 for row in alone)
    erasure_sequence.draw(steps, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 1000


def test_rows_are_kept_as_they_come(tmp_path):
    output = tmp_path / "rows.json"
    write(output, [0])
    assert sorted(gather(abs, [(-1,), (-2,)], output, read(output), 1)) == [1, 2]
    assert sorted(read(output)) == [0, 1, 2]


def test_the_stand_in_for_qwens_processor_puts_an_images_tokens_in(processor):
    _, stand_in = qwen(processor.tokenizer)
    batch = encode(stand_in, [Prompt("What is it?", Image.new("RGB", (64, 64)))], ["narril"])
    assert (batch["mm_token_type_ids"] == 1).sum() == 1024 and (batch["labels"] >= 0).any()
