"""What an audit found, and how it is shown and kept."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from math import nan
from pathlib import Path
from typing import Any

from rich.table import Table

from ..adapter import whole_folder
from ..console import reasons_table
from ..evaluation.intervals import CONFIDENCE
from ..quoting import markdown, printable
from ..report import write_json
from .aims import OF_THE_CONCEPT
from .figures import FIGURES, plots
from .outcome import AS_ORACLE, NOT_JUDGED, ROBUST, UNSURE, VERDICTS, Outcome
from .sides import BASE, ERASED, ORACLE

KINDS = {
    "relearning": "relearning",
    "quantisation": "quantisation after merging",
    "wording": "wording",
    "text": "questions in text alone",
    "pictures": "changed pictures",
    "noise": "noise sought by gradient",
    "probe": "linear probe",
    "membership": "membership inference",
    "removal": "adapter taken off or turned down",
}
"""Every kind of attack: its key, and its name for a reader."""
FILES = ("audit.json", "audit.md")
CARD_FIGURES = (
    "judged",
    "robust",
    "told by base",
    "told by erased",
    "told by oracle",
    "control",
    "pictures or texts",
    "stand-ins",
)
"""What a model card tells of each kind."""
NOTES = {
    "relearning": "Told is the area under the curve over the steps: 1 where all is told from the first step on, as of "
    "the base. The oracle's is what it takes to teach the concept to a model that never knew it.",
    "removal": "Whoever has the adapter can take it off, and then the base is back, with all that it knew. To leave "
    "nothing to take off, merge the adapter and keep the base away.",
}
"""What has to be known to read the figures of a kind."""


@dataclass(frozen=True)
class AuditReport:
    """Every attack that was run on an erasure.

    Attributes:
        concept: the erased name.
        aliases: its other names.
        seed: of everything that was drawn.
        sides: which models were attacked: "base", "erased" and "oracle".
        whose: what the concept's pictures were.
        truth: how it is known what the control's pictures show.
        unattacked: the erased model, its base and the oracle before any attack.
        outcomes: attack by attack.
        unknown: attacks that could not be run, and why.
        settings: the attackers' budgets and how many pictures there were.
        seconds: wall time by kind of attack.
    """

    concept: str
    aliases: tuple[str, ...]
    seed: int
    sides: tuple[str, ...]
    whose: str
    truth: str
    unattacked: Outcome | None
    outcomes: tuple[Outcome, ...]
    unknown: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)

    def __getitem__(self, key: str) -> Outcome:
        """The outcome of one attack.

        Raises:
            KeyError: it was not run; with the reason, where it is known.
        """
        for outcome in self.outcomes:
            if outcome.key == key:
                return outcome
        why = self.unknown.get(key) or self.unknown.get(key.split("/")[0])
        raise KeyError(f"{key!r} was not run; {why or f'there are {[o.key for o in self.outcomes]}'}")

    def verdicts(self) -> dict[str, dict[str, int]]:
        """For each kind of attack, how often each verdict was given."""
        found: dict[str, dict[str, int]] = {}
        for outcome in self.outcomes:
            counts = found.setdefault(outcome.kind, {})
            counts[outcome.verdict] = counts.get(outcome.verdict, 0) + 1
        return found

    def card_rows(self) -> list[dict[str, Any]]:
        """What a model card tells: for each kind of attack figures of its strongest variant, without any name.

        Of the variants that could be judged the strongest counts, and the figures of all that could: `robust` is the
        share of them that are robust or got no more than from the oracle, `judged` that of those that could be judged.
        Of a kind that was not run there is the name alone. `stand-ins` is 1 where other pictures were measured on in
        the place of the concept's.
        """
        rows: list[dict[str, Any]] = []
        for kind, name in KINDS.items():
            some = [outcome for outcome in self.outcomes if outcome.kind == kind]
            judged = [outcome for outcome in some if outcome.verdict not in (NOT_JUDGED, UNSURE)]
            if not some:
                rows.append({"name": name})
                continue
            figures = [len(judged) / len(some)]
            if judged:
                strongest = max(judged, key=lambda outcome: outcome.readings[ERASED].told.value)
                worst = strongest.readings
                figures.append(sum(o.verdict in (ROBUST, AS_ORACLE) for o in judged) / len(judged))
                figures += [worst[side].told.value if side in worst else nan for side in (BASE, ERASED, ORACLE)]
                control = worst[ERASED].control
                figures.append(nan if control is None else control.value)
                # texts are about the concept itself, whatever the pictures are
                stood_in = self.whose != OF_THE_CONCEPT and kind != "text"
                figures += [strongest.units, 1.0 if stood_in else nan]
            told = zip(CARD_FIGURES, figures, strict=False)
            rows.append({"name": name, **{key: figure for key, figure in told if figure == figure}})
        return rows

    def to_dict(self) -> dict[str, Any]:
        """Everything, in JSON's types."""
        return {"confidence": CONFIDENCE, "verdicts": self.verdicts(), **asdict(self)}

    def to_markdown(self, figures: tuple[str, ...] = ()) -> str:
        """The report for a reader.

        Args:
            figures: files that lie beside it.
        """
        lines = [f"# Audit: {markdown(self.concept)}", ""]
        lines += [
            f"Attacked: {', '.join(self.sides)}. Measured on {markdown(self.whose)}; other concepts are known by "
            f"{markdown(self.truth)}. "
            f'{round(100 * CONFIDENCE)} % intervals, drawn over pictures. "Told" is the share of the concept\'s '
            "pictures that are called by its name less that of other pictures, under the same attack; for probes and "
            "membership it is the AUC. The control is the same attack aimed at other concepts.",
            "",
        ]
        if ORACLE not in self.sides:
            lines += [
                "There is no oracle: whether a model that never knew the concept would do the same is not known. What "
                "relearning brings back is not compared with teaching the concept from scratch.",
                "",
            ]
        if self.unattacked is not None:
            lines += _table([self.unattacked], self.sides)
        for kind, name in KINDS.items():
            some = [outcome for outcome in self.outcomes if outcome.kind == kind]
            if some:
                lines += [f"## {name[0].upper()}{name[1:]}", ""]
                lines += [NOTES[kind], ""] if kind in NOTES else []
                lines += _table(some, self.sides)
                lines += [line for file in figures if file == f"{kind}.png" for line in (f"![{name}]({file})", "")]
        if "attacks.png" in figures:
            lines += ["## All attacks", "", "![all attacks](attacks.png)", ""]
        lines += ["## Verdicts", "", "| verdict | |", "|---|---|"]
        lines += [f"| {verdict} | {meaning} |" for verdict, meaning in VERDICTS.items()]
        if self.unknown:
            lines += ["", "## Not run", "", "| attack | why |", "|---|---|"]
            lines += [f"| {markdown(what)} | {markdown(why)} |" for what, why in self.unknown.items()]
        return "\n".join(lines) + "\n"

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Writes `audit.json`, `audit.md` and the figures; what was there of an earlier audit is replaced.

        Everything is written beside and renamed. Without matplotlib there are no figures, and `audit.md` says so.

        Raises:
            OSError: it can't be written.
        """
        folder = Path(folder)
        with whole_folder(folder, overwrite=True) as draft:
            drawn: tuple[str, ...] = ()
            note = ""
            try:
                for file, draw in plots(self.outcomes).items():
                    draw(draft / file)
                    drawn += (file,)
            except ImportError as error:
                note = f"\nThere are no figures: {error}\n"
            write_json(draft / FILES[0], self.to_dict())
            (draft / FILES[1]).write_text(self.to_markdown(drawn) + note, encoding="utf-8")
        for file in FIGURES:
            if file not in drawn:
                (folder / file).unlink(missing_ok=True)
        return folder

    def table(self) -> Table:
        """Attacks and verdicts, for `rich`."""
        percent = round(100 * CONFIDENCE)
        table = Table(
            title=printable(f"{self.concept}: what attacks got, with {percent} % intervals"), title_justify="left"
        )
        table.add_column("attack")
        for column in (*self.sides, "control"):
            table.add_column(column, justify="right")
        table.add_column("verdict")
        for outcome in (*([self.unattacked] if self.unattacked else []), *self.outcomes):
            told = [outcome.readings[side].told.told(2) if side in outcome.readings else "" for side in self.sides]
            control = outcome.readings[ERASED].control
            label = printable(f"{outcome.kind}: {outcome.label}" if outcome.kind in KINDS else outcome.label)
            table.add_row(label, *told, "" if control is None else f"{control.value:.2f}", printable(outcome.verdict))
        return table

    def unknown_table(self) -> Table:
        """What was not run and why, for `rich`."""
        return reasons_table("what was not run", "attack", self.unknown)


def _table(outcomes: list[Outcome], sides: tuple[str, ...]) -> list[str]:
    columns = [*(f"told, {side}" for side in sides), *(["beside the oracle"] if ORACLE in sides else [])]
    columns += ["recovery", "control, base", "control, erased", "verdict", "why"]
    lines = ["| attack | " + " | ".join(columns) + " |", "|" + "---|" * (len(columns) + 1)]
    for outcome in outcomes:
        erased = outcome.readings[ERASED]
        cells = [outcome.readings[side].told.told(2) if side in outcome.readings else "" for side in sides]
        if ORACLE in sides:
            cells.append("" if outcome.beyond_oracle is None else outcome.beyond_oracle.told(2))
        cells.append("" if erased.recovery is None else erased.recovery.told(2))
        for side in (BASE, ERASED):
            control = outcome.readings[side].control
            cells.append("" if control is None else f"{control.value:.2f}")
        lines.append(
            "| " + " | ".join([markdown(outcome.label), *cells, outcome.verdict, markdown(outcome.why)]) + " |"
        )
    return [*lines, ""]
