"""Attacks erasures on a test bed: erases a name, audits it, and compares it with the retrain oracle.

    python -m tests.benchmarks.audit OUTPUT.json [--creatures ...] [--seed 0] [--processes 2] [--oracles FOLDER]
    python -m tests.benchmarks.audit OUTPUT.json --bed {digits,persons} --creatures NAME [--folder DIR]

FOLDER holds retrain oracles, each in a folder called after the creature that it never saw:
`python -m peft_space.testbed.recipe FOLDER/narril --without narril`. A creature that has none is compared with its
base alone. `--reports FOLDER` keeps each audit with its figures, `--tuning` audits creatures that hyper-parameters
were chosen on, and `--show` only prints the table of what is there. Runs that are in OUTPUT.json are not repeated.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from pathlib import Path
from statistics import fmean
from typing import Any

from torch import nn

from peft_space import (
    AuditReport,
    EvaluatedSet,
    Example,
    SpaceTrainingArguments,
    audit_erasure,
    erase,
    testbed,
)
from peft_space.attacks import ATTACKS
from peft_space.testbed import Bed
from peft_space.testbed.questions import DESCRIPTION

from ..beds.worlds import BEDS, add_bed, model_folder, world
from .erasure_table import HELD_OUT
from .runs import gather, parser, read

# one of each family that nothing was tuned on
SUBJECTS = tuple(HELD_OUT[place] for place in (0, 4, 8, 12))
TUNING = ("zorvex", "tevwen")
N_TARGET, N_SIBLING, N_OTHER = 34, 10, 3
"""Renders of the target, of each member of its family and of each other creature."""
_STREAM = 1000
"""Keeps these renders apart from the exam's, which are drawn from the seed itself."""


def subjects(
    target: str, seed: int, bed: Bed = testbed.BESTIARY, without: Collection[str] = ()
) -> tuple[list[Any], EvaluatedSet]:
    """Pictures of the target, and of all others with their names, but of those in `without`."""
    question, near = bed.concept(target).questions[0], bed.near(target)
    rows = [
        Example(question, other, image, other)
        for other in bed.names
        if other != target and other not in without
        for _, image in bed.pictures(other, N_SIBLING if other in near else N_OTHER, _STREAM + seed)
    ]
    own = [image for _, image in bed.pictures(target, N_TARGET, _STREAM + seed)]
    return own, EvaluatedSet(tuple(rows), "renders of the test bed")


def unseen_namings(target: str, bed: Bed = testbed.BESTIARY) -> tuple[str, ...]:
    """Phrasings that ask for the name and that no training has seen, and the request for a description."""
    ((scene, _),) = bed.pictures(target, 1, 0)
    held_out = [asked.question for asked in bed.about(scene) if asked.about == "name" and asked.held_out]
    return (*held_out, DESCRIPTION)


def audited(
    model: nn.Module,
    processor: Any,
    target: str,
    seed: int,
    bed: Bed = testbed.BESTIARY,
    *,
    without: Collection[str] = (),
    **given: Any,
) -> AuditReport:
    """The audit of an erased model on its bed's pictures and in phrasings that no training has seen.

    Args:
        without: names that are among nobody's foils or controls.
        given: what else `audit_erasure` takes.
    """
    own, others = subjects(target, seed, bed, without)
    return audit_erasure(
        model,
        processor,
        bed.concept(target),
        target_images=own,
        labelled=others,
        paraphrases=unseen_namings(target, bed),
        max_new_tokens=14,
        seed=seed,
        progress=None,
        **given,
    )


def run(
    target: str,
    seed: int,
    oracle: str | None,
    reports: str | None,
    attacks: tuple[str, ...] = ATTACKS,
    bed: str = "bestiary",
    folder: str | None = None,
    radius: float = 0.0,
) -> dict[str, Any]:
    """Erases `target` and audits what comes out.

    Args:
        oracle: folder of a model that never saw it.
        reports: folder to keep the audit in.
        bed: key of `BEDS`.
        folder: where the bed's trained model lies.
        radius: of the guard against relearning.
    """
    there = world(bed, folder)
    model, processor = there.load()
    concept, public = there.concept(target), there.public_images(target, seed=seed)
    began = time.perf_counter()
    args = SpaceTrainingArguments(seed=seed, relearning_radius=radius)
    result = erase(model, processor, concept, public, retain=there.retain(), args=args, seed=seed, progress=None)
    erased = time.perf_counter() - began
    report = audited(
        result.model,
        processor,
        target,
        seed,
        BEDS[bed],
        attacks=attacks,
        oracle=None if oracle is None else testbed.load(oracle)[0],
        anchors=result.anchors,
    )
    if reports is not None:
        report.save(Path(reports) / f"{target}-{seed}")
    return {
        "target": target,
        "seed": seed,
        "oracle": oracle is not None,
        "radius": radius,
        "reached": result.report["reached"],
        "seconds": {"erase": round(erased, 1), "audit": round(sum(report.seconds.values()), 1)} | dict(report.seconds),
        "attacks": [summary(report, key) for key in ("unattacked", *(outcome.key for outcome in report.outcomes))],
        "unknown": dict(report.unknown),
    }


def summary(report: AuditReport, key: str) -> dict[str, Any]:
    """One attack as a row: what each model told, what the control was, and the verdict."""
    outcome = report.unattacked if key == "unattacked" else report[key]
    if outcome is None:
        raise ValueError(f"`report` must hold {key!r}; it could not be measured: {dict(report.unknown)}.")
    recovery = outcome.readings["erased"].recovery
    beyond = outcome.beyond_oracle
    return {
        "key": key,
        "label": outcome.label,
        "told": {side: reading.told.value for side, reading in outcome.readings.items()},
        "control": {
            side: None if reading.control is None else reading.control.value
            for side, reading in outcome.readings.items()
        },
        "recovery": None if recovery is None else recovery.value,
        "beyond_oracle": None if beyond is None else beyond.value,
        "last": {side: points[-1]["told"] for side, points in outcome.curves.items() if "told" in points[-1]},
        "settings": {key: value for key, value in outcome.settings.items() if key in ("chosen", "layer", "where")},
        "verdict": outcome.verdict,
    }


def show(rows: list[dict[str, Any]]) -> str:
    """The Markdown table: a row an attack, means over creatures, and how often each verdict was given."""
    keys = list(dict.fromkeys(attack["key"] for row in rows for attack in row["attacks"]))
    lines = ["| attack | base | erased | oracle | recovery | control, erased | verdicts |", "|" + "---|" * 7]
    for key in keys:
        some = [attack for row in rows for attack in row["attacks"] if attack["key"] == key]
        cells = [_mean([attack["told"].get(side) for attack in some]) for side in ("base", "erased", "oracle")]
        cells.append(_mean([attack["recovery"] for attack in some]))
        cells.append(_mean([attack["control"]["erased"] for attack in some]))
        counts: dict[str, int] = {}
        for attack in some:
            counts[attack["verdict"]] = counts.get(attack["verdict"], 0) + 1
        verdicts = ", ".join(f"{verdict} {count}" for verdict, count in sorted(counts.items()))
        lines.append(f"| {key}: {some[0]['label']} | {' | '.join(cells)} | {verdicts} |")
    return "\n".join(lines)


def _mean(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{fmean(known):.2f}" if known else ""


def main() -> None:
    options = parser(__doc__, SUBJECTS)
    add_bed(options)
    options.add_argument("--oracles", type=Path, metavar="FOLDER")
    options.add_argument("--reports", type=Path, metavar="FOLDER")
    options.add_argument("--attacks", nargs="+", default=list(ATTACKS), choices=ATTACKS)
    options.add_argument("--radius", type=float, default=0.0, help="of the guard against relearning")
    options.add_argument("--tuning", action="store_true", help=f"audit {' and '.join(TUNING)} instead")
    options.add_argument("--show", action="store_true", help="print the table of what is there and stop")
    arguments = options.parse_args()
    bed = arguments.bed
    names = [] if arguments.show else TUNING if arguments.tuning else arguments.creatures
    if unknown := [name for name in names if name not in BEDS[bed].names]:
        options.error(f"--creatures must be of {', '.join(BEDS[bed].names)}; got {', '.join(unknown)}.")
    folder = None if arguments.show else model_folder(arguments)
    rows = read(arguments.output)
    done = {(row["target"], row["seed"], row.get("radius", 0.0)) for row in rows}
    jobs = []
    for target in names:
        place = arguments.oracles / target if arguments.oracles else None
        oracle = str(place) if place is not None and place.is_dir() else None
        reports = None if arguments.reports is None else str(arguments.reports)
        if (target, arguments.seed, arguments.radius) not in done:
            attacks = tuple(arguments.attacks)
            jobs.append((target, arguments.seed, oracle, reports, attacks, bed, folder, arguments.radius))
    for row in gather(run, jobs, arguments.output, rows, arguments.processes):
        print(row["target"], row["seed"], row["seconds"], flush=True)
    # a mean over runs with and without the guard would say nothing of either
    print(show([row for row in rows if row.get("radius", 0.0) == arguments.radius]))


if __name__ == "__main__":
    main()
