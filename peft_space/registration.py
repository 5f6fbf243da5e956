"""Registers SPACE with PEFT when PEFT is imported, so that this package can be imported without it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType


def register_with_peft() -> None:
    """Registers SPACE now if PEFT has been imported, else as soon as it is."""
    if "peft" in sys.modules:
        register_if_peft_is_there()
    else:
        sys.meta_path.insert(0, _AfterPeft())


def register_if_peft_is_there() -> None:
    """Registers SPACE if PEFT has been imported. To do it again does no harm."""
    if "peft" in sys.modules:
        import_module("peft_space.tuner")


class _AfterPeft(MetaPathFinder):
    """Finds PEFT as the interpreter would, and has SPACE registered when its code has run."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = PathFinder.find_spec(fullname) if fullname == "peft" else None
        if spec is None or spec.loader is None:
            return None
        run = spec.loader.exec_module

        def run_and_register(module: ModuleType) -> None:
            run(module)
            if self in sys.meta_path:
                sys.meta_path.remove(self)
            # where a part of this package has asked for PEFT, the tuner may need what is not yet there: it registers
            # itself, or a name of the package that is used does it
            if not {"peft_space._peft", "peft_space.processes"} & set(sys.modules):
                register_if_peft_is_there()

        spec.loader.exec_module = run_and_register  # type: ignore[method-assign]
        return spec
