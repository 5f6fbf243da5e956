import pytest
from hypothesis import given
from hypothesis import strategies as st

from peft_space import testbed
from peft_space.testbed.world import load
from tests.benchmarks.baselines import __main__ as command
from tests.benchmarks.baselines import cases, contenders, front, jobs, methods, show, tuning
from tests.benchmarks.baselines.contenders import Contender

REST = dict.fromkeys((*tuning.REST, "indirect_knowledge"), 1.0)


def marks(forget=0.0, near=1.0, far=1.0, **rest):
    return dict.fromkeys(tuning.FORGET, forget) | {"retain_near": near, "retain_far": far} | REST | rest


def rows(method, *several, setting=None):
    return [
        {"method": method, "target": f"c{n}", "seed": 0, "setting": setting or {"steps": 15}, "marks": one}
        for n, one in enumerate(several)
    ]


def tried(steps, *several):
    return rows("m", *several, setting={"learning_rate": 1e-3, "steps": steps})


def test_the_tuner_takes_what_retains_most_of_what_forgets():
    trials = [
        *tried(15, marks(0.5, 1.0), marks(0.0, 1.0)),  # forgets one creature of two
        *tried(30, marks(0.02, 0.9), marks(0.06, 0.9)),
        *tried(60, marks(0.0, 0.8), marks(0.0, 0.9)),
        *tried(120, marks(0.0, 0.1), marks(0.0, 0.1)),
    ]
    chosen = tuning.choose(trials)["m"]
    assert chosen["setting"] == {"learning_rate": 1e-3, "steps": 30} and chosen["trials"] == 4
    assert chosen["forget_accuracy"] == pytest.approx(0.04)
    assert chosen["objective"] == chosen["retention"] == pytest.approx(0.45 * 1.9 + 0.1)


def test_where_nothing_forgets_it_takes_what_forgets_most():
    trials = [*tried(15, marks(0.9, 1.0)), *tried(30, marks(0.3, 0.2)), *tried(60, marks(0.4, 1.0))]
    chosen = tuning.choose(trials)["m"]
    assert chosen["setting"]["steps"] == 30 and chosen["objective"] == pytest.approx(-0.3)


def test_of_settings_alike_it_takes_the_mildest_whatever_their_order():
    trials = [*tried(60, marks()), *tried(15, marks()), *tried(30, marks())]
    assert tuning.choose(trials)["m"]["setting"]["steps"] == 15


def test_names_weigh_more_than_the_rest_and_the_rest_decides_between_equals():
    assert tuning.objective([marks(near=0.9)]) < tuning.objective([marks(general=0.5)])
    assert tuning.objective([marks(general=0.5)]) < tuning.objective([marks()]) == pytest.approx(1)


points = st.dictionaries(st.text("abcdefgh", min_size=1, max_size=1), st.tuples(st.integers(0, 4), st.integers(0, 4)))


@given(points)
def test_the_front_is_what_nothing_beats(points):
    found = front.on_front(points)
    assert bool(found) == bool(points)
    for name, (forget, kept) in points.items():
        as_good = {n for n, (f, k) in points.items() if f <= forget and k >= kept and (f, k) != (forget, kept)}
        assert (name in found) is not bool(as_good)
        # whoever is beaten is beaten by one of the front
        assert not as_good or as_good & found


def test_equals_stay_on_the_front_together():
    assert front.on_front({"a": (0, 1), "b": (0, 1), "c": (0, 0.9), "d": (0.1, 1.1)}) == {"a", "b", "d"}


def by_method():
    return {
        "SPACE": rows("SPACE", marks(0.0, 0.9), marks(0.02, 1.0)),
        "GA": rows("GA", marks(0.0, 0.5), marks(0.02, 0.9)),
        "KL": rows("KL", marks(0.0, 0.95), marks(0.0, 1.0)),
        "IDK": rows("IDK", marks(0.0, 0.2), marks(0.0, 0.4)),
    }


def contestants():
    return {name: Contender(None, (), name != "SPACE") for name in by_method()}


def test_beating_takes_more_names_at_no_more_of_the_concept():
    won = {one.other: one.beats for one in front.compare(by_method(), ["GA", "KL", "IDK"])}
    assert won == {"GA": True, "KL": False, "IDK": False}
    (one,) = front.compare(by_method(), ["GA"])
    assert one.gain.value == pytest.approx(0.25) and one.gain.low == pytest.approx(0.1)
    assert one.forget == (0.01, 0.01) and one.near == (0.95, 0.7)


def test_the_verdict_says_what_was_found():
    said = show.verdict(by_method(), contestants()).splitlines()
    assert "NOT on the front (KL)" in said[0] and "NOT on the front (KL, IDK)" not in said[0]
    assert [line.startswith("- SPACE beats") for line in said[2:]] == [True, False, False]
    better = by_method() | {"SPACE": rows("SPACE", marks(0.0, 1.0), marks(0.0, 1.0))}
    said = show.verdict(better, contestants())
    assert "NOT" not in said and said.count("SPACE beats") == 3
    assert front.share_on_front(better, "SPACE", "retain_near") == 1
    assert front.share_on_front(by_method(), "SPACE", "retain_near") < 0.5


def test_the_table_has_a_row_for_each_method_and_its_setting():
    chosen = {"SPACE": {"setting": {"learning_rate": 0.002, "steps": 60}}}
    lines = show.table(by_method(), chosen, {"GA": "target images"}).splitlines()
    assert len(lines) == 6 and all(line.count("|") == lines[0].count("|") for line in lines)
    assert "learning rate 0.002, steps 60" in lines[2] and "0.010 [0.00, 0.02]" in lines[2]
    assert lines[3].startswith("| GA | target images | 2 | 0.010")


@pytest.fixture
def in_process(small_world, monkeypatch, base_folder):
    """The whole command in this process, on the small world; gives the jobs that were done."""
    done = []

    def gather(run, waiting, output, rows, *_):
        for job in waiting:
            done.append(job)
            rows.append(run(*job))
            command.runs.write(output, rows)
            yield rows[-1]

    monkeypatch.setattr(command.runs, "gather", gather)
    monkeypatch.setattr(testbed, "load", lambda folder=base_folder: load(folder))
    monkeypatch.setattr(command, "TUNED_ON", ("zorvex",))
    monkeypatch.setattr(command, "TUNING_IMAGES", 1)
    monkeypatch.setattr(command, "IMAGES", 1)
    monkeypatch.setattr(cases, "N_TARGET", 2)
    monkeypatch.setattr(cases, "N_RETAIN", 3)
    monkeypatch.setattr(contenders, "STEPS", (1, 2))
    monkeypatch.setattr(contenders, "SPACE_DOSES", (0.2, 0.4))
    monkeypatch.setattr(contenders, "SPACE_RATES", (1e-2,))
    monkeypatch.setattr(contenders, "REMOVED", (0.5, 1.0))
    monkeypatch.setitem(methods.DATA_DEPENDENT, "GradDiff", methods.Method(methods.difference, (1e-2,)))
    return done


def test_the_command_tunes_runs_shows_and_does_nothing_twice(in_process, tmp_path, capsys, base_folder):
    (tmp_path / "oracles").mkdir()
    (tmp_path / "oracles" / "narril").symlink_to(base_folder)
    wanted = ["SPACE", "GradDiff", "projector removal"]
    out = tmp_path / "out"
    options = [str(out), "--creatures", "narril", "--seeds", "0", "--methods", *wanted]
    command.main([*options, "--oracles", str(tmp_path / "oracles")])
    told = capsys.readouterr().out
    assert told.count("\ntrial ") == 6 and told.count("\nrun ") == 3 and "core-minutes" in told
    assert len(in_process) == 2 + 3 + 3
    table = (out / "table.md").read_text()
    assert table in told and (out / "front.png").stat().st_size > 5000
    for name in ("base", "retrain oracle", *wanted):
        assert f"\n| {name} |" in "\n" + table
    # the oracle is the base model here
    base, oracle = (line.split(" | ", 1)[1] for line in table.splitlines()[2:4])
    assert base == oracle
    command.main(options)
    assert len(in_process) == 8
    command.main([str(out), "--creatures", "narril", "--seeds", "0", "--show"])
    assert len(in_process) == 8
    again = (out / "table.md").read_text().splitlines()
    assert [line for line in table.splitlines() if "oracle" not in line] == again


def test_a_run_has_the_marks_of_the_exam(in_process, tmp_path, base, processor):
    case = jobs.make_case("narril", 0, 1, tmp_path)
    (row,) = jobs.compete("projector removal", case, [{"strength": 0.0}], tmp_path)
    assert row["marks"] == case["before"] and row["steps"] == 0 and row["cpu_seconds"] >= 0
    exam = testbed.Exam("narril", seed=0, n_images=1)
    assert row["marks"]["retain_by_creature"] == exam.sit(base, processor)[0].retain_by_creature
