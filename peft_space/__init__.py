"""Erase a concept from a multimodal model by its name. Importing the package registers SPACE with PEFT."""

from peft_space.adapter import base_fingerprint, load_erasure, merge_and_save, save_erasure_adapter
from peft_space.tuner import SpaceConfig, SpaceModel, attach_subspace, bake, has_subspace, targeted_modules

__all__ = [
    "SpaceConfig",
    "SpaceModel",
    "attach_subspace",
    "bake",
    "base_fingerprint",
    "has_subspace",
    "load_erasure",
    "merge_and_save",
    "save_erasure_adapter",
    "targeted_modules",
]
