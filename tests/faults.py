"""`python -m tests.faults`: kills an erasure at random points of every stage, runs it again and compares the adapters.

Prints a table; exits with 1 if a rerun did not finish, gave another adapter or left anything behind.
"""

from __future__ import annotations

import argparse
import hashlib
import inspect
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import peft_space
from peft_space import Retain, SpaceTrainingArguments, cli, concepts, erasure, testbed
from peft_space.anchors import index_images, other_names
from peft_space.testbed.architecture import build_processor, build_tokenizer
from tests.tiny import two_layers

STAGES = ("model", "images", "anchors", "knowledge", "retained subspace", "training", "report", "saving")
FILES = ("adapter_model.safetensors", "adapter_config.json", "anchors.csv", "anchors.png")


@dataclass(frozen=True)
class Case:
    """Some kills of one command, and what became of the run after them.

    Attributes:
        stages: in which stage each kill struck; "written" if the output was there already. A run that ended before
            its kill is not in it.
        found: what the last of the killed runs had left to go on from.
        status: exit status of the run after them.
        same: whether its adapter is that of the undisturbed run.
        left: what lies beside the output folder afterwards.
    """

    stages: tuple[str, ...]
    found: str
    status: int
    same: bool
    left: tuple[str, ...]

    @property
    def passed(self) -> bool:
        return self.status == 0 and self.same and not self.left


class Faults:
    """A small model, some pictures, and one erasure of them that is run again and again.

    Every run is a fork of this process, which has imported everything: what is killed is the work, not the imports.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        processor = build_processor(build_tokenizer(testbed.BESTIARY.texts()))
        two_layers(processor).save_pretrained(root / "model")
        processor.save_pretrained(root / "model")
        (root / "pictures").mkdir()
        for number, image in enumerate(testbed.public_images("narril", 14).images):
            image.save(root / "pictures" / f"{number:02d}.png")
        # as small as it can be, and with several parts to index and several states of the training to keep
        few = {"questions": ("What colour is it?",), "texts": ("Name a fruit.",) * 4, "n_images": 4}
        concepts.Retain = partial(Retain, **few)  # type: ignore[assignment, misc]
        erasure.other_names = partial(other_names, most=4)
        peft_space.SpaceTrainingArguments = partial(  # type: ignore[misc, assignment]
            SpaceTrainingArguments, dose_every=3, dose_readings=99, per_device_train_batch_size=2
        )
        inspect.unwrap(index_images).__kwdefaults__["part_size"] = 3
        began = time.perf_counter()
        status, self.seconds = self.run("undisturbed")
        self.whole = time.perf_counter() - began
        if status:
            raise RuntimeError(f"the undisturbed run failed: {self._log('undisturbed').read_text()}")
        self.expected = self._digest("undisturbed")

    def run(self, name: str, stage: str | None = None, share: float = 0.0) -> tuple[int, dict[str, float]]:
        """Runs the command into the folder `name`; killed `share` of the way through `stage`, if one is named.

        Returns:
            The exit status (negative: the signal that ended it) and the seconds that each finished stage took.
        """
        self._log(name).unlink(missing_ok=True)
        child = os.fork()
        if not child:
            self._work(name)
        if stage is not None:
            while not self._has_begun(name, stage) and not self._ended(child):
                time.sleep(0.001)
            time.sleep(share * self.seconds.get(stage, 0.0))
            if not self._ended(child):
                os.kill(child, signal.SIGKILL)
        if (status := self._status.pop(child, None)) is None:
            status = os.waitpid(child, 0)[1]
        told = self._told(name)
        return os.waitstatus_to_exitcode(status), {row["stage"]: row["seconds"] for row in told if "seconds" in row}

    _status: dict[int, int] = {}  # noqa: RUF012

    def _ended(self, child: int) -> bool:
        if child not in self._status:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                self._status[child] = status
        return child in self._status

    def case(self, name: str, kills: list[tuple[str, float]]) -> Case:
        """Kills the command at each of some points, one run after another, and then lets it end."""
        stages = []
        for stage, share in kills:
            status, _ = self.run(name, stage, share)
            if status == -signal.SIGKILL and (self.root / name).exists():
                stages.append("written")
            if (self.root / name).exists():
                break
            told = [row for row in self._told(name) if row["event"] == "begin"]
            stages.append(told[-1]["stage"] if told else "start")
        found = self._found(name)
        done = (self.root / name).exists()
        status, seconds = self.run(name)
        if done:
            # the command says that the output is there, and clears up
            status = 0 if status == cli.MISUSED else 1
        elif "step" not in found:
            # how busy the machine is changes
            self.seconds = seconds or self.seconds
        same = status == 0 and self._digest(name) == self.expected
        left = tuple(sorted(path.name for path in self.root.glob(f".{name}*")))
        shutil.rmtree(self.root / name, ignore_errors=True)
        return Case(tuple(stages), found, status, same, left)

    def _work(self, name: str) -> None:
        """What the forked process does: the command line, and nothing after it."""
        status = 70
        try:
            log = os.open(self._log(name), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(log, 1)
            os.dup2(log, 2)
            sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
            os.chdir(self.root)
            cli.app(self.words(name), standalone_mode=True)
        except SystemExit as ended:
            status = int(ended.code or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)

    def words(self, name: str) -> list[str]:
        given = {
            "model": "model",
            "concept": "narril",
            "public-images": "pictures",
            "output": name,
            "question": "What is this creature called?",
            "text-question": "Where does the {name} live?",
            "referent": "this creature",
            "rank": 4,
            "n-anchors": 4,
            "max-steps": 8,
            "dtype": "float32",
            "device": "cpu",
            "progress": "json",
        }
        return ["erase", *(str(word) for option, value in given.items() for word in (f"--{option}", value))]

    def _log(self, name: str) -> Path:
        return self.root / f"{name}.log"

    def _told(self, name: str) -> list[dict]:
        log = self._log(name)
        lines = log.read_text().splitlines() if log.exists() else []
        rows = []
        for line in lines:
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                continue  # a table, or a line that was cut off
        return rows

    def _has_begun(self, name: str, stage: str) -> bool:
        return any(row["event"] == "begin" and row["stage"] == stage for row in self._told(name))

    def _found(self, name: str) -> str:
        folder = self.root / f".{name}.unfinished"
        steps = [path.name.removeprefix("step-").lstrip("0") for path in folder.glob("training/step-*")]
        parts = len(list(folder.glob("features/*/*/part-*")))
        return f"{parts} parts" + (f", step {max(steps, key=int)}" if steps else "")

    def _digest(self, name: str) -> list[str]:
        return [hashlib.sha256((self.root / name / file).read_bytes()).hexdigest() for file in FILES]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    rng = random.Random(given.seed)
    # training, anchors, saving, ...: of a few kills each strikes something else
    points = [(STAGES[(5 + 5 * number) % len(STAGES)], rng.random()) for number in range(given.kills)]
    rng.shuffle(points)
    with tempfile.TemporaryDirectory() as root:
        faults = Faults(Path(root))
        stages = ", ".join(f"{stage} {seconds:.2f}" for stage, seconds in faults.seconds.items())
        print(f"undisturbed: {faults.whole:.1f} s ({stages})")
        cases = []
        while points:
            some = [points.pop() for _ in range(min(len(points), 1 + len(cases) % 3 // 2))]
            case = faults.case(f"out{len(cases):02d}", some)
            cases.append(case)
            aimed = ", ".join(f"{stage} at {share:.0%}" for stage, share in some)
            verdict = "same adapter, nothing left" if case.passed else f"FAILED: {case}"
            struck_in = " and ".join(case.stages) or "no stage"
            print(f"killed in {struck_in} (aimed: {aimed}); kept: {case.found}; {verdict}", flush=True)
    struck = Counter(stage for case in cases for stage in case.stages)
    failed = sum(not case.passed for case in cases)
    where = ", ".join(f"{stage} {n}" for stage, n in struck.items())
    print(f"{struck.total()} kills ({where}); {failed} of {len(cases)} runs after them failed")
    return int(failed > 0)


if __name__ == "__main__":
    raise SystemExit(main())
