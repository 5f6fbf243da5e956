"""Loading a vision-language model to erase from: in 16 or 32 bits, or with its language model in 8 or 4."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import nn
from transformers import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    BitsAndBytesConfig,
    PreTrainedModel,
)

from ._peft import quantised_modules
from .processes import place
from .tuner import describe_targets, language_model_targets
from .vlm import DTYPES


def load_base(
    model_id: str | Path,
    *,
    load_in_4bit: bool = False,
    load_in_8bit: bool = False,
    dtype: str | torch.dtype = "auto",
    device: str | None = None,
    verbose: bool = True,
    **hub_kwargs: Any,
) -> tuple[PreTrainedModel, Any]:
    """Loads a vision-language model, frozen and in evaluation mode, and its processor.

    In few bits only the language model's attention and MLP are stored (NF4 with double quantisation, or LLM.int8): the
    vision tower, the projector, embeddings, norms and the output head stay in `dtype`, by full name. What the
    projector says of a picture and of a name is what anchors are chosen by, and none of it is large. Nothing is
    upcast: train with `bf16=True` or in the dtype that was loaded.

    Args:
        model_id: folder or Hub id.
        load_in_4bit: see above; needs bitsandbytes.
        load_in_8bit: see above; needs bitsandbytes.
        dtype: "auto" (as it is stored), "float32", "bfloat16" or "float16".
        device: where to; by default an accelerator, if there is one.
        verbose: say on standard error which modules are stored in few bits.
        **hub_kwargs: `revision`, `token`, `cache_dir` and so on.

    Raises:
        ValueError: `model_id` is no folder and no Hub id, both kinds of few bits were asked for, or modules other than
            those that should be came out quantised.
        TypeError: the model is asked in text only.
        ImportError: bitsandbytes is needed and not installed.
    """
    if load_in_4bit and load_in_8bit:
        raise ValueError("`load_in_4bit` and `load_in_8bit` must not be given together; choose one.")
    wanted = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if wanted is None:
        raise ValueError(f"`dtype` must be one of {', '.join(DTYPES)}; got {dtype!r}.")
    config = _config(str(model_id), hub_kwargs)
    if device is None:
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        device = accelerator.type if accelerator is not None else "cpu"
        if place()[1] > 1:
            # of several processes each has one of its own
            device = str(PartialState().device)
    options: dict[str, Any] = {"dtype": wanted, **hub_kwargs}
    targets: list[str] = []
    if load_in_4bit or load_in_8bit:
        if find_spec("bitsandbytes") is None:
            raise ImportError(
                "`load_in_4bit` and `load_in_8bit` need bitsandbytes, which is not installed: "
                "`pip install 'peft-space[4bit]'`."
            )
        with torch.device("meta"):
            skeleton = AutoModelForImageTextToText.from_config(config)
        targets = language_model_targets(skeleton)
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=load_in_4bit,
            load_in_8bit=load_in_8bit,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=wanted if isinstance(wanted, torch.dtype) else config.dtype or torch.float32,
            llm_int8_skip_modules=spared(skeleton, targets),
        )
        options["device_map"] = {"": device}
    model = AutoModelForImageTextToText.from_pretrained(model_id, **options)
    if targets:
        _guard(model)
        check_quantised(model, targets)
        if verbose:
            bits = 4 if load_in_4bit else 8
            print(f"stored in {bits} bits:\n{describe_targets(targets)}", file=sys.stderr)
    else:
        model = model.to(device)
    return model.requires_grad_(False).eval(), AutoProcessor.from_pretrained(model_id, **hub_kwargs)


def spared(model: nn.Module, targets: list[str]) -> list[str]:
    """The uppermost modules with linear layers of which none is in `targets`, by full name: a skip list.

    bitsandbytes ignores a short name without a word, and any list takes the place of the automatic one, which spares
    the output head.
    """
    wanted = set(targets)

    def below(name: str, module: nn.Module) -> list[str]:
        names = [child for child, part in module.named_modules(prefix=name) if isinstance(part, nn.Linear)]
        if not names:
            return []
        if not wanted.intersection(names):
            return [name]
        return [
            spare
            for child, part in module.named_children()
            for spare in below(f"{name}.{child}" if name else child, part)
        ]

    return below("", model)


def check_quantised(model: nn.Module, targets: list[str]) -> None:
    """Raises where other modules than `targets` are stored in few bits.

    Raises:
        ValueError: with the modules that should not be, or that should.
    """
    found = set(quantised_modules(model))
    for names, what in (
        (found - set(targets), "are stored in few bits and should not be"),
        (set(targets) - found, "should be stored in few bits and are not"),
    ):
        if names:
            raise ValueError(f"`model_id` came out wrong: {len(names)} modules, such as {min(names)!r}, {what}.")


def _guard(model: nn.Module) -> None:
    """Keeps bitsandbytes from repacking 4-bit weights on processors with AVX512-BF16.

    One forward pass in evaluation mode packs a weight anew, after which gradients and merges are silently wrong
    (bitsandbytes issue 2078).
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            setattr(module, "support_avx512bf16_for_cpu", False)  # noqa: B010


def _config(source: str, hub_kwargs: dict[str, Any]) -> Any:
    if not Path(source).exists() and (
        source.startswith((".", "~")) or Path(source).is_absolute() or source.count("/") > 1
    ):
        raise ValueError(f"`model_id` must be a folder that exists or a Hub model id 'owner/name'; got {source!r}.")
    config = AutoConfig.from_pretrained(source, **hub_kwargs)
    # transformers' own error lists every architecture that it knows
    if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        raise TypeError(
            f"`model_id` must be a vision-language model; got {source!r} of type {config.model_type!r}, which is "
            "asked in text only. SPACE finds its anchors by looking at pictures with the model."
        )
    return config
