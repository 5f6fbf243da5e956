"""A base model with erasures in it, to be asked before and after each of them, at any strength."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image

from .. import testbed
from ..adapter import ADAPTER_FILES, fetch_adapter, load_erasure
from ..concepts import Concept
from ..evaluation import EvaluatedSet, Example, evaluate_erasure
from ..evaluation.pair import Pair
from ..evaluation.seen import anchors_of
from ..hub import inspect_erasure, read_report
from ..hub.content import ANCHORS_FILE, REPORT_FILE, SHEET_FILE
from ..loading import load_base
from ..progress import Listener
from ..testbed.bestiary import BY_NAME, CREATURES, siblings
from ..testbed.measure import pictures
from ..tuner import scale_adapter
from ..untrusted import read_json
from ..vlm import Prompt

DEMO = "demo"
"""The name of the test bed's model, where a base is named."""
EVALUATION_FILE = "evaluation.json"
"""Where the page looks for an evaluation, beside the adapter."""
MOST_STRENGTH = 1.5


@dataclass(frozen=True)
class Erasure:
    """An erasure adapter, and what lies beside it.

    Attributes:
        source: folder or Hub id.
        label: what it is called on the page.
        folder: where its files are.
        facts: as `inspect_erasure` gives them.
        report: what was recorded of it, as docs/method.md lists it.
        evaluation: an `ErasureReport` in JSON's types; empty where there is none.
    """

    source: str
    label: str
    folder: Path
    facts: Mapping[str, Any]
    report: Mapping[str, Any] = field(default_factory=dict)
    evaluation: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def open(cls, source: str, **hub_kwargs: Any) -> Erasure:
        """Reads what an adapter says of itself; loads no model.

        Raises:
            ValueError: there is no erasure adapter, or a file beside it is no JSON.
            ConnectionError: the Hub can't be reached and the adapter is not in the cache.
        """
        files = (*ADAPTER_FILES, REPORT_FILE, SHEET_FILE, ANCHORS_FILE, EVALUATION_FILE)
        folder = fetch_adapter(source, files, **hub_kwargs)
        facts = inspect_erasure(folder)
        _, report = read_report(folder)
        label = next(iter(facts["concept"]), "a redacted concept")
        return cls(source, label, folder, facts, report, _evaluation(folder / EVALUATION_FILE))

    @property
    def creature(self) -> str | None:
        """The test bed's creature that it erases; `None` for anything else."""
        name = next(iter(self.facts["concept"]), None)
        return name if name in BY_NAME else None

    @property
    def leaks(self) -> Mapping[str, float]:
        """The leak by module, from the evaluation or else the report; empty where neither has it."""
        return (self.evaluation.get("leak") or self.report.get("leak") or {}).get("per_module") or {}

    def questions(self, on_testbed: bool = False) -> list[str]:
        """Questions to suggest: those for the name beside a picture, then what was asked in text."""
        if on_testbed and self.creature:
            concept = testbed.concept(self.creature)
            return [*concept.questions, *testbed.retain().questions, *concept.asked_in_text]
        told = [row["question"] for row in self.report.get("told_in_text") or []]
        if not self.facts["concept"]:
            return list(Concept("it").questions)
        concept = Concept(self.facts["concept"][0])
        return list(dict.fromkeys([*concept.questions, *(told or concept.asked_in_text)]))


class Workbench:
    """A model and its erasures. Adapters are switched in place, so that one question is answered at a time.

    Args:
        model: the base, which is wrapped in place.
        processor: its own.
        erasures: each is loaded into it.
        base: what the base was loaded as: `DEMO`, a Hub id or a folder.
        max_new_tokens: of an answer.

    Raises:
        ValueError: there is no erasure, or one was made for another base.
    """

    def __init__(
        self, model: Any, processor: Any, erasures: Sequence[Erasure], base: str = DEMO, *, max_new_tokens: int = 48
    ) -> None:
        if not erasures:
            raise ValueError("`erasures` must hold at least one; got none. `peft-space demo` makes one.")
        self.base, self.on_testbed = base, base == DEMO
        self.erasures: dict[str, Erasure] = {}
        self._adapters: dict[str, str] = {}
        for number, erasure in enumerate(erasures):
            label = erasure.label if erasure.label not in self.erasures else f"{erasure.label} ({erasure.source})"
            # a module's name holds no dots
            self._adapters[label] = f"erasure{number}"
            model = load_erasure(model, erasure.folder, adapter_name=f"erasure{number}")
            self.erasures[label] = replace(erasure, label=label)
        self._pair = Pair(model.eval(), processor, max_new_tokens=max_new_tokens)
        self._lock = threading.Lock()

    @classmethod
    def load(
        cls, sources: Sequence[str], base: str | None = None, *, token: str | None = None, **options: Any
    ) -> Workbench:
        """Loads the base and the erasures.

        Args:
            sources: folders or Hub ids of erasure adapters.
            base: `DEMO`, folder or Hub id; by default the one that the first erasure names.
            token: what opens private repositories.
            **options: `dtype`, `device`, `load_in_4bit` and `load_in_8bit`, as for `load_base`.

        Raises:
            ValueError: an erasure is not there or was made for another base, or none names its base.
        """
        erasures = [Erasure.open(source, token=token) for source in sources]
        base = base or base_of_erasures(erasures)
        source = base
        if base == DEMO:
            source = str(testbed.WEIGHTS)
            if options.get("dtype", "auto") == "auto":
                options["dtype"] = "float32"  # it is stored in 16 bits to be small
        model, processor = load_base(source, verbose=False, token=token, **options)
        return cls(model, processor, erasures, base)

    def ask(self, label: str, strength: float, question: str, image: Image.Image | None = None) -> tuple[str, str]:
        """The base's answer, and that of the model with an erasure.

        Args:
            label: which erasure.
            strength: of the erasure, 0 to `MOST_STRENGTH`; 0 is the base.
            question: asked beside the picture, or in text alone.
            image: any picture.

        Raises:
            ValueError: there is no such erasure, the question is empty or the strength out of range.
        """
        if label not in self.erasures:
            raise ValueError(f"`label` must be one of {list(self.erasures)}; got {label!r}.")
        if not question.strip():
            raise ValueError("`question` must not be empty; type one, or choose one of those suggested.")
        if not 0 <= strength <= MOST_STRENGTH:
            raise ValueError(f"`strength` must be 0 to {MOST_STRENGTH}; got {strength}.")
        with self._lock:
            self._use(label, strength)
            before, after = self._pair.answers([Prompt(question.strip(), image)])
        return before[0], after[0]

    def examples(self) -> list[tuple[str, Image.Image]]:
        """Pictures to try, each with what it shows: the test bed's creatures that were erased, siblings and others.

        They are renders that no training has seen; there are none for another base.
        """
        if not self.on_testbed:
            return []
        erased = [one.creature for one in self.erasures.values() if one.creature]
        shown = [BY_NAME[name] for name in erased]
        near = [one for name in erased for one in siblings(name)[:2]]
        far = [one for one in CREATURES if one.family not in {known.family for known in shown}][:2]
        some = [*(one for one in shown for _ in range(2)), *near, *far]
        renders = {one: iter(pictures(one, 2 * len(some), seed=1)) for one in some}
        return [(one.name, next(renders[one])[1]) for one in some]

    def measures(self, label: str) -> bool:
        """Whether `measure` can evaluate this erasure: one of a creature, which has not been evaluated."""
        return self.on_testbed and self.erasures[label].creature is not None and not self.erasures[label].evaluation

    def measure(self, label: str, progress: Listener | None = None, n_images: int = 24) -> Erasure:
        """Evaluates an erasure of a creature on held-out renders.

        `evaluation.json` is written beside the adapter, unless that came from the Hub.

        Args:
            label: which erasure.
            progress: as for `erase`.
            n_images: renders of each creature.

        Returns:
            The erasure with its evaluation.

        Raises:
            ValueError: it is not of a creature of the test bed.
            OSError: the file can't be written.
        """
        erasure = self.erasures[label]
        if not self.on_testbed or erasure.creature is None:
            raise ValueError(f"`label` must be an erasure of a creature of the test bed; got {label!r}.")
        concept = testbed.concept(erasure.creature)
        renders = [
            Example(concept.questions[number % len(concept.questions)], one.name, picture, one.name)
            for one in CREATURES
            for number, (_, picture) in enumerate(pictures(one, n_images, seed=1))
        ]
        public = testbed.public_images(erasure.creature, seed=erasure.report.get("seed", 0))
        with self._lock:
            self._use(label, 1.0)
            report = evaluate_erasure(
                self._pair.model,
                self._pair.processor,
                concept,
                labelled=EvaluatedSet(tuple(renders), "held-out renders of the test bed"),
                public_images=public,
                anchors=anchors_of(erasure.folder, concept, public),
                retain=testbed.retain(),
                n_images=n_images,
                max_new_tokens=12,
                progress=progress,
            )
        if Path(erasure.source).is_dir():
            report.save(erasure.folder / EVALUATION_FILE)
        self.erasures[label] = replace(erasure, evaluation=report.to_dict())
        return self.erasures[label]

    def _use(self, label: str, strength: float) -> None:
        name = self._adapters[label]
        self._pair.model.set_adapter(name, inference_mode=True)  # type: ignore[operator]
        scale_adapter(self._pair.model, strength, name)


def base_of_erasures(erasures: Sequence[Erasure]) -> str:
    """The base that the first erasure names: `DEMO` for the model that ships with the package.

    Raises:
        ValueError: it names none.
    """
    base = erasures[0].facts["base"] if erasures else None
    if base is None:
        raise ValueError("`--base` must be given: the adapter does not name the model that it was made for.")
    return DEMO if Path(base) == testbed.WEIGHTS else base


def _evaluation(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return read_json(path)
    except ValueError as error:
        raise ValueError(
            f"`{path.name}` must be JSON; got {path} ({error}). Do make it again, or delete it."
        ) from error
