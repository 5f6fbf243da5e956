"""Which pictures an erasure has seen, so that no figure passes for held out that is not."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from ..anchors import Anchors
from ..concepts.images import content_key
from .report import DATA, HELD_OUT, RETAINED, STOPPED_ON, TRAINED_ON, UNKNOWN


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


def _worst(*marks: str) -> str:
    return max(marks, key=DATA.index)
