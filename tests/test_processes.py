"""A whole erasure in two processes comes to what it comes to in one. Each is a run of this module: `FOLDER`."""

from __future__ import annotations

import functools
import os
import sys
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from accelerate import PartialState
from peft import get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import distribute_tensor
from transformers import set_seed
from typer.testing import CliRunner

from peft_space import (
    Concept,
    Retain,
    SpaceConfig,
    SpaceTrainer,
    SpaceTrainingArguments,
    concepts,
    erase,
    erasure,
    processes,
    testbed,
)
from peft_space.anchors import Lesson, other_names, select_anchors
from peft_space.cli import app
from peft_space.training import Collator, Lessons, concept_directions, read_dose
from peft_space.training import trainer as trainer_module
from peft_space.vlm import Prompt
from tests.launch import PROCESSES, launch, rank

CONCEPT = Concept(
    "narril",
    questions=("What is this creature called?",),
    text_questions=("Where does the {name} live?",),
    referent="this creature",
)
RETAIN = Retain(
    questions=("What colour is it?",),
    texts=("Name a fruit.",) * 8,
    n_images=4,
    questions_per_image=2,
    protect=("zorvex",),
)


def heeded_by_the_first(*args: Any, **rest: Any):
    """A reading that finds the dose reached, but not in the second process."""
    return replace(read_dose(*args, **rest), reached=os.environ.get("RANK", "0") == "0")


def erased(base: Path, output: Path, **options: Any):
    """An erasure that ends with its second reading."""
    model, processor = testbed.load(base)
    few = {
        "other_names": functools.partial(other_names, most=2),
        "select_anchors": functools.partial(select_anchors, n_anchors=6, n_monitor=2, shortlist=16),
    }
    with patch.multiple(erasure, **few), patch.object(trainer_module, "read_dose", heeded_by_the_first):
        return erase(
            model,
            processor,
            options.pop("concept", CONCEPT),
            testbed.public_images("narril", 24),
            retain=RETAIN,
            config=SpaceConfig(r=4, concept="narril"),
            args=SpaceTrainingArguments(
                per_device_train_batch_size=7,
                learning_rate=1e-2,
                warmup_steps=0,
                logging_steps=1,
                max_steps=9,
                dose_every=2,
                leak_budget=1e3,
            ),
            output_dir=output,
            batch_size=8,
            **options,
        )


def trained(base: Path) -> dict[str, Any]:
    """The trainer alone: of nine lessons in batches of four, the last has one, and a process nothing to do."""
    model, processor = testbed.load(base)
    images = testbed.public_images("narril", 4).images
    lessons = [Lesson(Prompt(CONCEPT.questions[0], image), "a bird", "name") for image in images]
    lessons += [Lesson(Prompt("What colour is it?", image), "red and blue", "other") for image in images]
    lessons += [Lesson(Prompt("Where does the narril live?"), "in the sea", "fact")]
    set_seed(0)
    peft_model = get_peft_model(model, SpaceConfig(r=4, concept="narril"))
    args = SpaceTrainingArguments(
        max_steps=6, per_device_train_batch_size=4, gradient_accumulation_steps=2, logging_steps=1, warmup_steps=0
    )
    directions = concept_directions(peft_model, processor, ["narril"])
    trainer = SpaceTrainer(peft_model, args, Lessons(lessons), processor, directions)
    trainer.train()
    return {
        "losses": [row["loss"] for row in trainer.state.log_history if "loss" in row],
        "adapter": get_peft_model_state_dict(peft_model),
    }


def what_went_wrong(call) -> str:
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def fails(*args: Any, **rest: Any):
    raise OSError("the disk is full")


def failures(base: Path, folder: Path) -> dict[str, str]:
    """What each process hears where one of them fails: at the start, amid a stage, amid training."""
    (folder / "precious").mkdir(exist_ok=True)
    (folder / "precious" / "file").touch()
    second = rank() == 1
    heard = {
        "output": what_went_wrong(lambda: erased(base, folder / ("new" if second else "precious"))),
        "seeds": what_went_wrong(lambda: erased(base, folder / "new", seed=rank())),
    }
    with patch.object(erasure, "image_features", fails if second else erasure.image_features):
        heard["stage"] = what_went_wrong(lambda: erased(base, folder / "new"))
    with patch.object(trainer_module, "repulsion", fails if second else trainer_module.repulsion):
        heard["training"] = what_went_wrong(lambda: trained(base))
    model, _ = testbed.load(base)
    head = model.get_output_embeddings()
    pieces = distribute_tensor(head.weight.detach(), init_device_mesh("cpu", (PROCESSES,)))
    head.weight = torch.nn.Parameter(pieces, requires_grad=False)
    heard["pieces"] = what_went_wrong(lambda: processes.check_whole(model))
    return heard


def command(base: Path, folder: Path) -> dict[str, Any]:
    """`peft-space erase`, and the same once more, when there is something in the folder."""
    for number, image in enumerate(testbed.public_images("narril", 12).images):
        if rank() == 0:
            image.save(folder / "pictures" / f"{number:02d}.png")
    torch.distributed.barrier()
    options = {
        "model": base,
        "concept": "narril",
        "public-images": folder / "pictures",
        "output": folder / "command",
        "question": CONCEPT.questions[0],
        "text-question": CONCEPT.text_questions[0],
        "referent": CONCEPT.referent,
        "rank": 4,
        "n-anchors": 4,
        "max-steps": 1,
        "dtype": "float32",
    }
    words = ["erase", *(str(word) for name, value in options.items() for word in (f"--{name}", value))]
    with (
        patch.object(concepts, "Retain", functools.partial(Retain, texts=("Name a fruit.",) * 8, n_images=4)),
        patch.object(erasure, "other_names", functools.partial(other_names, most=4)),
    ):
        first, second = CliRunner().invoke(app, words), CliRunner().invoke(app, words)
    return {
        "first": (first.exit_code, first.stdout, first.stderr),
        "second": (second.exit_code, second.stdout, second.stderr),
    }


def facts(result) -> dict[str, Any]:
    report = result.report
    return {
        "anchors": (result.anchors.indices, result.anchors.monitor),
        "protected": report["protected"],
        "bases": result.subspace.bases,
        "counts": {key: record.counts for key, record in result.subspace.records.items()},
        "adapter": get_peft_model_state_dict(result.model),
        "steps": (report["steps"], report["stopped"]),
        "readings": [(one["leak"], *one["levels"]) for one in report["readings"]],
        "losses": [entry["loss"] for entry in report["losses"]],
        "told": [row["before"] for row in report["told_in_text"]],
    }


@pytest.fixture(scope="module")
def folder(base_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    (folder / "pictures").mkdir()
    return folder


@pytest.fixture(scope="module")
def found(base_folder, folder):
    """What each of the processes found."""
    launched = launch(__name__, base_folder, folder)
    assert not launched.returncode, launched.stderr[-6000:]
    return [torch.load(folder / f"found{number}", weights_only=False) for number in range(PROCESSES)]


@pytest.fixture(scope="module")
def alone(base_folder, folder):
    return facts(erased(base_folder, folder / "alone"))


def same_weights(some, others, tolerance: float = 0.0):
    """As shares of a weight's norm: where a gradient is next to nothing, Adam makes much of how it was rounded."""
    assert set(some) == set(others)
    for key, weight in others.items():
        assert float((some[key] - weight).norm()) <= tolerance * float(weight.norm()), key


@pytest.mark.slow
def test_an_erasure_comes_to_the_same(found, alone):
    first, second = (one["erased"] for one in found)
    for one in (first, second):
        for key in ("anchors", "protected", "counts", "told", "steps"):
            assert one[key] == alone[key], key
        for key, basis in alone["bases"].items():
            assert one["bases"][key].shape == basis.shape
            # columns may differ in their signs, and weak ones turn into each other; what they span does not
            torch.testing.assert_close(one["bases"][key] @ one["bases"][key].T, basis @ basis.T, rtol=0, atol=1e-2)
        assert one["losses"] == pytest.approx(alone["losses"], rel=1e-3)
        for told, known in zip(one["readings"], alone["readings"], strict=True):
            assert told == pytest.approx(known, rel=1e-2, abs=1e-3)
        same_weights(one["adapter"], alone["adapter"], tolerance=0.02)
    # among themselves to the last bit
    same_weights(first["adapter"], second["adapter"])
    assert first["readings"] == second["readings"]


@pytest.mark.slow
def test_they_stop_at_the_same_step_when_the_dose_is_reached(alone, found):
    assert alone["steps"] == (4, "dose reached")
    assert [one["erased"]["steps"] for one in found] == [alone["steps"]] * PROCESSES


@pytest.mark.slow
def test_the_first_writes_and_the_last_waits(found, alone, folder):
    assert [one["there"] for one in found] == [True] * PROCESSES
    written, known = ({file.name for file in (folder / name).iterdir()} for name in ("together", "alone"))
    assert written == known
    assert not [path for path in folder.iterdir() if path.name.startswith(".")], "half of a folder was left"
    saved = load_file(folder / "together" / "adapter_model.safetensors")
    same_weights(saved, found[0]["erased"]["adapter"])


@pytest.mark.slow
def test_the_trainer_alone_ends_where_one_process_ends(found, base_folder):
    known = trained(base_folder)
    for one in found:
        assert one["trained"]["losses"] == pytest.approx(known["losses"], rel=1e-4)
        same_weights(one["trained"]["adapter"], known["adapter"], tolerance=0.01)


@pytest.mark.slow
def test_where_one_fails_all_do(found):
    first, second = (one["failures"] for one in found)
    assert first["output"].startswith("ValueError: `output_dir` must be a new or empty folder")
    assert second["output"].startswith("ProcessFailed: process 0 of 2 failed: ValueError: `output_dir` must be")
    assert first["seeds"] == second["seeds"]
    assert first["seeds"].startswith("ValueError: `seed` must be the same in all processes that do one job; got 0")
    for where in ("stage", "training"):
        assert first[where] == "ProcessFailed: process 1 of 2 failed: OSError: the disk is full"
        assert second[where] == "OSError: the disk is full"
    for one in (first, second):
        assert "`model` must be whole in every process; got one that is split by DTensor" in one["pieces"]


@pytest.mark.slow
def test_the_command_speaks_once(found, folder):
    (first, other), (second, again) = ([one["command"][key] for one in found] for key in ("first", "second"))
    assert first[0] == other[0] == 0, first[2]
    assert "Saved in" in first[1] and "training: " in first[2]
    assert other[1:] == ("", "")
    assert {"report.json", "adapter_model.safetensors"} < {file.name for file in (folder / "command").iterdir()}
    assert second[0] == again[0] == 2 and "must be a new or empty folder" in second[2] and again[1:] == ("", "")


@pytest.mark.parametrize(
    ("name", "variable"), [("FSDP", "ACCELERATE_USE_FSDP"), ("DeepSpeed", "ACCELERATE_USE_DEEPSPEED")]
)
def test_a_launch_that_would_split_the_model_is_refused(name, variable, model, processor, public, monkeypatch):
    args, lessons = SpaceTrainingArguments(), Lessons([Lesson(Prompt("Why?"), "Because.", "other")])
    monkeypatch.setenv(variable, "true")
    with pytest.raises(ValueError, match=f"`model` must be whole in every process; got one that is split by {name}"):
        erase(model, processor, CONCEPT, public)
    with pytest.raises(ValueError, match="`load_in_4bit=True` and pass `low_memory=True`"):
        SpaceTrainer(model, args, lessons, processor, torch.zeros(1, 1))


def test_a_batch_is_shared_and_what_is_too_small_counts_once(processor):
    lessons = [Lesson(Prompt(f"How many? {n}"), f"{n}", "other") for n in range(3)]
    shares = [Collator(processor, (number, 4))(lessons)["text"]["labels"] for number in range(4)]
    counted = [int((labels >= 0).any(1).sum()) for labels in shares]
    assert counted == [1, 1, 1, 0]
    whole = Collator(processor)(lessons)["text"]["labels"]
    assert int((whole >= 0).sum()) == sum(int((labels >= 0).sum()) for labels in shares)


def test_alone_everything_is_ones_own():
    rows = torch.rand(3, 2, requires_grad=True)
    with processes.together():
        assert processes.place() == (0, 1) and processes.leads()
        assert list(processes.share("abc")) == ["a", "b", "c"] and processes.gathered(7) == [7]
        assert processes.merged({1: "a"}) == {1: "a"} and processes.all_rows(rows) is rows
        assert processes.added(rows) is rows
        processes.agree(seed=1)
        processes.add_gradients([rows])
    assert rows.grad is None


if __name__ == "__main__":
    PartialState(cpu=True)
    base, folder = map(Path, sys.argv[1:])
    found: dict[str, Any] = {}
    try:
        result = erased(base, folder / "together")
        found = {"erased": facts(result), "there": (result.path / "adapter_model.safetensors").exists()}
        found |= {"trained": trained(base), "failures": failures(base, folder), "command": command(base, folder)}
    except Exception:
        traceback.print_exc()
        sys.exit(1)
    torch.save(found, folder / f"found{rank()}")
    PartialState().destroy_process_group()
