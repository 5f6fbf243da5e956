"""An erasure adapter on disk: plain LoRA that loads anywhere, and a side file that makes it SPACE again.

Files appear whole or not at all: they are written into a folder beside the target and renamed into place.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from pathlib import Path
from typing import Any

from peft import PeftModel
from peft.utils import PeftType, load_peft_weights, set_peft_model_state_dict
from torch import nn

from peft_space._peft import adapter_configs, present_adapters, with_names
from peft_space.adapter.fetch import check_weights, fetch_adapter, weights_file
from peft_space.tuner import SpaceConfig, check_base
from peft_space.unfinished import unfinished
from peft_space.vlm import base_of


def save_erasure_adapter(
    peft_model: PeftModel,
    directory: str | os.PathLike[str],
    adapter_name: str = "default",
    side: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write an adapter as plain LoRA (with the projection folded into `A`) and a side file.

    Args:
        peft_model: the model that holds the adapter; it is left as it is.
        directory: where to; created with its parents.
        adapter_name: which adapter.
        side: what to keep beside the adapter, as JSON; added to the `record` of its config.
        overwrite: replace the adapter in a folder that has files already; other files in it stay.

    Returns:
        The folder.

    Raises:
        ValueError: there is no such SPACE adapter, or `side` is not JSON.
        FileExistsError: the folder has files already and `overwrite` is false.
        OSError: the disk is full, for example; nothing is left behind, and an adapter that was there still is.
    """
    config = adapter_configs(peft_model).get(adapter_name)
    if not isinstance(config, SpaceConfig):
        names = sorted(name for name, c in adapter_configs(peft_model).items() if isinstance(c, SpaceConfig))
        raise ValueError(f"`adapter_name` must be one of the SPACE adapters {names}; got {adapter_name!r}.")
    with whole_folder(directory, overwrite) as folder:
        saved = copy(config)
        saved.record = config.record | dict(side or {})
        peft_model.peft_config[adapter_name] = saved
        try:
            peft_model.save_pretrained(str(folder), selected_adapters=[adapter_name])
        finally:
            peft_model.peft_config[adapter_name] = config
        # PEFT writes an empty model card, and puts an adapter that is not called `default` into a subfolder.
        (folder / "README.md").unlink(missing_ok=True)
        if adapter_name != "default":
            for file in (folder / adapter_name).iterdir():
                file.rename(folder / file.name)
            (folder / adapter_name).rmdir()
    return Path(directory)


def load_erasure(
    model: nn.Module,
    path: str | os.PathLike[str],
    adapter_name: str = "default",
    check_base: bool = True,
    is_trainable: bool = False,
    **hub_kwargs: Any,
) -> PeftModel:
    """Load an erasure adapter as a SPACE adapter, with its side file in `model.peft_config[adapter_name]`.

    Args:
        model: the base model, or a `PeftModel` that gets one more adapter. Beside LoRA adapters it is loaded as LoRA
            (PEFT has one type per model) and keeps its `SpaceConfig`; it is not made the active one.
        path: folder or Hub id of the adapter.
        adapter_name: its name in the model.
        check_base: refuse a model that is not the base the adapter was made for. One of the same shape would take the
            adapter without a word and do something else.
        is_trainable: load it for training. The null space is not stored: call `attach_subspace` again before.
        **hub_kwargs: `subfolder` and, for the Hub, `revision`, `token`, `cache_dir` and what else
            `huggingface_hub.snapshot_download` takes. All files come from one commit; in the cache, they are found
            offline too (`HF_HUB_OFFLINE=1`).

    Returns:
        A `PeftModel`; `model` itself if it was one.

    Raises:
        ValueError: the name is taken, the base is another model, or `path` holds no erasure adapter, a damaged one,
            weights that do not fit its config (keys missing or unexpected, sizes that differ), or none but pickled
            ones: those are never read. `model` is left as it was.
        ConnectionError: the Hub can't be reached and the adapter is not in the cache.
    """
    if adapter_name in present_adapters(model):
        raise ValueError(
            f"`adapter_name` must be new; got {adapter_name!r}, which is there already. Do pass another name, or "
            "`delete_adapter` the old one."
        )
    folder = fetch_adapter(path, **hub_kwargs)
    weights = weights_file(folder, path, hub_kwargs.get("subfolder"), hub_kwargs.get("token"))
    config = SpaceConfig.from_pretrained(folder)
    if check_base:
        _check_base(config, model)
    config = with_names(config, base_of(model))
    check_weights(weights, config, model)
    config.inference_mode = not is_trainable
    if not isinstance(model, PeftModel):
        return PeftModel.from_pretrained(
            model, str(folder), adapter_name=adapter_name, is_trainable=is_trainable, config=config
        )
    if model.peft_type == PeftType.LORA:
        config.peft_type = PeftType.LORA
    # `PeftModel.load_adapter` would read the type from the file, and refuse LoRA in a SPACE model.
    model.add_adapter(adapter_name, config)
    set_peft_model_state_dict(model, load_peft_weights(str(folder), device="cpu"), adapter_name=adapter_name)
    if is_trainable:
        model.set_requires_grad(adapter_name)
    return model


@contextmanager
def whole_folder(directory: str | os.PathLike[str], overwrite: bool = False) -> Iterator[Path]:
    """A folder to write into that takes the place of `directory` when all went well, and vanishes otherwise.

    With `overwrite`, files of the same name are replaced one by one and all others stay. What a process that was
    killed has left is swept away.

    Raises:
        FileExistsError: `directory` is a file, or has files in it and `overwrite` is false.
        ValueError: another process is writing it.
    """
    target = Path(directory)
    if target.exists() and not target.is_dir():
        raise FileExistsError(f"`directory` must be a folder; got the file {target}.")
    occupied = target.is_dir() and any(target.iterdir())
    if occupied and not overwrite:
        raise FileExistsError(
            f"`directory` must be new or empty; got {target}. Do pass `overwrite=True` or another one."
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    with unfinished(target, "directory", overwrite) as folder:
        draft = folder / "draft"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir()
        try:
            yield draft
            if not occupied:
                if target.is_dir():
                    target.rmdir()
                draft.rename(target)
                return
            for file in draft.iterdir():
                if file.is_dir():
                    shutil.rmtree(target / file.name, ignore_errors=True)
                file.replace(target / file.name)
        finally:
            shutil.rmtree(draft, ignore_errors=True)


def _check_base(config: SpaceConfig, model: nn.Module) -> None:
    if not config.base_fingerprint:
        raise ValueError(
            "the adapter must say which base it was made for, to be checked. Do pass `check_base=False` if you know."
        )
    check_base(config.base_fingerprint, model)
