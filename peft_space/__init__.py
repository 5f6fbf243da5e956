"""Erase a concept from a multimodal model by its name. Importing the package registers SPACE with PEFT.

A name is loaded when it is first used, from where `__init__.pyi` says; until then neither PEFT nor torch is imported.
"""

from typing import Any

import lazy_loader

from .registration import register_if_peft_is_there, register_with_peft

_load, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    value = _load(name)
    register_if_peft_is_there()
    return value


register_with_peft()
