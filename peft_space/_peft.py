"""Everything that touches PEFT's internals: how SPACE becomes one of PEFT's methods, and how its layers are found.

PEFT has no hook for methods from outside: `register_peft_method` wants a member of the closed enum `PeftType` and a
prefix that nobody uses, while SPACE *is* LoRA on disk and keeps LoRA's prefix. So the tables are filled here, by
assignment, which makes importing and reloading the package harmless.
"""

from __future__ import annotations

import copy
import functools
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import regex
from peft import LoraConfig, PeftMixedModel, PeftModel, mapping
from peft.tuners import mixed
from peft.tuners.lora import LoraLayer
from peft.tuners.mixed import model as mixed_model
from peft.tuners.tuners_utils import BaseTunerLayer, _maybe_include_all_linear_layers, check_target_module_exists
from peft.utils import PeftType, hotswap
from peft.utils.constants import INCLUDE_LINEAR_LAYERS_SHORTHAND
from peft.utils.other import AuxiliaryTrainingWrapper, get_pattern_key
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from torch import Tensor, nn

PREFIX = "lora_"
MATCHING_SECONDS, MOST_PATTERN = 5.0, 100_000
"""How long the patterns of one field may take to be matched with all modules of a model, and how long each may be."""

_REPEATS = re.compile(r"[*+?{]")
_PLAIN = re.compile(r"[\w.]+")


def extend_peft_type(name: str) -> PeftType:
    """The member `name` of `PeftType`, added on the first call.

    A plain string would not do: transformers asks the type for its `.value`.
    """
    if name in PeftType.__members__:
        return PeftType[name]
    member = str.__new__(PeftType, name)
    member._name_ = name
    member._value_ = name
    # The enum refuses to set an attribute that is already a member, so the maps come after it.
    setattr(PeftType, name, member)
    PeftType._member_names_.append(name)
    PeftType._member_map_[name] = member
    PeftType._value2member_map_[name] = member
    return member


SPACE = extend_peft_type("SPACE")


def register(config_cls: type, model_cls: type) -> None:
    """Make PEFT know the method: its config, its tuner, mixed models and hot-swapping.

    Args:
        config_cls: the config class of the method.
        model_cls: the tuner class of the method.

    Raises:
        ImportError: another package has already registered a method called SPACE.
    """
    known = mapping.PEFT_TYPE_TO_CONFIG_MAPPING.get(SPACE)
    if known is not None and known.__module__ != config_cls.__module__:
        raise ImportError(
            f"`peft` must not know another method called SPACE; got {known.__module__}.{known.__name__}. "
            "Do not import that package in the same process."
        )
    mapping.PEFT_TYPE_TO_CONFIG_MAPPING[SPACE] = config_cls
    mapping.PEFT_TYPE_TO_TUNER_MAPPING[SPACE] = model_cls
    mapping.PEFT_TYPE_TO_MIXED_MODEL_MAPPING[SPACE] = model_cls
    mapping.PEFT_TYPE_TO_PREFIX_MAPPING[SPACE] = PREFIX
    if SPACE not in mixed.COMPATIBLE_TUNER_TYPES:
        # The tuple is bound in the package and in its module; `PeftMixedModel` reads the first.
        compatible: Any = (*mixed.COMPATIBLE_TUNER_TYPES, SPACE)
        mixed.COMPATIBLE_TUNER_TYPES = mixed_model.COMPATIBLE_TUNER_TYPES = compatible
    hotswap.CONFIG_KEYS_TO_CHECK[SPACE] = hotswap.CONFIG_KEYS_TO_CHECK[PeftType.LORA]


def model_inside(model: nn.Module) -> nn.Module:
    """The model that a `PeftModel` or a `PeftMixedModel` wraps; any other model is returned as it is."""
    if isinstance(model, PeftMixedModel):
        return model.base_model.model
    unwrap = getattr(model, "get_base_model", None)
    return model if unwrap is None else unwrap()


def publish_with(push: Callable[..., Any], ours: Callable[[PeftModel], bool]) -> None:
    """Make `PeftModel.push_to_hub` publish adapters of ours with `push`, and all others as before.

    PEFT asks no tuner what a repository holds: the method comes from transformers, and writes an empty model card over
    whatever was saved.

    Args:
        push: is given the model and what `push_to_hub` was.
        ours: whether a model's active adapters are ours.
    """
    plain = getattr(PeftModel.push_to_hub, "before_peft_space", PeftModel.push_to_hub)

    @functools.wraps(plain)
    def push_to_hub(self: PeftModel, *args: Any, **kwargs: Any) -> Any:
        return push(self, *args, **kwargs) if ours(self) else plain(self, *args, **kwargs)

    push_to_hub.before_peft_space = plain  # type: ignore[attr-defined]
    PeftModel.push_to_hub = push_to_hub


def modules_matching(config: Any, base: nn.Module) -> list[str]:
    """Dotted paths of the modules that PEFT would put an adapter of this config into.

    Args:
        config: its `target_modules` are names or a pattern, as they are in every saved config.
        base: the transformers model, with or without adapters.
    """
    return [name for name, _ in base_modules(base) if name and check_target_module_exists(config, name)]


def with_names(config: Any, base: nn.Module) -> Any:
    """An adapter's config with the names of a model's modules in the place of patterns that repeat something.

    PEFT matches the patterns of a config with `re`, which on some takes longer than anybody waits. Here each is
    matched once, and only for so long. What chooses modules otherwise stays as it is.

    Args:
        config: of an adapter that may be anybody's.
        base: the transformers model, with or without adapters.

    Raises:
        ValueError: a pattern is none, is longer than `MOST_PATTERN`, or takes more than `MATCHING_SECONDS`.
    """
    names = [name for name, _ in base_modules(base) if name]
    changed = copy.copy(config)
    for field in ("exclude_modules", "target_modules"):
        pattern = getattr(config, field)
        if isinstance(pattern, str) and pattern.lower() != INCLUDE_LINEAR_LAYERS_SHORTHAND:
            found = _matched({pattern: pattern}, names, field)
            if _REPEATS.search(pattern):
                setattr(changed, field, set(found))
    for field in ("rank_pattern", "alpha_pattern"):
        patterns = getattr(config, field)
        if len(patterns) > len(names):
            raise ValueError(f"`{field}` must hold no more names than the model has; got {len(patterns)}.")
        if all(map(_PLAIN.fullmatch, patterns)):
            continue
        found = _matched({pattern: rf"(.*\.)?({pattern})" for pattern in patterns}, names, field)
        if any(_REPEATS.search(pattern) for pattern in patterns):
            setattr(changed, field, {name: patterns[pattern] for name, pattern in found.items()})
    return changed


def _matched(patterns: Mapping[str, str], names: Sequence[str], field: str) -> dict[str, str]:
    """For each of the names that a pattern fits, what a file calls the first that does."""
    found: dict[str, str] = {}
    until = time.monotonic() + MATCHING_SECONDS
    for said, pattern in patterns.items():
        wrong = f"`{field}` must be names or a pattern that can be matched; got {said!r:.100}"
        if len(pattern) > MOST_PATTERN:
            raise ValueError(f"{wrong}, of more than {MOST_PATTERN} characters. Do distrust the adapter.")
        try:
            re.compile(pattern)
            compiled = regex.compile(pattern)
            for name in names:
                left = until - time.monotonic()
                if left <= 0:
                    raise TimeoutError
                if name not in found and compiled.fullmatch(name, timeout=left):
                    found[name] = said
        except TimeoutError as error:
            raise ValueError(
                f"{wrong}, which takes more than {MATCHING_SECONDS:.0f} seconds. Do distrust the adapter."
            ) from error
        except (re.error, regex.error, RecursionError, OverflowError) as error:
            raise ValueError(f"{wrong}: {error}. Do fetch or save the adapter again.") from error
    return found


def rank_of(config: Any, name: str) -> int:
    """The rank that a LoRA config gives to a module."""
    return config.rank_pattern.get(get_pattern_key(config.rank_pattern.keys(), name), config.r)


def adapter_configs(model: nn.Module) -> dict[str, Any]:
    """The configs of the adapters in a `PeftModel`, or in a transformers model that holds some; `{}` without one."""
    configs = getattr(model, "peft_config", {})
    return configs if isinstance(configs, dict) else {}


def present_adapters(model: nn.Module) -> set[str]:
    """Names of the adapters that have layers in the model; configs may outlive them (after `merge_and_unload`)."""
    layers = (module for module in model.modules() if isinstance(module, BaseTunerLayer))
    return {name for layer in layers for name in layer._all_available_adapter_names()}


def active_adapters(model: nn.Module) -> list[str]:
    """Names of the adapters that take part in the forward pass at this moment, of whatever method."""
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    names = (name for layer in layers if not layer.disable_adapters for name in layer.active_adapters)
    present = present_adapters(model)
    return [name for name in dict.fromkeys(names) if name in present]


def targets_by_name(config: LoraConfig, model: nn.Module) -> set[str]:
    """The `target_modules` of a config as names, where it is a regular expression or "all-linear"."""
    if not isinstance(config.target_modules, str):
        return set(config.target_modules or ())
    if config.target_modules.lower() == INCLUDE_LINEAR_LAYERS_SHORTHAND:
        return set(_maybe_include_all_linear_layers(copy.copy(config), model).target_modules)
    return {name for name, _ in model.named_modules() if check_target_module_exists(config, name)}


def loads_elsewhere(model: nn.Module, targets: str | set[str]) -> bool:
    """Whether PEFT changes the `target_modules` of a plain LoRA adapter when it loads the adapter into a model.

    transformers 5 fuses the experts of a mixture into two parameters. On such a model PEFT redirects every target that
    ends like an expert's projection to these parameters, one that names a dense layer or a shared expert too, and
    shortens a regular expression to the last components of what it matches:
    https://github.com/huggingface/peft/issues/3711.
    """
    config = LoraConfig(target_modules=targets)
    try:
        convert_peft_config_for_transformers(config, model=model, conversions=None)
    except ValueError:  # half of a fused parameter can't be targeted, so it would have been redirected
        return True
    return config.target_modules != targets or bool(config.target_parameters)


def lora_layers(base: nn.Module, adapter_name: str = "default") -> Iterator[tuple[str, LoraLayer]]:
    """Dotted path and layer of every LoRA layer that holds an adapter.

    Args:
        base: the transformers model, not the `PeftModel` around it, so that paths carry no `base_model.model.`.
        adapter_name: name of the adapter.
    """
    for name, module in base.named_modules():
        if isinstance(module, LoraLayer) and adapter_name in (*module.lora_A, *module.lora_embedding_A):
            yield name, module


def unwrapped(module: nn.Module) -> nn.Module:
    """The layer that an adapter layer wraps; any other module is returned as it is."""
    while isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper)):
        module = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module.original_module
    return module


def base_modules(module: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """`named_modules` of the model as it was before any adapter came in: same names and modules, no adapter parts."""
    module = unwrapped(module)
    yield name, module
    for child_name, child in module.named_children():
        yield from base_modules(child, f"{name}.{child_name}" if name else child_name)


def base_parameters(base: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """`named_parameters` of the model as it was before any adapter came in."""
    for module_name, module in base_modules(base):
        for name, parameter in module.named_parameters(recurse=False):
            yield f"{module_name}.{name}" if module_name else name, parameter


def merged_adapters(base: nn.Module) -> set[str]:
    """Names of the adapters that are merged into the base weights at this moment."""
    layers = (module for module in base.modules() if isinstance(module, BaseTunerLayer))
    return {name for layer in layers for name in layer.merged_adapters}


def is_low_bit(module: nn.Module) -> bool:
    """Whether the weight of a layer is stored in fewer than 16 bits."""
    weight = getattr(unwrapped(module), "weight", None)
    return not isinstance(weight, Tensor) or few_bits(weight)


def few_bits(tensor: Tensor) -> bool:
    """Whether values are stored in fewer than 16 bits. A tensor of torchao passes for one of floats."""
    by_torchao = type(tensor).__module__.startswith("torchao.")
    return by_torchao or not tensor.is_floating_point() or tensor.element_size() < 2


def quantised_modules(model: nn.Module) -> list[str]:
    """Full names of the linear layers whose weights are stored in fewer than 16 bits."""
    return [name for name, module in base_modules(model) if "Linear" in type(module).__name__ and is_low_bit(module)]
