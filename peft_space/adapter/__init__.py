"""Erasure adapters on disk: storage as plain LoRA, recognition of the base, merging."""

from peft_space.adapter.merge import merge_and_save
from peft_space.adapter.storage import load_erasure, save_erasure_adapter, whole_folder
from peft_space.tuner.fingerprint import base_fingerprint, check_base

__all__ = [
    "base_fingerprint",
    "check_base",
    "load_erasure",
    "merge_and_save",
    "save_erasure_adapter",
    "whole_folder",
]
