"""The demo: erases one creature of the test bed's model, and lets the model sit the exam before and after."""

from __future__ import annotations

import dataclasses
import os
import time
from typing import Any, Literal

from . import testbed
from .erasure import erase
from .progress import Listener, Stages
from .report import peak_memory_mib
from .testbed.bestiary import CREATURES, creature, siblings
from .unfinished import writes_output

# how many of the exam's questions of each topic are shown side by side
_SHOWN = {
    "name": 3,
    "name, held out": 1,
    "description": 1,
    "scene": 1,
    "habitat through the picture": 1,
    "diet through the picture": 1,
    "text, target": 1,
}


def default_creature() -> str:
    """The first creature of the first family that no hyper-parameter was chosen on."""
    return next(known.name for known in CREATURES if known.family not in testbed.TUNING_FAMILIES)


@writes_output
def run_demo(
    concept: str | None = None,
    *,
    output_dir: str | os.PathLike[str],
    text_knowledge: Literal["keep", "erase"] = "keep",
    seed: int = 0,
    load_in_4bit: bool = False,
    load_in_8bit: bool = False,
    model: Any = None,
    processor: Any = None,
    progress: Listener | None = None,
) -> dict[str, Any]:
    """Exam, erasure, exam; the adapter, its contact sheet of anchors and `report.json` are saved in `output_dir`.

    Args:
        concept: one of the test bed's creatures; by default `default_creature()`.
        output_dir: a folder that is empty or does not exist.
        text_knowledge: as for `erase`.
        seed: of the public images, of the erasure and of the exam's renders.
        load_in_4bit: erase from the shipped model with its language model's attention and MLP in 4 bits.
        load_in_8bit: ... or in 8.
        model: a test-bed model to use in the place of the one that ships with the package. It is wrapped in place.
        processor: its processor.
        progress: as for `erase`.

    Returns:
        What docs/method.md lists under "The report", ready for JSON: the marks `before` and `after`, whether the dose
        was `reached`, `leak`, `spectral_entropy`, `seconds`, `peak_memory_mib`, `adapter`, some `answers` and more.

    Raises:
        ValueError: there is no such creature, or the folder is not empty.
    """
    began = time.perf_counter()
    name = creature(concept if concept is not None else default_creature()).name
    stages = Stages(progress)
    with stages.stage("model"):
        if model is None:
            model, processor = testbed.load(load_in_4bit=load_in_4bit, load_in_8bit=load_in_8bit)
        exam = testbed.Exam(name, seed=seed)
        public = testbed.public_images(name, seed=seed)
    with stages.stage("exam before"):
        before, told_before = exam.sit(model, processor)
    result = erase(
        model,
        processor,
        testbed.concept(name),
        public,
        text_knowledge=text_knowledge,
        retain=testbed.retain(),
        seed=seed,
        progress=progress,
    )
    seconds = stages.seconds | result.report["seconds"]
    with stages.stage("exam after"):
        after, told_after = exam.sit(result.model, processor)
    seconds["exam after"] = stages.seconds["exam after"]
    seconds["total"] = round(time.perf_counter() - began, 2)
    kept = "text_knowledge reached monitor_tied stopped steps gauges leak spectral_entropy anchors".split()
    report = {
        "concept": name,
        "seed": seed,
        "before": dataclasses.asdict(before),
        "after": dataclasses.asdict(after),
        **{key: result.report[key] for key in kept},
        "seconds": seconds,
        "peak_memory_mib": peak_memory_mib(),
        "answers": _side_by_side(exam, told_before, told_after),
    }
    return result.save(output_dir, report)


def _side_by_side(
    exam: testbed.Exam, before: list[tuple[str, str]], after: list[tuple[str, str]]
) -> list[dict[str, str]]:
    """Some of the exam's questions, each about another picture, with both answers."""
    sibling = siblings(exam.target)[0].name
    wanted: dict[tuple[str, ...], int] = {(topic,): count for topic, count in _SHOWN.items()}
    wanted["retained", sibling] = 2
    rows: dict[tuple[str, ...], list[dict[str, str]]] = {topic: [] for topic in wanted}
    used = set()
    sheet = exam.sheet
    for prompt, truth, topic, (_, then), (_, now) in zip(
        sheet.prompts, sheet.answers, sheet.topics, before, after, strict=True
    ):
        picture = (topic, id(prompt.image))
        if len(rows.get(topic, ())) >= wanted.get(topic, 0) or picture in used:
            continue
        used.add(picture)
        shown = "(text)" if prompt.image is None else sibling if topic[0] == "retained" else exam.target
        rows[topic].append({"shown": shown, "question": prompt.question, "truth": truth, "before": then, "after": now})
    return [row for some in rows.values() for row in some]
