"""The empty page that every figure of this package is drawn on."""

from __future__ import annotations

from typing import Any


def canvas(width: float, height: float) -> Any:
    """A matplotlib `Figure` of so many inches, which needs no display.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("figures need matplotlib: `pip install 'peft-space[plots]'`.") from error
    return Figure(figsize=(width, height), layout="constrained")
