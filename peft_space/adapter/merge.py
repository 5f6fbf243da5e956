"""Writing the erasure into the weights for good, so that no adapter can be taken off again."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import transformers
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from torch import nn
from transformers import AutoConfig, AutoProcessor, PreTrainedModel

from peft_space._peft import present_adapters, quantised_modules
from peft_space.adapter.fetch import fetch_adapter
from peft_space.adapter.storage import load_erasure, whole_folder
from peft_space.tuner import SpaceConfig
from peft_space.vlm import DTYPES


def merge_and_save(
    adapter_dir: str | os.PathLike[str],
    base: str | os.PathLike[str] | nn.Module | None,
    output: str | os.PathLike[str],
    dtype: str = "auto",
    check_base: bool = True,
    overwrite: bool = False,
    **hub_kwargs: Any,
) -> Path:
    """Merge an erasure adapter into its base and save the result, with the processor of the base if it has one.

    Args:
        adapter_dir: folder or Hub id of the erasure adapter.
        base: folder or Hub id of the base, or the model itself (which is changed); `None` for the base the adapter
            names, at the commit that it was made for.
        output: folder for the merged model.
        dtype: `"auto"` (as the base is stored), `"float32"`, `"bfloat16"` or `"float16"`; for a base that is loaded.
        check_base: refuse a base the adapter was not made for.
        overwrite: replace files in a folder that has some already.
        **hub_kwargs: for an adapter on the Hub, as for `load_erasure`.

    Returns:
        The folder.

    Raises:
        ValueError: the base has fewer than 16 bits, is another model, or can't be found; or `dtype` is unknown.
        FileExistsError: the folder has files already and `overwrite` is false.
    """
    if dtype not in DTYPES:
        raise ValueError(f"`dtype` must be one of {', '.join(DTYPES)}; got {dtype!r}.")
    adapter = fetch_adapter(adapter_dir, **hub_kwargs)
    config = SpaceConfig.from_pretrained(adapter)
    source = base if base is not None else config.base_model_name_or_path
    if source is None:
        raise ValueError("`base` must be given: the adapter does not name the model it was made for.")
    if base is None and not Path(adapter_dir).is_dir():
        _check_public(str(source))
    at = _commit(config) if base is None else {}
    model = source if isinstance(source, nn.Module) else _load(source, config, dtype, at)
    _refuse_low_bit(model)
    if present := present_adapters(model):
        raise ValueError(f"`base` must hold no adapter; got {sorted(present)}. Do `unload` them first.")
    with whole_folder(output, overwrite) as folder:
        merged = load_erasure(model, adapter, check_base=check_base).merge_and_unload(safe_merge=True)
        merged.save_pretrained(folder)
        if not isinstance(source, nn.Module):
            _copy_processor(source, folder, at)
    return Path(output)


def _check_public(source: str) -> None:
    """An adapter from the Hub has no say over folders of this machine."""
    try:
        validate_repo_id(source)
    except HFValidationError as error:
        raise ValueError(
            f"`base` must be given: the adapter names {source!r:.200}, which is no Hub id. Do pass the model that it "
            "was made for."
        ) from error


def _commit(config: SpaceConfig) -> dict[str, str]:
    """The commit of the base on the Hub, as an argument; none for a base that came from a folder."""
    fingerprint = config.base_fingerprint or {}
    known = fingerprint.get("revision") and fingerprint.get("name") == config.base_model_name_or_path
    return {"revision": fingerprint["revision"]} if known else {}


def _load(source: str | os.PathLike[str], config: SpaceConfig, dtype: str, at: dict[str, str]) -> nn.Module:
    # an adapter that may be anybody's has named it: none of its code is run
    settings = AutoConfig.from_pretrained(source, trust_remote_code=False, **at)
    if getattr(settings, "quantization_config", None) is not None:
        raise ValueError(
            f"`base` must be stored in 16 or 32 bits; got {source}, which is quantised: rounding the merged weight "
            "would destroy the erasure. Do pass the original checkpoint, and quantise after merging."
        )
    name = (config.auto_mapping or {}).get("base_model_class") or ""
    model_cls: Any = getattr(transformers, name, None)
    is_model = isinstance(model_cls, type) and issubclass(model_cls, PreTrainedModel)
    if not is_model:
        raise ValueError(
            f"`base` must be a model of transformers to be loaded; got {name!r}. Do pass the model itself."
        )
    return model_cls.from_pretrained(source, dtype=DTYPES[dtype], **at)


def _refuse_low_bit(model: nn.Module) -> None:
    quantised = getattr(model, "hf_quantizer", None) is not None
    first = next(iter(quantised_modules(model)), None)
    if quantised or first is not None:
        raise ValueError(
            f"`base` must have 16 or 32 bits; got a quantised model{f' ({first})' if first else ''}: rounding the "
            "merged weight to 4 or 8 bits would destroy the erasure. Do load it without `quantization_config`, and "
            "quantise after merging."
        )


def _copy_processor(source: str | os.PathLike[str], folder: Path, at: dict[str, str]) -> None:
    try:
        processor = AutoProcessor.from_pretrained(source, trust_remote_code=False, **at)
    except (OSError, ValueError):
        # A checkpoint without one is a model all the same.
        return
    processor.save_pretrained(folder)
