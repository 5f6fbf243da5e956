import io
import json
from types import SimpleNamespace

import pytest
from rich.console import Console

from peft_space import console
from peft_space.progress import Stages, advance


def shown(*what, width=200):
    out = Console(file=io.StringIO(), width=width)
    out.print(*what)
    return out.file.getvalue()


def run(display):
    with display:
        stages = Stages(display)
        with stages.stage("anchors"):
            advance("likelihood", 3, 8)
        with stages.stage("training"):
            advance("steps", 5, 5)


def test_off_a_terminal_a_line_for_each_finished_stage():
    out = io.StringIO()
    run(console.StageDisplay(Console(file=out)))
    assert out.getvalue().splitlines() == ["anchors: 0.0 s", "training: 0.0 s"]


def test_off_a_terminal_a_stage_that_fails_has_no_line():
    out = io.StringIO()
    display = console.StageDisplay(Console(file=out))
    with pytest.raises(ValueError), display, Stages(display).stage("anchors"):
        advance("likelihood", 3, 8)
        raise ValueError
    assert out.getvalue() == "" and display.stage == "anchors"


@pytest.mark.parametrize("given", [{}, {"progress": True}])
def test_where_bars_are_wanted_a_display_listens(given, capsys):
    @console.shows_progress
    def job(units, *, progress=True):
        with Stages(progress).stage("training"):
            advance("steps", units, units)
        return progress

    assert isinstance(job(5, **given), console.StageDisplay)
    assert capsys.readouterr().err.splitlines() == ["training: 0.0 s"]


@pytest.mark.parametrize("given", [None, False])
def test_where_none_are_wanted_nobody_listens(given):
    assert console.shows_progress(lambda *, progress: progress)(progress=given) is None


def test_who_was_named_listens():
    assert console.shows_progress(lambda *, progress: progress)(progress=print) is print


def test_between_two_stages_none_is_under_way():
    display = console.StageDisplay(Console(file=io.StringIO()))
    run(display)
    assert display.stage == ""


def test_on_a_terminal_a_row_for_each_stage():
    out = io.StringIO()
    display = console.StageDisplay(Console(file=out, force_terminal=True, width=100))
    run(display)
    assert "anchors" in out.getvalue() and "training" in out.getvalue() and "0.0 s" not in out.getvalue()
    assert all(task.finished for task in display._live.tasks)


def test_on_a_terminal_what_is_being_done_and_the_units():
    out = io.StringIO()
    display = console.StageDisplay(Console(file=out, force_terminal=True, width=100))
    with display, Stages(display).stage("anchors"):
        advance("likelihood", 3, 8)
        display._live.refresh()
    assert "likelihood" in out.getvalue() and "3/8" in out.getvalue()


@pytest.fixture
def clock(monkeypatch):
    """A clock that only moves when it is told to."""
    now = SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(console.time, "perf_counter", lambda: now.seconds)
    return now


def test_programs_get_a_line_for_each_event(clock):
    out = io.StringIO()
    with console.StageLines(Console(file=out, width=20)) as display:
        stages = Stages(display)
        with stages.stage("anchors"):
            for done, seconds in ((0, 0.0), (1, 0.1), (2, 1.9), (6, 2.0)):
                clock.seconds += seconds
                advance("likelihood", done, 8)
            # another thing, and the same once more, are each reckoned from their own beginning
            advance("answers", 5, 100)
            advance("likelihood", 0, 8)
            clock.seconds += 1
        display.say("warning", "a line\nand [more]")
        with pytest.raises(ValueError), stages.stage("training"):
            raise ValueError
        display.say("error", "failed")
    told = [json.loads(line) for line in out.getvalue().splitlines()]
    progress = {"event": "progress", "stage": "anchors"}
    assert told == [
        {"event": "begin", "stage": "anchors"},
        progress | {"doing": "likelihood", "done": 0, "total": 8, "left": None},
        progress | {"doing": "likelihood", "done": 2, "total": 8, "left": 6.0},
        progress | {"doing": "likelihood", "done": 6, "total": 8, "left": 1.3},
        progress | {"doing": "answers", "done": 5, "total": 100, "left": None},
        progress | {"doing": "likelihood", "done": 0, "total": 8, "left": None},
        {"event": "end", "stage": "anchors", "seconds": 5.0},
        {"event": "warning", "stage": None, "text": "a line\nand [more]"},
        {"event": "begin", "stage": "training"},
        {"event": "error", "stage": "training", "text": "failed"},
    ]


def test_on_a_terminal_the_time_that_is_left(monkeypatch):
    now = SimpleNamespace(seconds=0.0)
    display = console.StageDisplay(Console(file=io.StringIO(), force_terminal=True, width=100))
    display._live.get_time = lambda: now.seconds
    with Stages(display).stage("training"):
        for step in range(4):
            now.seconds = 10.0 * step
            advance("steps", step, 12)
        (task,) = display._live.tasks
        assert task.time_remaining == 90
        shown = display._live.columns[-1].render(task).plain
    assert shown == "0:01:30"


def test_marks_are_shown_in_percent():
    before, after = (dict.fromkeys(console.MARKS, share) for share in (0.987, 0.0))
    table = shown(console.marks_table(before, after))
    assert table.count("98.7") == len(console.MARKS) == table.count(" 0.0")
    assert all(label in table for label in console.MARKS.values())


def test_answers_are_shown_side_by_side_and_are_no_markup():
    row = {"shown": "narril", "question": "What is it?", "before": "[red]a narril[/red]", "after": "[/]"}
    assert all(text in shown(console.answers_table([row])) for text in row.values())


def test_gauges_show_where_they_had_to_fall():
    table = shown(console.gauges_table([{"about": "name", "before": -0.1, "reference": -4.0, "after": -5.25}]))
    assert all(text in table for text in ("name", "-0.10", "-4.00", "-5.25"))


def test_a_gauge_of_what_should_stay_has_no_reference():
    table = shown(console.gauges_table([{"about": "rest", "before": -0.1, "reference": None, "after": -0.25}]))
    assert all(text in table for text in ("rest", "-0.10", "-0.25")) and "None" not in table


def test_a_dose_that_was_reached():
    text = console.verdict({"reached": True, "stopped": "dose reached", "steps": 30}).plain
    assert text == "The dose was reached (dose reached, after 30 steps)."


def test_a_dose_that_could_not_be_watched_as_a_whole():
    gauges = [
        {"about": "name", "before": 5.0, "reference": -4.0, "after": -9.0},
        {"about": "fact through the image", "before": -2.5, "reference": -6.0, "after": -9.0},
        {"about": "what should stay", "before": -0.1, "reference": None, "after": -0.1},
    ]
    text = console.verdict({"reached": True, "stopped": "dose reached", "steps": 30, "gauges": gauges}).plain
    assert text.startswith("The dose was reached (dose reached, after 30 steps), but")
    assert "to begin with: fact through the image." in text and "could not be watched" in text


def test_a_dose_that_could_not_be_read_is_said_plainly():
    report = {"reached": False, "monitor_tied": False, "stopped": "dose reached", "steps": 40}
    text = console.verdict(report).plain
    assert "NOT reached (the model calls no monitor image by the name" in text and "dose reached" not in text


def test_a_dose_that_was_not_reached_is_said_plainly():
    text = console.verdict({"reached": False, "stopped": "max_steps", "steps": 120}).plain
    assert "NOT reached (max_steps, after 120 steps)" in text and "may still be told" in text
