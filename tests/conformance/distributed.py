"""A few steps of training over two CPU processes, by DDP and by FSDP2: `distributed(model_name)` runs both.

Each process is a run of this module: `python -m tests.conformance.distributed MODEL FOLDER RANK`.
"""

from __future__ import annotations

import functools
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model_state_dict
from torch import Tensor
from torch import distributed as dist
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from peft_space.vlm import text_decoder
from tests.adapters import train
from tests.conformance.cases import CASES, Case

STEPS, PROCESSES = 3, 2


@functools.cache
def distributed(model_name: str) -> dict[str, dict[str, Any]]:
    """By "ddp" and "fsdp2": the losses, averaged over processes, and the adapter's plain state dict.

    Raises:
        RuntimeError: a process failed; with what it said.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", __name__, model_name, folder]
        processes = [
            subprocess.Popen([*command, str(rank)], stderr=subprocess.PIPE, text=True) for rank in range(PROCESSES)
        ]
        try:
            said = [process.communicate(timeout=300)[1] for process in processes]
        finally:
            for process in processes:
                process.kill()
        if any(process.returncode for process in processes):
            raise RuntimeError("\n".join(text[-3000:] for text in said))
        return {kind: torch.load(Path(folder, kind)) for kind in ("ddp", "fsdp2")}


def model_to_train(case: Case):
    """The same model and adapter in every process."""
    torch.manual_seed(0)
    return case.erased()


def _ddp(case: Case, batch: dict[str, Tensor]):
    model = model_to_train(case)
    losses = train(DistributedDataParallel(model), batch, STEPS)
    return losses, get_peft_model_state_dict(model)


def _fsdp2(case: Case, batch: dict[str, Tensor]):
    model = model_to_train(case)
    mesh = init_device_mesh("cpu", (PROCESSES,))
    for layer in text_decoder(model).layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    losses = train(model, batch, STEPS)
    whole = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    pieces = {key: value.full_tensor() for key, value in get_peft_model_state_dict(model).items()}
    if dist.get_rank() == 0:
        adapter = get_peft_model_state_dict(model, state_dict=whole)
        for key, value in adapter.items():
            torch.testing.assert_close(pieces[key], value)
        return losses, adapter
    return losses, {}


def _main(model_name: str, folder: str, rank: str) -> None:
    case = CASES[model_name]
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=int(rank), world_size=PROCESSES)
    rows = {key: value.chunk(PROCESSES)[int(rank)] for key, value in case.batch(PROCESSES).items()}
    for kind, run in (("ddp", _ddp), ("fsdp2", _fsdp2)):
        losses, adapter = run(case, rows)
        mean = torch.tensor(losses)
        dist.all_reduce(mean)
        if rank == "0":
            torch.save({"losses": (mean / PROCESSES).tolist(), "adapter": adapter}, Path(folder, kind))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    _main(*sys.argv[1:])
