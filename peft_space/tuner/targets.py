"""Which modules an erasure adapter goes into: by default the attention and MLP projections of the language model.

Names of layers clash (a vision tower has a `mlp.gate_proj` too), so modules are told apart by where they are, and
named by full path.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from peft_space._peft import base_modules, unwrapped
from peft_space.vlm import base_of, text_decoder, text_decoder_name

# Components of a dotted path. A router chooses experts, an indexer what to attend to: neither is a projection,
# and no gradient reaches it. `gate_proj` is one.
_CHOOSES = re.compile(r"(^|_)(router|gate)$|^indexer$", re.IGNORECASE)
_SENSES = re.compile(r"vision|visual|image|video|audio|speech", re.IGNORECASE)
_PROJECTOR = re.compile(
    r"projector|merger|connector|resampler|perceiver|abstractor|aligner|qformer|(language|modality|mm)_projection",
    re.IGNORECASE,
)
# Classes of modules that stand in the place of attention and are none.
_MIXER = re.compile(r"Mamba|Conv")
_ELSEWHERE = {
    "dit": "PI0: moves the arm of a robot",
    "per_layer_projection": "Gemma 4: a second embedding of each token, added after attention and MLP",
}
"""Components of a path that are no part of the language model's attention and MLP though they lie in its layers."""


def language_model_targets(model: nn.Module, layers: Sequence[int] | int | None = None) -> list[str]:
    """Full paths of the attention and MLP projections of the language model, cross-attention included.

    Routers, indexers, norms, embeddings and the output head are left out, and so are a vision tower or projector that
    sits inside the decoder, and what mixes tokens otherwise than by attention (Mamba, short convolutions). Experts
    that are one fused parameter instead of linear layers can't be targeted and are left out too.

    Args:
        model: a transformers model or a `PeftModel` around one.
        layers: only these layers of the decoder, by index.

    Returns:
        Dotted paths in the transformers model, in its own order.

    Raises:
        ValueError: no such module was found.
    """
    prefix, decoder = text_decoder_name(model), text_decoder(model)
    wanted = {layers} if isinstance(layers, int) else None if layers is None else set(layers)
    names = []
    for name in _linear_names(decoder):
        index = _layer_index(decoder, name)
        foreign = any(p.search(c) for c in name.split(".") for p in (_CHOOSES, _SENSES, _PROJECTOR))
        foreign = foreign or not _ELSEWHERE.keys().isdisjoint(name.split(".")) or _in_mixer(decoder, name)
        if index is not None and not foreign and (wanted is None or index in wanted):
            names.append(f"{prefix}.{name}" if prefix else name)
    return _found(names, "language", f" in layers {sorted(wanted)}" if wanted else "")


def vision_targets(model: nn.Module) -> list[str]:
    """Full paths of the linear layers in the blocks of the vision tower.

    Raises:
        ValueError: the model has no vision tower, or none that is found.
    """
    tower, prefix = _vision_tower(model)
    names = [
        f"{prefix}.{name}"
        for name in _linear_names(tower)
        if _layer_index(tower, name) is not None and not any(_PROJECTOR.search(c) for c in name.split("."))
    ]
    return _found(names, "vision")


def projector_targets(model: nn.Module) -> list[str]:
    """Full paths of the linear layers between the vision tower and the language model.

    Raises:
        ValueError: the model has no projector, or none that is found.
    """
    decoder = text_decoder_name(model)
    names = [
        name
        for name in _linear_names(base_of(model))
        if any(_PROJECTOR.search(c) for c in name.split(".")) and not (decoder and name.startswith(decoder + "."))
    ]
    return _found(names, "projector")


def default_targets(
    model: nn.Module, parts: Iterable[str] = ("language",), layers: Sequence[int] | int | None = None
) -> list[str]:
    """Full paths of the modules an adapter goes into where `target_modules` is not given.

    Args:
        model: a transformers model or a `PeftModel` around one.
        parts: any of `"language"`, `"vision"`, `"projector"`.
        layers: only these layers of the language model, by index.
    """
    of_part = {
        "language": lambda: language_model_targets(model, layers),
        "vision": lambda: vision_targets(model),
        "projector": lambda: projector_targets(model),
    }
    return list(dict.fromkeys(name for part in parts for name in of_part[part]()))


def describe_targets(names: Iterable[str]) -> str:
    """The module names as a short text, one line a kind of module: `model.layers.{0-31}.mlp.up_proj  x32`."""
    kinds: dict[str, list[int]] = {}
    for name in names:
        index = re.search(r"\.(\d+)(?=\.|$)", name)
        kind = name if index is None else f"{name[: index.start()]}.{{}}{name[index.end() :]}"
        kinds.setdefault(kind, []).extend([int(index[1])] if index else [])
    lines = [f"{k.replace('{}', '{' + _ranges(i) + '}')}  x{len(i)}" if i else k for k, i in kinds.items()]
    return "\n".join(lines)


def _linear_names(module: nn.Module) -> list[str]:
    return [name for name, child in base_modules(module) if _is_linear(child)]


def _is_linear(module: nn.Module) -> bool:
    if isinstance(module, (nn.Linear, Conv1D)):
        return True
    # Quantised layers of other libraries (GPTQ, AWQ, HQQ ...) are no `nn.Linear` but are called so and have its width.
    return "Linear" in type(module).__name__ and hasattr(module, "in_features") and not any(module.children())


def _in_mixer(root: nn.Module, name: str) -> bool:
    parents = list(accumulate(name.split(".")[:-1], lambda path, component: f"{path}.{component}"))
    return any(_MIXER.search(type(unwrapped(root.get_submodule(parent))).__name__) for parent in parents)


def _layer_index(root: nn.Module, name: str) -> int | None:
    """Index of the layer that holds the module: its place in the outermost `ModuleList` on the path."""
    components = name.split(".")
    module = root
    for component, following in pairwise(components):
        module = unwrapped(getattr(module, component))
        if isinstance(module, nn.ModuleList):
            return int(following)
    return None


def _vision_tower(model: nn.Module) -> tuple[nn.Module, str]:
    base: Any = base_of(model)
    tower = base.get_encoder(modality="image") if hasattr(base, "get_encoder") else base
    prefix = next((name for name, module in base.named_modules() if module is tower), "")
    if not prefix:
        raise ValueError(
            f"`parts` must not hold 'vision' for a model without a vision tower; got {type(base).__name__}. "
            "Do name `target_modules` yourself if it has one."
        )
    return tower, prefix


def _found(names: list[str], part: str, where: str = "") -> list[str]:
    if not names:
        raise ValueError(f"no {part} modules were found{where}. Do name `target_modules` yourself.")
    return names


def _ranges(indices: list[int]) -> str:
    runs: list[list[int]] = []
    for index in sorted(set(indices)):
        if runs and index == runs[-1][-1] + 1:
            runs[-1].append(index)
        else:
            runs.append([index])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
