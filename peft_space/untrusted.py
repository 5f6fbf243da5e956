"""Files that others made: read as data and within bounds, or refused. See `docs/security.md`."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

MOST_JSON = 2**24
"""Bytes of a JSON file that is read; what `erase` writes has less than a tenth of that."""


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no regular file, has more than `MOST_JSON` bytes, is not JSON, or holds no object.
    """
    path = Path(path)
    said = f"`{path.name}` must be a file that holds a JSON object"
    if path.exists() and not path.is_file():
        raise ValueError(f"{said}; got {path}, which is no regular file. Do fetch it again.")
    with path.open("rb") as file:
        raw = file.read(MOST_JSON + 1)
    if len(raw) > MOST_JSON:
        raise ValueError(f"{said} of at most {MOST_JSON >> 20} MiB; got more, in {path}. Do distrust it.")
    try:
        found = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{said}; got {path}, which can't be read: {error}. Do fetch it again.") from error
    if not isinstance(found, dict):
        raise ValueError(f"{said}; got a {type(found).__name__}, in {path}. Do fetch it again.")
    return found


def is_number(value: Any) -> bool:
    """Whether something is a finite number; `True` is none."""
    try:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an integer that no float holds
        return False


def is_texts(value: Any) -> bool:
    """Whether something is a list of strings, or another collection of them that is no string itself."""
    return isinstance(value, (list, tuple, set, frozenset)) and all(isinstance(one, str) for one in value)
