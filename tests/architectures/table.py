"""What is proven of which model: `python -m tests.architectures.table` prints the tables of docs/models.md."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.architectures import checks
from tests.architectures.sweep import Sighting, sightings
from tests.architectures.zoo import ZOO, Species

Check = Callable[[Species, Path], None]
"""Proves one thing of one kind of model, and has a folder to write into. Its docstring says what is proven."""

CHECKS: list[Check] = [
    checks.targets,
    checks.features,
    checks.image_tokens,
    checks.likelihoods,
    checks.several_pictures,
    checks.padding_side,
    checks.retained,
    checks.erased,
]

NOT_RUN = {
    (name, checks.several_pictures): "its processor takes one picture a prompt"
    for name, species in ZOO.items()
    if species.pictures == 1
}
CELLS = [(name, check) for check in CHECKS for name in ZOO if (name, check) not in NOT_RUN]


def markdown() -> str:
    """One row for each kind of model, one column for each check."""
    rows = [["model", "classes", *(f"`{check.__name__}`" for check in CHECKS)], ["---"] * (len(CHECKS) + 2)]
    for name, species in ZOO.items():
        model, processor = species.make()
        classes = f"`{type(model).__name__}`, `{type(processor).__name__}`"
        rows.append([name, classes, *("-" if (name, check) in NOT_RUN else "yes" for check in CHECKS)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def legend() -> str:
    """What each check proves, and why a cell is not run."""
    lines = [f"- `{check.__name__}`: {' '.join((check.__doc__ or '').split())}" for check in CHECKS]
    lines += [f"- `{check.__name__}` is not run on {name}: {reason}." for (name, check), reason in NOT_RUN.items()]
    return "\n".join(lines)


def classes_markdown(seen: list[Sighting], unbuilt: list[str]) -> str:
    """One row for each class that can be built, and the names of those that can't."""
    rows = [["class", "`get_image_features`", "targets", "where", "names", "right"], ["---"] * 6]
    for one in sorted(seen, key=lambda one: one.name):
        stacks = ", ".join(f"`{stack}`" for stack in one.stacks)
        names = " ".join(one.kinds)
        rows.append(
            [
                f"`{one.name}`",
                "yes" if one.sees else "no",
                str(len(one.targets)),
                stacks,
                names,
                "yes" if one.right else "no",
            ]
        )
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    right = sum(one.right for one in seen)
    names = ", ".join(f"`{name}`" for name in unbuilt)
    return (
        f"{right} of {len(seen)} are right.\n\n{table}\n\nCan't be built from a default configuration here: {names}."
    )


if __name__ == "__main__":
    print(markdown(), legend(), classes_markdown(*sightings()), sep="\n\n")
