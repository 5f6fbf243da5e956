"""Runs a test module in several CPU processes at a time, as `accelerate launch` starts them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

PROCESSES = 2


def launch(module: str, *arguments: str | Path, timeout: float = 500) -> subprocess.CompletedProcess[str]:
    """`python -m module arguments` in each of `PROCESSES`, which know each other; none outlives the call."""
    # "multi_gpu" is what starts several processes by torchrun; "cpu" starts one where there is no MPI
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(PROCESSES)]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    command += ["--main_process_port", str(20_000 + os.getpid() % 20_000)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        [*command, "--module", module, *map(str, arguments)],
        env=environment,
        cwd=Path(__file__).parents[1],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        said = process.communicate(timeout=timeout)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return subprocess.CompletedProcess(process.args, process.returncode, *said)


def rank() -> int:
    """Which of the processes this one is."""
    return int(os.environ["RANK"])
