"""Erasure adapters on disk: storage as plain LoRA, recognition of the base, merging."""

from peft_space.adapter.export import export_lora
from peft_space.adapter.fetch import ADAPTER_FILES, WEIGHTS_FILE, fetch_adapter, weights_file
from peft_space.adapter.merge import merge_and_save
from peft_space.adapter.storage import load_erasure, save_erasure_adapter, whole_folder
from peft_space.tuner import CONFIG_FILE, base_fingerprint, check_base

__all__ = [
    "ADAPTER_FILES",
    "CONFIG_FILE",
    "WEIGHTS_FILE",
    "base_fingerprint",
    "check_base",
    "export_lora",
    "fetch_adapter",
    "load_erasure",
    "merge_and_save",
    "save_erasure_adapter",
    "weights_file",
    "whole_folder",
]
