"""Erase a concept from a multimodal model by its name. Using any name of the package registers SPACE with PEFT.

A name is loaded when it is first used, from where `__init__.pyi` says: until then nothing is imported, so that the
command line can answer at once. Where PEFT has been imported before, SPACE is registered with the package's import.
"""

import sys
from importlib import import_module
from typing import Any

import lazy_loader

_load, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    value = _load(name)
    import_module(".tuner", __name__)
    return value


if "peft" in sys.modules:
    import_module(".tuner", __name__)
