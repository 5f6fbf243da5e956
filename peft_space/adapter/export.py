"""An erasure adapter as LoRA and nothing else, for tools that know no side file."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from peft_space.adapter.fetch import WEIGHTS_FILE, fetch_adapter, weights_file
from peft_space.adapter.storage import whole_folder
from peft_space.tuner import CONFIG_FILE, SpaceConfig
from peft_space.untrusted import read_json


def export_lora(
    path: str | os.PathLike[str], output: str | os.PathLike[str], overwrite: bool = False, **hub_kwargs: Any
) -> Path:
    """Write the two files that every LoRA loader reads (PEFT, vLLM, llama.cpp's converter ...), and no other.

    The weights are the same bytes. What says which concept was erased, and what the base is recognised by, stays
    behind.

    Args:
        path: folder or Hub id of an erasure adapter.
        output: folder for the LoRA adapter.
        overwrite: replace an adapter in a folder that has files already; other files in it stay.
        **hub_kwargs: for an adapter on the Hub, as for `load_erasure`.

    Returns:
        The folder.

    Raises:
        ValueError: there is no erasure adapter at `path`, or its weights are pickled.
        FileExistsError: the folder has files already and `overwrite` is false.
    """
    folder = fetch_adapter(path, **hub_kwargs)
    weights = weights_file(folder, path, hub_kwargs.get("subfolder"), hub_kwargs.get("token"))
    SpaceConfig.from_pretrained(folder)
    settings = read_json(folder / CONFIG_FILE)
    with whole_folder(output, overwrite) as draft:
        text = json.dumps(settings, indent=2, sort_keys=True)
        (draft / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")
        shutil.copyfile(weights, draft / WEIGHTS_FILE)
    return Path(output)
