"""Which pictures an erasure has seen, so that no figure passes for held out that is not."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from ..anchors import Anchors
from ..concepts import Concept, PublicImages
from ..concepts.images import content_key
from .report import DATA, HELD_OUT, RETAINED, STOPPED_ON, TRAINED_ON, UNKNOWN

_FILE = "anchors.csv"


class Seen:
    """What the pictures of an erasure were to it.

    Args:
        anchors: of the erasure; `None` where they are not at hand, and nothing can be told.
    """

    def __init__(self, anchors: Anchors | None) -> None:
        self._marks: dict[str, str] | None = None
        if anchors is not None:
            roles = dict.fromkeys(anchors.indices, TRAINED_ON) | dict.fromkeys(anchors.monitor, STOPPED_ON)
            self._marks = {}
            for place, image in enumerate(anchors.public.images):
                key = content_key(image)
                # of copies, what most was done with counts
                self._marks[key] = _worst(self._marks.get(key, RETAINED), roles.get(place, RETAINED))

    def mark(self, images: Sequence[Image.Image]) -> str:
        """One of `report.DATA` for a set of pictures: what most was done with any of them."""
        if self._marks is None:
            return UNKNOWN
        return _worst(HELD_OUT, *(self._marks.get(content_key(image), HELD_OUT) for image in images))


def anchors_of(adapter: str | os.PathLike[str], concept: Concept, public: PublicImages | None) -> Anchors | None:
    """The anchors of an adapter that was saved by `erase`, if `public` is the set they were chosen from.

    Returns:
        `None` where the folder holds no table of all scores (a repository on the Hub lists the anchors only), or where
        the table is of other pictures.
    """
    path = Path(adapter) / _FILE
    if public is None or not path.is_file():
        return None
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (csv.Error, UnicodeDecodeError):
        return None
    if not rows or "role" not in rows[0] or {row.get("id") for row in rows} - set(public.ids):
        return None
    return Anchors.read_scores(path, concept, public)


def _worst(*marks: str) -> str:
    return max(marks, key=DATA.index)
