"""What is told of the runs: the table, the tuned settings and the verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from peft_space.evaluation.intervals import Estimate

from .contenders import Contender, Setting
from .front import FAR, NEAR, Rows, compare, estimate, on_front, points, share_on_front

COLUMNS = {
    "forget": "forget accuracy",
    NEAR: "names near",
    FAR: "names far",
    "target_attributes": "attributes of target images",
    "indirect_knowledge": "its facts through images",
    "text_facts_retained": "text facts of others",
    "text_facts_target": "its text facts",
    "general": "other text",
}


def setting_text(setting: Setting) -> str:
    """`learning rate 0.001, steps 30`."""
    return ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in setting.items())


def table(by_method: Mapping[str, Rows], chosen: Mapping[str, Any], given: Mapping[str, str]) -> str:
    """Markdown: a row a method, means with 95 % intervals.

    Args:
        chosen: each method's setting, as `tuning.choose` has it.
        given: what each method is given of the target.
    """
    lines = ["| | given | runs | " + " | ".join(COLUMNS.values()) + " | tuned |", "|" + "---|" * (len(COLUMNS) + 4)]
    for name, rows in by_method.items():
        figures = [_figure(estimate(rows, mark)) for mark in COLUMNS]
        setting = setting_text(chosen[name]["setting"]) if name in chosen else ""
        lines.append(f"| {name} | {given.get(name, '')} | {len(rows)} | {' | '.join(figures)} | {setting} |")
    return "\n".join(lines)


def _figure(one: Estimate) -> str:
    return f"{one.value:.3f}" + ("" if one.low != one.low else f" [{one.low:.2f}, {one.high:.2f}]")


def tuned(chosen: Mapping[str, Any]) -> str:
    """Markdown: what was chosen for each method, and what it scored on the tuning families."""
    lines = ["| | trials | chosen | forget accuracy | retention | objective |", "|---|---|---|---|---|---|"]
    for name, one in chosen.items():
        figures = " | ".join(f"{one[key]:.3f}" for key in ("forget_accuracy", "retention", "objective"))
        lines.append(f"| {name} | {one['trials']} | {setting_text(one['setting'])} | {figures} |")
    return "\n".join(lines)


def verdict(by_method: Mapping[str, Rows], contenders: Mapping[str, Contender]) -> str:
    """Whether SPACE is on the front of all methods, and whether it beats each that sees target images."""
    competing = {name: rows for name, rows in by_method.items() if name in contenders}
    if "SPACE" not in competing:
        return "SPACE has not been run."
    lines = []
    for mark in (NEAR, FAR):
        front = on_front(points(competing, mark))
        share = share_on_front(competing, "SPACE", mark)
        lines.append(
            f"- Forgetting against {COLUMNS[mark]}: SPACE is {'' if 'SPACE' in front else 'NOT '}on the front "
            f"({', '.join(name for name in competing if name in front)}); it is on {share:.0%} of those of redrawn "
            "creatures."
        )
    seeing = [name for name in competing if contenders[name].sees_target]
    for one in compare(competing, seeing):
        lines.append(
            f"- SPACE {'beats' if one.beats else 'does NOT beat'} {one.other}: forget accuracy {one.forget[0]:.3f} "
            f"against {one.forget[1]:.3f}, names near {one.near[0]:.3f} against {one.near[1]:.3f}, gain "
            f"{one.gain.value:+.3f} [{one.gain.low:+.3f}, {one.gain.high:+.3f}]."
        )
    return "\n".join(lines)


def by_method(rows: Sequence[Mapping[str, Any]], order: Sequence[str]) -> dict[str, list[Mapping[str, Any]]]:
    """The rows of each method that has some, in that order."""
    return {name: some for name in order if (some := [row for row in rows if row["method"] == name])}
