"""The erasures of creatures that the page shows where no adapter is named."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from .. import testbed
from ..demo import default_creature, run_demo
from ..progress import Listener
from ..tuner import SIDE_FILE, SpaceConfig, check_base


def demo_erasures(folder: Path, progress: Listener | None = None) -> list[str]:
    """The adapters in `folder` that were made for the test bed's model; where there is none, one is made first.

    Args:
        folder: `./erased`, where `peft-space demo` saves.
        progress: as for `erase`.

    Returns:
        Their folders, in alphabetical order.
    """
    model, _ = testbed.load()
    found = [file.parent for file in sorted(folder.glob(f"*/{SIDE_FILE}")) if _fits(file.parent, model)]
    if not found:
        found = [folder / default_creature()]
        run_demo(output_dir=found[0], progress=progress)
    return [str(one) for one in found]


def _fits(folder: Path, model: nn.Module) -> bool:
    made_for = SpaceConfig.from_pretrained(folder).base_fingerprint
    try:
        return made_for is not None and bool(check_base(made_for, model))
    except ValueError:
        return False
