"""Independent runs of a benchmark side by side, a process each, with what is there already kept on disk."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch


def parser(about: str | None, creatures: Sequence[str]) -> argparse.ArgumentParser:
    """The command line of a benchmark that has a run for each creature."""
    options = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("output", type=Path)
    options.add_argument("--creatures", nargs="+", default=list(creatures))
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--processes", type=int, default=2)
    return options


def read(output: Path) -> list[Any]:
    """The rows that earlier calls left."""
    return json.loads(output.read_text()) if output.exists() else []


def write(output: Path, rows: list[Any]) -> None:
    """Writes beside and renames, so that a cut leaves the last whole file."""
    beside = output.with_suffix(".tmp")
    beside.write_text(json.dumps(rows, indent=1))
    beside.replace(output)


def gather(
    run: Callable[..., Any],
    jobs: Iterable[tuple[Any, ...]],
    output: Path,
    rows: list[Any],
    processes: int,
    runs_a_process: int = 1,
) -> Iterator[Any]:
    """Calls `run(*job)` for each job, and appends what comes back to `rows` and to `output` as soon as it is there.

    One thread a process: two processes of one thread are faster than one of two. A process a run: its peak memory is
    its own, and nothing is left over from the run before. Where runs are short and many, several a process save the
    time that it takes to start one.
    """
    waiting = list(jobs)
    if not waiting:
        return
    os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    with multiprocessing.get_context("spawn").Pool(processes, maxtasksperchild=runs_a_process) as pool:
        for row in pool.imap_unordered(_call, [(run, job) for job in waiting]):
            rows.append(row)
            write(output, rows)
            yield row


def _call(call: tuple[Callable[..., Any], tuple[Any, ...]]) -> Any:
    torch.set_num_threads(1)
    run, job = call
    return run(*job)
