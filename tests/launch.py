"""Runs a test module in several CPU processes at a time, in the environment that torchrun gives them."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

PROCESSES = 2


@dataclass(frozen=True)
class Run:
    """What one process left: its exit status and what it said."""

    status: int
    out: str
    err: str


def launch(module: str, *arguments: str | Path, timeout: float = 500) -> list[Run]:
    """`python -m module arguments` in each of `PROCESSES`, which know each other; none outlives the call."""
    environment = os.environ | {
        "WORLD_SIZE": str(PROCESSES),
        "LOCAL_WORLD_SIZE": str(PROCESSES),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(20_000 + os.getpid() % 20_000),
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", module, *map(str, arguments)],
            env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            cwd=Path(__file__).parents[1],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(PROCESSES)
    ]
    try:
        said = [process.communicate(timeout=timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [Run(process.returncode, *texts) for process, texts in zip(processes, said, strict=True)]


def rank() -> int:
    """Which of the processes this one is."""
    return int(os.environ["RANK"])
