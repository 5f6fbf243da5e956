"""Which base model an adapter belongs to.

An adapter loads on any checkpoint of the same shape, and on the wrong one it does something else without a word. So
the checkpoint is recognised by a few of its weights. They are kept as values, not hashed: the same checkpoint read as
float32, float16 or bfloat16 differs by rounding, which a comparison with a tolerance forgives and a hash does not.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants
from torch import Tensor, nn

from peft_space._peft import base_parameters, few_bits, merged_adapters
from peft_space.vlm import base_of

_TENSORS = 48
_VALUES = 4
# Half a unit in the last place of bfloat16 is up to 2^-8 of a value; two roundings may add up. Below 6e-5 the step of
# float16 is fixed.
_RELATIVE, _ABSOLUTE = 2**-7, 1e-6

# The numbers that give a network its shape; token ids, dtypes and run-time switches may change on the same checkpoint.
_SHAPE = re.compile(r"(size|dim|heads|layers|depth|width|experts|rank|channels|groups|theta)s?$")


def base_fingerprint(model: nn.Module) -> dict[str, Any]:
    """Recognise the checkpoint under a model, whatever adapters sit on it, on whatever device and in whatever dtype.

    Args:
        model: a transformers model or a `PeftModel` around one.

    Returns:
        JSON types: `config` (hash of the numbers that give the network its shape), `name` and `revision` (where it
        was loaded from, or `None`; the revision is `None` too where the cache holds several) and `weights` (four
        values from each of up to 49 tensors, by name). Weights stored in fewer than 16 bits are left out; a quantised
        model is recognised by what it keeps in 16 bits (embeddings, norms, biases, the skipped modules), and by
        `config` and `name` where nothing is left.

    Raises:
        ValueError: an adapter is merged, so the base weights are not there to be seen.
    """
    base = base_of(model)
    if merged := merged_adapters(base):
        raise ValueError(f"`model` must have no merged adapter; got {sorted(merged)}. Do `unmerge_adapter` first.")
    config = getattr(base, "config", None)
    name = getattr(config, "_name_or_path", None) or None
    return {
        "config": _config_hash(config.to_dict() if config is not None else {}),
        "name": name,
        "revision": getattr(config, "_commit_hash", None) or _cached_commit(name),
        "weights": {name: _sample(tensor) for name, tensor in _chosen(base)},
    }


def check_base(saved: Mapping[str, Any], model: nn.Module) -> str:
    """Make sure that a model is the one a fingerprint was taken of.

    Args:
        saved: what `base_fingerprint` returned then.
        model: a transformers model or a `PeftModel` around one.

    Returns:
        What was compared: `"weights"`, or `"config and name"` where the two have no readable weight in common.

    Raises:
        ValueError: it is another model.
    """
    current = base_fingerprint(model)
    wrong = (
        "`model` must be the base the adapter was made for, {name}; got {found}: {reason}. Do load that base, or pass "
        "`check_base=False` if you know better."
    )
    said = {"name": saved["name"] or "an unnamed model", "found": current["name"] or "an unnamed model"}
    if saved["config"] != current["config"]:
        raise ValueError(wrong.format(**said, reason="a network of another shape"))
    parameters = dict(base_parameters(base_of(model)))
    common = [name for name in saved["weights"] if name in parameters and _readable(parameters[name])]
    for name in common:
        if not _same(saved["weights"][name], _sample(parameters[name])):
            raise ValueError(wrong.format(**said, reason=f"the weights differ, first in {name}"))
    if common:
        return "weights"
    known = None not in (saved["revision"], current["revision"])
    if saved["name"] != current["name"] or (known and saved["revision"] != current["revision"]):
        raise ValueError(
            wrong.format(**said, reason="no weight could be compared (quantised), and the name or revision differs")
        )
    return "config and name"


def _cached_commit(name: str | None) -> str | None:
    """The commit that a model came from, where the cache holds the weights of only one.

    transformers 5.23 keeps it neither in the model nor in its config.
    """
    snapshots = Path(constants.HF_HUB_CACHE, f"models--{(name or '').replace('/', '--')}", "snapshots")
    if not name or not snapshots.is_dir():
        return None
    commits = [folder.name for folder in snapshots.iterdir() if any(folder.glob("*.safetensors"))]
    return commits[0] if len(commits) == 1 else None


def _config_hash(config: dict[str, Any]) -> str:
    def shape(node: Any) -> Any:
        if not isinstance(node, dict):
            return node
        kept = {k: shape(v) for k, v in node.items() if isinstance(v, dict) or _SHAPE.search(str(k))}
        kept.pop("quantization_config", None)
        return kept | ({"model_type": node["model_type"]} if "model_type" in node else {})

    return hashlib.sha256(json.dumps(shape(config), sort_keys=True, default=str).encode()).hexdigest()[:16]


def _readable(tensor: Tensor) -> bool:
    return not few_bits(tensor) and not tensor.is_meta and tensor.numel() > 0


def _chosen(base: Any) -> list[tuple[str, Tensor]]:
    """The input embedding, and the tensors whose names hash lowest: the same choice wherever the same tensors are."""
    readable = {name: tensor for name, tensor in base_parameters(base) if _readable(tensor)}
    by_hash = sorted(readable, key=lambda name: hashlib.sha256(name.encode()).digest())[:_TENSORS]
    embedding = base.get_input_embeddings() if hasattr(base, "get_input_embeddings") else None
    weight = getattr(embedding, "weight", None)
    extra = [name for name, tensor in readable.items() if tensor is weight]
    return [(name, readable[name]) for name in sorted({*by_hash, *extra})]


def _sample(tensor: Tensor) -> list[float]:
    size = tensor.numel()
    places = torch.tensor([int((i + 0.5) * size / _VALUES) for i in range(min(_VALUES, size))], device=tensor.device)
    values = tensor.detach().reshape(-1)[places].double().tolist()
    return [float(f"{value:.6g}") for value in values]


def _same(a: list[float], b: list[float]) -> bool:
    return len(a) == len(b) and all(
        math.isclose(x, y, rel_tol=_RELATIVE, abs_tol=_ABSOLUTE) for x, y in zip(a, b, strict=True)
    )
