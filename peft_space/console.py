"""What a terminal shows: how far the stages have come, and tables of what came out."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from .quoting import printable
from .report import hardly_told

MARKS = {
    "forget_accuracy": "target images called by the name",
    "forget_accuracy_paraphrase": "... asked in other words",
    "forget_accuracy_description": "... described freely",
    "misidentified": "target images called by another's name",
    "indirect_knowledge": "target's facts told from its image",
    "target_attributes": "what can be seen of target images",
    "retain_near": "names of its family members",
    "retain_far": "names of all others",
    "retain_compare": "others, by yes or no and of two names",
    "text_facts_target": "target's facts, asked in text",
    "text_facts_retained": "facts of all others, asked in text",
    "general": "other text knowledge",
}
"""The marks of the test bed's exam, as a reader is told of them."""


class StageDisplay:
    """A listener for `progress.Stages`: a live row for each stage on a terminal, elsewhere a line when one is done.

    Args:
        console: where to; standard error by default, so that results can be piped.

    Attributes:
        stage: the stage that is under way, to be named where something fails; `""` between two stages.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self.stage = ""
        self._began = 0.0
        self._row: TaskID | None = None
        self._live = Progress(
            SpinnerColumn(finished_text="[green]✓"),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("[dim]{task.fields[doing]}"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=self.console,
            disable=not self.console.is_terminal,
        )

    def __enter__(self) -> StageDisplay:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def __call__(self, stage: str, doing: str, done: int, total: int) -> None:
        if not doing and not done:
            self.stage, self._began = stage, time.perf_counter()
            self._row = self._live.add_task(stage, total=None, doing="")
        elif not doing:
            self._finish(stage)
        elif self._row is not None:
            self._live.update(self._row, completed=done, total=total, doing=doing)

    def _finish(self, stage: str) -> None:
        if self._row is not None:
            self._live.update(self._row, completed=1, total=1, doing="")
        if not self.console.is_terminal:
            self.console.print(f"{stage}: {time.perf_counter() - self._began:.1f} s", highlight=False)
        self.stage = ""

    def say(self, event: str, text: str) -> None:
        """A line about an event: an "error", a "warning", or that the job was "stopped"."""
        where = f" in the stage '{self.stage}'" if self.stage and event != "warning" else ""
        self.console.print(f"{event}{where}: {text}", markup=False, highlight=False, soft_wrap=True)


class StageLines:
    """A listener for `progress.Stages` that writes for programs: a JSON object a line.

    Each has an `event` and the `stage`: "begin"; "progress" with what it is `doing`, `done` of `total` units, and an
    estimate of the seconds `left` of that; "end" with the `seconds` it took; "warning", "error" and "stopped" with a
    `text`.

    Args:
        console: as for `StageDisplay`.
    """

    EVERY = 0.5
    """Seconds between two lines about the same."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self.stage = ""
        self._began = 0.0
        self._about: tuple[str, int] | None = None
        self._since = self._told = (0.0, 0)

    def __enter__(self) -> StageLines:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def __call__(self, stage: str, doing: str, done: int, total: int) -> None:
        now = time.perf_counter()
        if not doing and not done:
            self.stage, self._began, self._about = stage, now, None
            self._write("begin")
        elif not doing:
            self._write("end", seconds=round(now - self._began, 2))
            self.stage = ""
        else:
            if self._about != (doing, total) or done < self._told[1]:
                self._about, self._since, self._told = (doing, total), (now, done), (0.0, done)
            if now - self._told[0] >= self.EVERY:
                self._told = now, done
                began, first = self._since
                left = round((now - began) / (done - first) * (total - done), 1) if done > first else None
                self._write("progress", doing=doing, done=done, total=total, left=left)

    def say(self, event: str, text: str) -> None:
        """As `StageDisplay.say`."""
        self._write(event, text=text)

    def _write(self, event: str, **more: Any) -> None:
        line = json.dumps({"event": event, "stage": self.stage or None, **more})
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)


Display = StageDisplay | StageLines


def display(kind: str) -> Display:
    """The listener for `--progress`: "auto" or "json"."""
    return StageLines() if kind == "json" else StageDisplay()


P = ParamSpec("P")
R = TypeVar("R")


def shows_progress(function: Callable[P, R]) -> Callable[P, R]:
    """Where the `progress` of a call is true, or not given, a `StageDisplay` listens; where it is false, nobody.

    Of several processes only the first one shows anything.
    """

    @functools.wraps(function)
    def shown(*args: P.args, **kwargs: P.kwargs) -> R:
        from .processes import leads

        progress = kwargs.pop("progress", True)
        if not leads():
            progress = None
        if progress is not True:
            return function(*args, **kwargs, progress=progress or None)  # type: ignore[arg-type]
        with StageDisplay() as display:
            return function(*args, **kwargs, progress=display)  # type: ignore[arg-type]

    return shown


def marks_table(before: Mapping[str, float], after: Mapping[str, float]) -> Table:
    """The exam's marks, in percent."""
    return figures_table([{"label": MARKS[key], "before": before[key], "after": after[key]} for key in MARKS])


def figures_table(figures: Sequence[Mapping[str, Any]]) -> Table:
    """What was measured before and after, each a mapping with `label`, `before` and `after`, in percent."""
    table = Table(title="what the model tells, %", title_justify="left")
    table.add_column("asked")
    for column in ("before", "after"):
        table.add_column(column, justify="right")
    for figure in figures:
        table.add_row(printable(figure["label"]), f"{100 * figure['before']:.1f}", f"{100 * figure['after']:.1f}")
    return table


def reasons_table(title: str, what: str, reasons: Mapping[str, str]) -> Table:
    """Why each of some things was left out; `what` heads the column of their names."""
    table = Table(title=title, title_justify="left")
    table.add_column(what)
    table.add_column("why")
    for name, why in reasons.items():
        table.add_row(printable(name), printable(why))
    return table


def facts_rows(facts: Mapping[str, Any]) -> dict[str, str]:
    """What an adapter says of itself, as `hub.inspect_erasure` gives it; what is not known is said to be so."""

    def known(value: Any, form: str = "{}") -> str:
        return "not known" if value is None else form.format(value)

    redacted = "a concept whose name was kept out"
    if facts.get("name_verified") is not None:
        redacted += ": it is this name" if facts["name_verified"] else ": it is not this name"
    reached = {True: "yes", False: "NO: the concept may still be told", None: "not known"}[facts["reached"]]
    if facts["reached"] and (unseen := hardly_told(facts)):
        reached = f"yes, of what could be watched, which leaves out: {', '.join(unseen)}"
    leak, anchors = facts["leak"] or {}, facts["anchors"]
    return {
        "erases": redacted if facts["redacted"] else ", ".join(facts["concept"]) or "not known",
        "base": known(facts["base"]) + (f" at {facts['base_revision']}" if facts["base_revision"] else ""),
        "adapter": f"LoRA of rank {facts['rank']} (alpha {facts['alpha']}), targets: {facts['targets']}",
        "text knowledge": known(facts["text_knowledge"]),
        "dose reached": reached + (f" ({facts['stopped']}, after {facts['steps']} steps)" if facts["stopped"] else ""),
        "leak": known(leak.get("mean"), "{:.4f} mean") + ", " + known(leak.get("max"), "{:.4f} at most"),
        "anchors": f"{anchors['images']} public images" + (f" of {anchors['dataset']}" if anchors["dataset"] else ""),
        "attacks run": ", ".join(attack["name"] for attack in facts["attacks"]) or "none",
    }


def facts_table(facts: Mapping[str, Any]) -> Table:
    """The same as a table."""
    table = Table(show_header=False)
    for what, told in facts_rows(facts).items():
        table.add_row(what, printable(told))
    return table


def answers_table(answers: Iterable[Mapping[str, str]]) -> Table:
    """Some questions with the answers before and after; each a mapping with `shown`, `question`, `before`, `after`."""
    table = Table(title="some answers", title_justify="left")
    for column in ("shown", "question", "before", "after"):
        table.add_column(column)
    for row in answers:
        # what a model says is no markup
        table.add_row(*(printable(row[key]) for key in ("shown", "question", "before", "after")))
    return table


def histogram_table(histogram: Mapping[str, Sequence[float]], threshold: float, width: int = 50) -> Table:
    """How many pictures have which projector cosine; those that reach `threshold` are marked."""
    table = Table(title="projector cosine of the pictures", title_justify="left", show_header=False, box=None)
    table.add_column(justify="right")
    table.add_column(justify="right")
    table.add_column()
    most = max(histogram["counts"])
    for low, high, count in zip(histogram["edges"], histogram["edges"][1:], histogram["counts"], strict=False):
        bar = "█" * round(width * count / most) or ("▏" if count else "")
        table.add_row(f"{low:+.3f}", f"{count:.0f}", Text(bar, "green" if high > threshold else "dim"))
    return table


def gauges_table(gauges: Sequence[Mapping[str, Any]]) -> Table:
    """What the dose was read from: each has to fall from `before` towards `reference`, what is told of other names.

    What has no reference should stay.
    """
    title = "log-odds of what should no longer be said, log-likelihood of what should, nats"
    table = Table(title=title, title_justify="left")
    table.add_column("about")
    for column in ("before", "reference", "after"):
        table.add_column(column, justify="right")
    for gauge in gauges:
        levels = ("" if gauge[key] is None else f"{gauge[key]:.2f}" for key in ("before", "reference", "after"))
        table.add_row(printable(gauge["about"]), *levels)
    return table


def verdict(report: Mapping[str, Any]) -> Text:
    """Whether the dose was reached, why training stopped, and what the dose could not tell."""
    why = f"{report['stopped']}, after {report['steps']} steps"
    if report["stopped"] == "dose reached" and not report["reached"]:
        why = f"the model calls no monitor image by the name, so none can be seen to fall; {report['steps']} steps"
    if report["reached"]:
        if unseen := hardly_told(report):
            return printable(
                f"The dose was reached ({why}), but hardly any public picture told this to begin with: "
                f"{', '.join(unseen)}. What pictures of the concept tell of it could not be watched.",
                "yellow",
            )
        return printable(f"The dose was reached ({why}).", "green")
    return printable(
        f"The dose was NOT reached ({why}): the concept may still be told. The adapter is marked so.", "bold yellow"
    )
