"""Measures what an erasure does at other strengths than the one it was trained at.

    python -m tests.benchmarks.strength OUTPUT.json [--creatures ...] [--seed 0] [--processes 2]

One erasure a creature, then the exam at every strength of `STRENGTHS`. The curves are drawn beside the output.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from peft_space import erase, leak, scale_adapter, testbed
from peft_space.vlm import encode, prompt_batches

from .quantised import CREATURES
from .runs import gather, parser

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
CURVES = {
    "forget_accuracy": "forget accuracy",
    "retain_near": "names, near",
    "retain_far": "names, far",
    "target_attributes": "attributes of target images",
    "indirect_knowledge": "facts told through the image",
    "text_facts_retained": "text facts of others",
    "general": "other text knowledge",
    "leak": "leak",
}


def run(target: str, seed: int, n_images: int = 12) -> list[dict[str, Any]]:
    """The exam's marks and the leak on its retained questions, a row a strength."""
    model, processor = testbed.load()
    exam = testbed.Exam(target, seed=seed, n_images=n_images)
    public = testbed.public_images(target, seed=seed)
    erased = erase(
        model, processor, testbed.concept(target), public, retain=testbed.retain(), seed=seed, progress=None
    ).model
    retained = [p for p, topic in zip(exam.sheet.prompts, exam.sheet.topics, strict=True) if topic[0] == "retained"]
    parts = prompt_batches(model, processor, retained, 64)
    batches = [encode(processor, [retained[i] for i in indices]) for indices in parts]
    rows = []
    for strength in STRENGTHS:
        scale_adapter(erased, strength)
        marks = dataclasses.asdict(exam.sit(erased, processor)[0])
        rows.append({"target": target, "strength": strength, **marks, "leak": leak(erased, batches).mean})
    return rows


def means(rows: list[dict[str, Any]]) -> dict[float, dict[str, float]]:
    """Each curve's height at each strength, over creatures."""
    by_strength = {strength: [row for row in rows if row["strength"] == strength] for strength in STRENGTHS}
    return {
        strength: {curve: sum(row[curve] for row in some) / len(some) for curve in CURVES}
        for strength, some in by_strength.items()
    }


def show(rows: list[dict[str, Any]]) -> str:
    """The Markdown table: a row a curve, a column a strength."""
    points = means(rows)
    lines = ["| strength | " + " | ".join(map(str, points)) + " |", "|" + "---|" * (len(points) + 1)]
    for curve, label in CURVES.items():
        lines.append(f"| {label} | " + " | ".join(f"{point[curve]:.3f}" for point in points.values()) + " |")
    return "\n".join(lines)


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    from matplotlib import pyplot

    points = means(rows)
    figure, axes = pyplot.subplots(figsize=(6, 3.4), layout="constrained")
    for number, (curve, label) in enumerate(CURVES.items()):
        heights = [point[curve] for point in points.values()]
        axes.plot(list(points), heights, marker="ox^sdv*+"[number], color=f"C{number}", label=label)
    axes.set(xlabel="strength of the adapter", ylabel="share", ylim=(-0.03, 1.03))
    axes.legend(fontsize="x-small")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main() -> None:
    arguments = parser(__doc__, CREATURES).parse_args()
    jobs = [(target, arguments.seed) for target in arguments.creatures]
    rows = [row for some in gather(run, jobs, arguments.output, [], arguments.processes) for row in some]
    print(show(rows))
    draw(rows, arguments.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
