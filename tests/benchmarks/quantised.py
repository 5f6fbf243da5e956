"""Measures erasure on a base of fewer bits, and what is left of an erasure that was merged and then quantised.

    python -m tests.benchmarks.quantised OUTPUT.json [--creatures ...] [--seed 0] [--processes 2]

A run erases one creature from the test bed's model as it is stored in one of `BASES`. What was erased from the 16-bit
base is merged into it, saved, and loaded again in each of `BASES`. Runs that are in OUTPUT.json are not repeated.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from torch import nn

from peft_space import erase, merge_and_save, testbed
from peft_space.adapter import save_erasure_adapter
from peft_space.loading import load_base

from .erasure_table import HELD_OUT, SHOWN
from .runs import gather, parser, read

BASES: dict[str, dict[str, Any]] = {
    "bfloat16": {"dtype": "bfloat16"},
    "int8": {"dtype": "bfloat16", "load_in_8bit": True},
    "NF4": {"dtype": "bfloat16", "load_in_4bit": True},
}
MEASURES = {
    "forget_accuracy": "forget accuracy, trained phrasings",
    "forget_accuracy_paraphrase": "... held-out phrasings",
    "forget_accuracy_description": "... free descriptions",
    **SHOWN,
}
# one of each family that nothing was tuned on
CREATURES = tuple(HELD_OUT[place] for place in (0, 4, 8, 12))


def run(target: str, base: str, seed: int) -> dict[str, Any]:
    """Marks before and after an erasure from `base`; of the 16-bit one also merged and stored in each way."""
    exam = testbed.Exam(target, seed=seed)

    def marks(model: nn.Module, processor: Any) -> dict[str, float]:
        given = exam.sit(model, processor)[0]
        return {measure: getattr(given, measure) for measure in MEASURES}

    model, processor = _load(testbed.WEIGHTS, base)
    before = marks(model, processor)
    result = erase(
        model,
        processor,
        testbed.concept(target),
        testbed.public_images(target, seed=seed),
        retain=testbed.retain(),
        seed=seed,
        progress=None,
    )
    row = {
        "target": target,
        "base": base,
        "seed": seed,
        **{key: result.report[key] for key in ("steps", "reached", "leak", "seconds")},
        "before": before,
        "after": marks(result.model, processor),
    }
    if base == "bfloat16":
        with tempfile.TemporaryDirectory() as folder:
            adapter, merged = Path(folder, "adapter"), Path(folder, "merged")
            save_erasure_adapter(result.model, adapter)
            merge_and_save(adapter, testbed.WEIGHTS, merged, dtype="bfloat16")
            row["merged"] = {stored: marks(*_load(merged, stored)) for stored in BASES}
    return row


def _load(folder: Path, base: str) -> tuple[nn.Module, Any]:
    return load_base(folder, device="cpu", verbose=False, **BASES[base])


def show(rows: list[dict[str, Any]]) -> str:
    """The Markdown table: a row a measure, means over creatures."""
    columns: dict[str, list[dict[str, float]]] = {}
    for base in BASES:
        some = [row for row in rows if row["base"] == base]
        columns[f"{base} base"] = [row["before"] for row in some]
        columns[f"erased from {base}"] = [row["after"] for row in some]
    merged = [row["merged"] for row in rows if "merged" in row]
    columns |= {f"merged, as {stored}": [marks[stored] for marks in merged] for stored in BASES}
    columns = {label: some for label, some in columns.items() if some}
    lines = ["| | " + " | ".join(columns) + " |", "|" + "---|" * (len(columns) + 1)]
    for measure, label in MEASURES.items():
        means = (sum(marks[measure] for marks in some) / len(some) for some in columns.values())
        lines.append(f"| {label} | " + " | ".join(f"{mean:.3f}" for mean in means) + " |")
    lines.append("| runs | " + " | ".join(str(len(some)) for some in columns.values()) + " |")
    return "\n".join(lines)


def main() -> None:
    arguments = parser(__doc__, CREATURES).parse_args()
    rows = read(arguments.output)
    done = {(row["target"], row["base"], row["seed"]) for row in rows}
    jobs = [(target, base, arguments.seed) for target in arguments.creatures for base in BASES]
    jobs = [job for job in jobs if job not in done]
    for row in gather(run, jobs, arguments.output, rows, arguments.processes):
        print(row["target"], row["base"], row["steps"], row["reached"], row["after"], flush=True)
    print(show(rows))


if __name__ == "__main__":
    main()
