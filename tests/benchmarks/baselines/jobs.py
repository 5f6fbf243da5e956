"""One process's work: a contender's settings on one case, each of the models sitting the exam."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from peft_space import testbed

from .cases import Case, prepare
from .contenders import Setting, contenders


def make_case(target: str, seed: int, n_images: int, folder: Path) -> dict[str, Any]:
    """`prepare` with what it cost."""
    began = time.process_time()
    return prepare(target, seed, n_images, folder) | {"cpu_seconds": round(time.process_time() - began, 1)}


def compete(name: str, prepared: Mapping[str, Any], settings: Sequence[Setting], folder: Path) -> list[dict[str, Any]]:
    """A row for each setting: the exam's marks and what it cost, the training's share included."""
    began = time.process_time()
    model, processor = testbed.load()
    given = {field.name: prepared[field.name] for field in dataclasses.fields(Case) if field.name in prepared}
    case = Case(**given, folder=folder)
    exam = testbed.Exam(case.target, seed=case.seed, n_images=prepared["images"])
    rows = []
    for setting, forgetful, steps in contenders()[name].models(model, processor, case, settings):
        marks, _ = exam.sit(forgetful, processor)
        spent = time.process_time() - began
        began += spent
        rows.append(
            {
                "method": name,
                "target": case.target,
                "seed": case.seed,
                "setting": setting,
                "steps": steps,
                "marks": dataclasses.asdict(marks),
                "cpu_seconds": round(spent, 1),
            }
        )
    return rows


def sit_oracle(prepared: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """What the model in `folder`, which never saw the target, answers in the same exam."""
    target, seed = prepared["target"], prepared["seed"]
    exam = testbed.Exam(target, seed=seed, n_images=prepared["images"])
    marks, _ = exam.sit(*testbed.load(folder))
    return {"method": "retrain oracle", "target": target, "seed": seed, "marks": dataclasses.asdict(marks)}
