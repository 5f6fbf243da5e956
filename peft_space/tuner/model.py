"""The tuner: LoRA with other default targets, and a projected `A` that is folded whenever it is written out."""

from __future__ import annotations

import logging

from peft import PeftModel
from peft.tuners.lora import LoraModel
from torch import Tensor, nn

from peft_space._peft import (
    active_adapters,
    adapter_configs,
    is_low_bit,
    loads_elsewhere,
    lora_layers,
    merged_adapters,
    present_adapters,
    targets_by_name,
)
from peft_space.tuner.config import SpaceConfig
from peft_space.tuner.fingerprint import base_fingerprint
from peft_space.tuner.projection import project, projected_factors
from peft_space.tuner.targets import default_targets, describe_targets
from peft_space.vlm import base_of

logger = logging.getLogger(__name__)

_RAW, _FOLDED = ".parametrizations.weight.original", ".weight"

_COMBINATIONS = ("linear", "cat", "svd")


class SpaceModel(LoraModel):
    """Puts SPACE adapters into a model; all of LoRA's methods work on it.

    Example:
        >>> from peft import get_peft_model
        >>> peft_model = get_peft_model(model, SpaceConfig(concept="a name", r=16))
        >>> attach_subspace(peft_model, subspace)
    """

    def __init__(self, model, peft_config, adapter_name, *args, **kwargs):
        # PEFT only warns that the model has adapters, and would write over the weights of this one.
        if adapter_name in present_adapters(model):
            raise ValueError(
                f"`adapter_name` must be new; got {adapter_name!r}, which is in the model already. Do pass another "
                "name, or `unload` the old adapter."
            )
        if isinstance(model, PeftModel):
            raise ValueError(
                f"`model` must be a transformers model; got a {type(model).__name__}, around which the adapter could "
                "not be saved. Do pass `model.get_base_model()`: the adapters in it stay, and stay active."
            )
        carried = active_adapters(model)
        super().__init__(model, peft_config, adapter_name, *args, **kwargs)
        if carried:
            # PEFT would switch them off, and the concept would be erased from another model than the one given.
            self.set_adapter([*carried, adapter_name], inference_mode=self.peft_config[adapter_name].inference_mode)
            self.set_requires_grad(carried, False)

    def _prepare_adapter_config(self, peft_config, model_config):
        if isinstance(peft_config, SpaceConfig):
            peft_config.base_fingerprint = self._fingerprint(peft_config)
            peft_config.target_modules = self._lasting_targets(peft_config)
        return super()._prepare_adapter_config(peft_config, model_config)

    def _lasting_targets(self, peft_config):
        """The `target_modules`, such that the adapter goes into the same modules when it is loaded as plain LoRA."""
        targets = peft_config.target_modules
        if targets is None:
            names = default_targets(self.model, peft_config.parts, peft_config.layers_to_transform)
        else:
            names = sorted(targets_by_name(peft_config, self.model))
        elsewhere = [name for name in names if loads_elsewhere(self.model, {name})]
        if elsewhere and targets is not None:
            raise ValueError(
                f"`target_modules` must name modules that PEFT finds again; got {elsewhere[0]!r} and "
                f"{len(elsewhere) - 1} more that it takes for the fused experts of {type(self.model).__name__} when "
                "the adapter is loaded as plain LoRA. Do leave them out."
            )
        if elsewhere:
            logger.warning("left out, as PEFT would load them into fused experts:\n%s", describe_targets(elsewhere))
        if targets is None or (isinstance(targets, str) and loads_elsewhere(self.model, targets)):
            return set(names) - set(elsewhere)
        return targets

    def _fingerprint(self, peft_config):
        if merged_adapters(self.model):
            for other in self.peft_config.values():
                if other is not peft_config and isinstance(other, SpaceConfig) and other.base_fingerprint:
                    return other.base_fingerprint
        return base_fingerprint(self.model)

    def inject_adapter(self, model, adapter_name, *args, **kwargs):
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        logger.info("adapter %r goes into\n%s", adapter_name, describe_targets(targeted_modules(model, adapter_name)))

    def add_weighted_adapter(self, adapters, weights, adapter_name, combination_type="svd", *args, **kwargs):
        """As in LoRA, with the combinations that keep to the null space.

        What all the adapters keep, these keep. "cat" is the adapters' exact sum, "svd" that sum at a rank of its own.
        "linear" averages `A` and `B` apart, so it is no sum.

        Raises:
            ValueError: the combination prunes entries.
        """
        if combination_type not in _COMBINATIONS:
            raise ValueError(
                f"`combination_type` must be one of {', '.join(_COMBINATIONS)} for SPACE; got {combination_type!r}: "
                "pruning single entries puts back into `A` what the projection took out, and retained outputs change. "
                "Do combine them by 'cat', which is their exact sum."
            )
        super().add_weighted_adapter(adapters, weights, adapter_name, combination_type, *args, **kwargs)

    def _check_merge_allowed(self):
        super()._check_merge_allowed()
        low = [name for key in self.peft_config for name, layer in lora_layers(self.model, key) if is_low_bit(layer)]
        if low:
            raise ValueError(
                f"the base weights must have 16 or 32 bits to be merged into; got fewer in {low[0]} and "
                f"{len(low) - 1} more: rounding would destroy the erasure. Do save the adapter and use "
                "`merge_and_save`, which loads the base anew."
            )

    # Saving and loading are symmetric by construction: PEFT builds both from `_remove_adapter_name_from_key`, which
    # gives the projected factor the name it has in plain LoRA.

    @classmethod
    def _get_adapter_state_dict(cls, model, config, adapter_name, state_dict, unwanted_adapter_names):
        selected = super()._get_adapter_state_dict(
            model=model,
            config=config,
            adapter_name=adapter_name,
            state_dict=state_dict,
            unwanted_adapter_names=unwanted_adapter_names,
        )
        return _folded(model, selected)

    @classmethod
    def _remove_adapter_name_from_key(cls, key, adapter_name):
        key = key.removesuffix(_RAW) + _FOLDED if key.endswith(_RAW) else key
        return super()._remove_adapter_name_from_key(key=key, adapter_name=adapter_name)


def targeted_modules(model: nn.Module, adapter_name: str = "default") -> list[str]:
    """Full paths of the modules that an adapter went into; `describe_targets` turns them into a short text.

    Args:
        model: a `PeftModel`, or a transformers model that holds adapters.
        adapter_name: which adapter.

    Raises:
        ValueError: there is no such adapter.
    """
    configs = adapter_configs(model)
    if adapter_name not in configs and not any(True for _ in lora_layers(base_of(model), adapter_name)):
        raise ValueError(f"`adapter_name` must be one of {sorted(configs)}; got {adapter_name!r}.")
    return [name for name, _ in lora_layers(base_of(model), adapter_name)]


def scale_adapter(model: nn.Module, strength: float, adapter_name: str = "default") -> None:
    """Turns an adapter up or down: at 0 it does nothing, at 1 what it was trained to do.

    It counts from the strength that was trained, however often it is called. The leak grows with it. It is a setting
    of the model in memory: an adapter that is saved is saved at 1, a merge takes the strength along.

    Args:
        model: a `PeftModel`, or a transformers model that holds adapters.
        strength: 0 or more.
        adapter_name: which adapter.

    Raises:
        ValueError: the strength is negative or not finite, the adapter is not there, or it is merged at this moment.
    """
    if not 0 <= strength < float("inf"):
        raise ValueError(f"`strength` must be 0 or more; got {strength}. 1 is the strength that was trained.")
    base = base_of(model)
    targeted_modules(model, adapter_name)
    if adapter_name in merged_adapters(base):
        raise ValueError(f"`adapter_name` must not be merged; got {adapter_name!r}. Do `unmerge_adapter()` first.")
    for _, layer in lora_layers(base, adapter_name):
        layer.set_scale(adapter_name, strength)


def _folded(model: nn.Module, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    # FSDP and `torch.compile` show their wrappers in module names but not in the keys of a state dict.
    factors = {
        name.replace("_fsdp_wrapped_module.", "").replace("_orig_mod.", ""): factor
        for name, factor in projected_factors(model)
    }
    folded = {}
    for key, value in state_dict.items():
        name = key.removesuffix(_RAW)
        if key.endswith(_RAW) and name not in factors:
            raise ValueError(f"`state_dict` must come from this model; got {key}, which is projected nowhere in it.")
        folded[key] = project(factors[name], value.detach()) if key.endswith(_RAW) else value
    return folded
