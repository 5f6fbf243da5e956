"""SPACE and every baseline, side by side: tunes all of them alike, runs them on creatures that nothing was tuned on.

    python -m tests.benchmarks.baselines OUTPUT_FOLDER [--processes 2] [--oracles FOLDER] [--show]

What is in OUTPUT_FOLDER already is not done again. It is left with `cases.json` (what the methods share),
`trials.json`, `tuned.json` (the chosen settings), `runs.json`, `table.md` and `front.png`. `--oracles FOLDER` adds
the retrain oracles in FOLDER, each in a folder called after the creature it never saw; `--show` only makes table, plot
and verdict of what is there. docs/baselines.md says what is compared.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peft_space import testbed
from peft_space.testbed.bestiary import CREATURES

from .. import runs
from ..erasure_table import HELD_OUT
from .contenders import contenders
from .jobs import compete, make_case, sit_oracle
from .plot import draw
from .show import by_method, table, tuned, verdict
from .tuning import choose, forget_accuracy, key

TUNED_ON = tuple(
    next(creature.name for creature in CREATURES if creature.family == family) for family in testbed.TUNING_FAMILIES
)
"""The first creature of each tuning family."""
RUN_ON = HELD_OUT[::3]
"""Every third of the creatures whose families nothing was tuned on: six."""
TUNING_IMAGES, IMAGES = 8, 12
"""Renders per creature in the exam."""
RUNS_A_PROCESS = 20


def shared(
    folder: Path, wanted: Sequence[tuple[str, int, int]], processes: int
) -> dict[tuple[str, int, int], dict[str, Any]]:
    """The cases, by creature, seed and renders in the exam."""
    rows = runs.read(folder / "cases.json")
    done = {(row["target"], row["seed"], row["images"]) for row in rows}
    jobs = [(*case, folder) for case in wanted if case not in done]
    for row in runs.gather(make_case, jobs, folder / "cases.json", rows, processes, RUNS_A_PROCESS):
        print(f"case {row['target']} {row['seed']}, {row['cpu_seconds']} s", flush=True)
    return {(row["target"], row["seed"], row["images"]): row for row in rows}


def tune(folder: Path, methods: Sequence[str], cases: dict[Any, dict[str, Any]], processes: int) -> dict[str, Any]:
    """Every trial of every method on the creatures of the tuning families, and the settings that came out best."""
    some = contenders()
    rows = runs.read(folder / "trials.json")
    done = {_at(row) for part in rows for row in part}
    jobs = [
        (name, cases[target, 0, TUNING_IMAGES], group, folder)
        for name in methods
        for target in TUNED_ON
        for group in some[name].groups()
        if not all((name, target, key(setting)) in done for setting in group)
    ]
    for part in runs.gather(compete, jobs, folder / "trials.json", rows, processes, RUNS_A_PROCESS):
        _tell("trial", part)
    trials = {(name, target, key(setting)) for name in some for target in TUNED_ON for setting in some[name].trials}
    tried = {at: row for part in rows for row in part if (at := _at(row)) in trials}
    cut_short = {name for name, *_ in trials - tried.keys()}
    chosen = choose(row for row in tried.values() if row["method"] not in cut_short)
    (folder / "tuned.json").write_text(json.dumps(chosen, indent=1))
    return chosen


def run(
    folder: Path, methods: Sequence[str], chosen: dict[str, Any], cases: Sequence[dict[str, Any]], processes: int
) -> list[dict[str, Any]]:
    """Each method at its tuned setting on each case."""
    rows = runs.read(folder / "runs.json")
    done = {(row["method"], row["target"], row["seed"], key(row["setting"])) for part in rows for row in part}
    jobs = [
        (name, case, [chosen[name]["setting"]], folder)
        for case in cases
        for name in methods
        if (name, case["target"], case["seed"], key(chosen[name]["setting"])) not in done
    ]
    for part in runs.gather(compete, jobs, folder / "runs.json", rows, processes, RUNS_A_PROCESS):
        _tell("run", part)
    wanted = {(case["target"], case["seed"]) for case in cases}
    return [
        row
        for part in rows
        for row in part
        if (row["target"], row["seed"]) in wanted
        and row["method"] in chosen
        and key(row["setting"]) == key(chosen[row["method"]]["setting"])
    ]


def _at(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["method"], row["target"], key(row["setting"])


def _tell(what: str, part: Sequence[dict[str, Any]]) -> None:
    for row in part:
        marks = row["marks"]
        print(
            f"{what} {row['method']} {row['target']} {row['seed']}, {row['setting']}: FA "
            f"{forget_accuracy(marks):.3f}, near {marks['retain_near']:.3f}, far {marks['retain_far']:.3f}, "
            f"attributes {marks['target_attributes']:.2f}, text {marks['text_facts_retained']:.2f} "
            f"{marks['general']:.2f}, {row['steps']} steps, {row['cpu_seconds']} s",
            flush=True,
        )


def main(arguments: Sequence[str] | None = None) -> None:
    every = contenders()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--creatures", nargs="+", default=list(RUN_ON))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", default=list(every), choices=list(every))
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--oracles", type=Path, metavar="FOLDER")
    parser.add_argument("--show", action="store_true", help="show what is there and stop")
    options = parser.parse_args(arguments)
    folder, processes = options.output, options.processes
    folder.mkdir(parents=True, exist_ok=True)
    held_out = [(name, seed, IMAGES) for seed in options.seeds for name in options.creatures]
    if options.show:
        chosen = json.loads((folder / "tuned.json").read_text())
        cases = {(row["target"], row["seed"], row["images"]): row for row in runs.read(folder / "cases.json")}
    else:
        cases = shared(folder, [*((name, 0, TUNING_IMAGES) for name in TUNED_ON), *held_out], processes)
        chosen = tune(folder, options.methods, cases, processes)
        print(tuned(chosen), flush=True)
    sat = [cases[case] for case in held_out if case in cases]
    methods = () if options.show else options.methods
    rows = run(folder, methods, chosen, sat, processes)
    base = [{"method": "base", "target": c["target"], "seed": c["seed"], "marks": c["before"]} for c in sat]
    found = [
        sit_oracle(case, options.oracles / case["target"])
        for case in sat
        if options.oracles is not None and (options.oracles / case["target"]).is_dir()
    ]
    results = by_method([*base, *found, *rows], ["base", "retrain oracle", *every])
    given = {name: "target images" if one.sees_target else "the name" for name, one in every.items()}
    text = "\n\n".join([table(results, chosen, given), tuned(chosen), verdict(results, every)])
    (folder / "table.md").write_text(text + "\n")
    draw({name: some for name, some in results.items() if name != "base"}, every, folder / "front.png")
    print(text)
    spent = sum(row["cpu_seconds"] for row in itertools.chain(cases.values(), rows))
    spent += sum(row["cpu_seconds"] for part in runs.read(folder / "trials.json") for row in part)
    print(f"{spent / 60:.0f} core-minutes in all")


if __name__ == "__main__":
    main()
