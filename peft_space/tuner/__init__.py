"""The SPACE tuner: LoRA whose `A` can't see the retained subspace. Importing it registers the method with PEFT."""

from peft_space._peft import register
from peft_space.tuner.config import CONFIG_FILE, SIDE_FILE, SpaceConfig
from peft_space.tuner.fingerprint import base_fingerprint, check_base
from peft_space.tuner.model import SpaceModel, scale_adapter, targeted_modules
from peft_space.tuner.projection import attach_subspace, bake, has_subspace
from peft_space.tuner.targets import default_targets, describe_targets, language_model_targets

register(SpaceConfig, SpaceModel)

__all__ = [
    "CONFIG_FILE",
    "SIDE_FILE",
    "SpaceConfig",
    "SpaceModel",
    "attach_subspace",
    "bake",
    "base_fingerprint",
    "check_base",
    "default_targets",
    "describe_targets",
    "has_subspace",
    "language_model_targets",
    "scale_adapter",
    "targeted_modules",
]
