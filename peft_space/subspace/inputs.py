"""Watching the inputs of linear layers while the base model runs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from difflib import get_close_matches
from typing import Any, cast

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from peft_space import vlm
from peft_space.processes import gathered

KINDS = {vlm.IMAGE: "image", vlm.TEXT: "text", vlm.TEXT_ONLY: "text_only"}
OTHER = "other"
"""The kind of rows that do not stand for positions of `input_ids`, as in a vision tower."""


def in_width(module: nn.Module) -> int | None:
    """Width of the inputs of a linear layer, quantised, wrapped by LoRA or plain; `None` for any other module."""
    if isinstance(module, BaseTunerLayer):
        return in_width(module.get_base_layer())
    if isinstance(module, Conv1D):
        return module.nx
    if isinstance(module, nn.Linear) or (hasattr(module, "in_features") and hasattr(module, "out_features")):
        return module.in_features  # type: ignore[return-value]
    return None


def linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Every linear layer of the transformers model in `model` by dotted path; one wrapped by an adapter, once."""
    modules = dict(vlm.base_of(model).named_modules())
    inside = tuple(f"{name}." for name, module in modules.items() if isinstance(module, BaseTunerLayer))
    return {
        name: module
        for name, module in modules.items()
        if in_width(module) is not None and not (inside and name.startswith(inside))
    }


def find_targets(model: nn.Module, target_modules: Sequence[str] | None) -> dict[str, nn.Module]:
    """The layers whose inputs are to be kept, by dotted path.

    Args:
        model: a transformers model, or a `PeftModel` around one.
        target_modules: full dotted paths in the transformers model. `None` stands for what the active adapters
            target, or, without an adapter, for the linear layers in the language model's blocks.

    Raises:
        ValueError: a name is not that of a linear layer, or nothing is left to target.
    """
    layers = linear_layers(model)
    if target_modules is not None:
        if isinstance(target_modules, str):
            raise TypeError(
                f"`target_modules` must be a list of full names; got the string {target_modules!r}. Put it in a list."
            )
        for name in target_modules:
            if name not in layers:
                close = get_close_matches(name, layers, n=2, cutoff=0.3)
                raise ValueError(
                    f"`target_modules` must hold full names of linear layers; got {name!r}. "
                    f"Do take them from `model.named_modules()`; the closest here: {', '.join(close) or 'none'}."
                )
        found = {name: layers[name] for name in layers if name in set(target_modules)}
    else:
        adapted = {name: layer for name, layer in layers.items() if isinstance(layer, LoraLayer)}
        found = {name: layer for name, layer in adapted.items() if set(layer.active_adapters) & set(layer.lora_A)}
        if not adapted:
            prefix = vlm.text_decoder_name(model)
            # A block is an entry of a list of blocks, so its path holds a number.
            found = {
                name: layer
                for name, layer in layers.items()
                if _below(name, prefix) and any(part.isdigit() for part in name[len(prefix) :].split("."))
            }
    if not found:
        raise ValueError(
            f"`target_modules` must name at least one linear layer; got {target_modules!r}, which leaves none of the "
            f"{len(layers)} in {type(vlm.base_of(model)).__name__}. Do pass full names from `model.named_modules()`."
        )
    return found


class TokenRows:
    """Which rows of a layer's input are what kind of token, for one batch.

    An input of the language model of shape `(batch, length, d)`, or flattened to `(batch * length, d)`, has one row
    for each position of `input_ids`: those rows are told apart and padding is left out. All rows of any other input
    (vision tower, states attended to across) are of the kind "other".
    """

    def __init__(self, model: nn.Module, batch: Mapping[str, Tensor]) -> None:
        base = vlm.base_of(model)
        self._prefix = vlm.text_decoder_name(model) if hasattr(base, "get_decoder") else ""
        kinds = vlm.token_kinds(model, batch)
        self._shapes = (kinds.shape, torch.Size([kinds.numel()]))
        self._rows = {name: (kinds.flatten() == kind).nonzero()[:, 0] for kind, name in KINDS.items()}
        self._rows = {name: rows for name, rows in self._rows.items() if len(rows)}
        self._all = kinds.numel()

    def split(self, module_name: str, x: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yields each kind present in `x`, `(..., d)`, with its rows `(n, d)`."""
        flat = x.reshape(-1, x.shape[-1])
        if x.shape[:-1] not in self._shapes or not _below(module_name, self._prefix):
            if len(flat):
                yield OTHER, flat
            return
        for kind, rows in self._rows.items():
            if len(rows) == self._all:
                yield kind, flat
                continue
            if rows.device != x.device:
                rows = self._rows[kind] = rows.to(x.device)
            yield kind, flat.index_select(0, rows)


Watcher = Callable[[str, nn.Module, Tensor, Tensor | None, TokenRows], None]
"""Called with a layer's name, the layer, its input `(..., d_in)`, its output `(..., d_out)` and the batch's rows."""


def watch(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    batches: Iterable[Mapping[str, Any]],
    call: Watcher,
    *,
    outputs: bool = False,
    adapters: bool = False,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Runs the base model over `batches` and calls back at every one of `layers`.

    The model is in eval mode without gradients while it runs, its adapters switched off unless they are asked for, and
    is then put back as it was. Logits are computed for one position only and keys and values are not kept, where the
    model allows.

    Args:
        model: a transformers model, or a `PeftModel` around one.
        layers: what to watch, by dotted path.
        batches: model inputs; of several processes, some may have none.
        call: called as each layer is about to run, its output `None`; or, with `outputs`, after it has run.
        outputs: see `call`.
        adapters: run the model as it is, with its active adapters.
        progress: called after each batch with the number done.

    Raises:
        TypeError: a batch is not a mapping.
        ValueError: a batch has no `input_ids`, there is no batch, or an adapter is merged into the model.
    """
    base = vlm.base_of(model)
    device = next(base.parameters()).device
    accepted = inspect.signature(base.forward).parameters
    extra = {k: v for k, v in {"logits_to_keep": 1, "use_cache": False}.items() if k in accepted}
    done = 0
    with vlm.evaluating(model) if adapters else as_base(model), torch.no_grad(), ExitStack() as hooks:
        rows: TokenRows | None = None

        def hook_for(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Tensor | None = None) -> None:
                call(name, module, _input_of(args, kwargs), output, cast(TokenRows, rows))

            return hook

        for name, layer in layers.items():
            register = layer.register_forward_hook if outputs else layer.register_forward_pre_hook
            hooks.callback(register(hook_for(name), with_kwargs=True).remove)
        for batch in batches:
            inputs = _inputs(batch, device)
            rows = TokenRows(model, inputs)
            vlm.speaker(base, inputs)(**inputs, **extra)
            done += 1
            if progress is not None:
                progress(done)
    if not any(gathered(done)):
        raise ValueError("`batches` must hold at least one batch of model inputs; got none. Do pass a list of them.")


@contextmanager
def as_base(model: nn.Module) -> Iterator[None]:
    """Switches `model` to eval mode with its adapters off; all is put back afterwards, `requires_grad` included.

    Raises:
        ValueError: an adapter is merged into the weights, so that the base can't be run.
    """
    layers = [m for m in model.modules() if isinstance(m, BaseTunerLayer | AuxiliaryTrainingWrapper)]
    merged = next((layer for layer in layers if getattr(layer, "merged", False)), None)
    if merged is not None:
        raise ValueError(
            f"`model` must hold its adapters unmerged; got {merged.merged_adapters} merged into the weights. "
            "Do call `model.unmerge_adapter()` first, or compare merged weights with `leak_between`."
        )
    active = [layer for layer in layers if not layer.disable_adapters]
    trainable = [(parameter, parameter.requires_grad) for layer in active for parameter in layer.parameters()]
    training = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        for layer in active:
            layer.enable_adapters(False)
        yield
    finally:
        for layer in active:
            layer.enable_adapters(True)
        for parameter, flag in trainable:
            parameter.requires_grad_(flag)
        for module, flag in training:
            module.training = flag


def _inputs(batch: Any, device: torch.device) -> dict[str, Any]:
    if not isinstance(batch, Mapping):
        raise TypeError(
            f"`batches` must yield mappings of model inputs; got {type(batch).__name__}. "
            "Do pass what the processor or the collator returns."
        )
    if not isinstance(batch.get("input_ids"), Tensor):
        raise ValueError(
            f"`batches` must yield `input_ids` of shape (batch, length) as a tensor; got {sorted(batch)}. "
            'Do call the processor with `return_tensors="pt"`.'
        )
    # Labels would ask for a loss over all positions, and so for all logits.
    return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items() if k != "labels"}


def _input_of(args: tuple, kwargs: dict[str, Any]) -> Tensor:
    return args[0] if args else next(value for value in kwargs.values() if isinstance(value, Tensor))


def _below(name: str, prefix: str) -> bool:
    return not prefix or name.startswith(f"{prefix}.")
