"""How a setting is chosen: by what is left of two creatures of the tuning families, and of everything else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from .contenders import Setting

FORGOTTEN = 0.05
"""A setting that leaves more of the name than this has not done what it is for."""
FORGET = ("forget_accuracy", "forget_accuracy_paraphrase", "forget_accuracy_description")
REST = ("target_attributes", "text_facts_retained", "text_facts_target", "general")


def forget_accuracy(marks: Mapping[str, Any]) -> float:
    """The mean over trained and held-out phrasings and free descriptions."""
    return fmean(marks[key] for key in FORGET)


def retention(marks: Mapping[str, Any]) -> float:
    """What stayed: names near and far, on which methods are compared, at 0.45 each, and all else at 0.1.

    The rest decides between settings that leave names alike, and is kept from being thrown away for them.
    """
    return 0.45 * (marks["retain_near"] + marks["retain_far"]) + 0.1 * fmean(marks[key] for key in REST)


def objective(several: Sequence[Mapping[str, Any]]) -> float:
    """Retention, where forget accuracy is at most `FORGOTTEN` in the mean over creatures; else minus that accuracy.

    So that any setting that forgets comes before any that does not, and among these the one that forgets most.
    """
    left = fmean(map(forget_accuracy, several))
    return fmean(map(retention, several)) if left <= FORGOTTEN else -left


def choose(rows: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The best setting of each method; of several alike the first, which is the mildest.

    Args:
        rows: one for each method, creature and setting, with `method`, `setting` and `marks`.

    Returns:
        For each method its `setting`, `objective`, `forget_accuracy`, `retention` and the number of `trials`.
    """
    trials: dict[str, dict[tuple[Any, ...], list[Mapping[str, Any]]]] = {}
    for row in rows:
        trials.setdefault(row["method"], {}).setdefault(key(row["setting"]), []).append(row)
    chosen = {}
    for method, tried in trials.items():
        ordered = dict(sorted(tried.items()))
        best = max(ordered, key=lambda setting: objective([row["marks"] for row in ordered[setting]]))
        marks = [row["marks"] for row in ordered[best]]
        chosen[method] = {
            "setting": ordered[best][0]["setting"],
            "objective": objective(marks),
            "forget_accuracy": fmean(map(forget_accuracy, marks)),
            "retention": fmean(map(retention, marks)),
            "trials": len(tried),
        }
    return chosen


def key(setting: Setting) -> tuple[Any, ...]:
    """A setting as a key."""
    return tuple(sorted(setting.items()))
