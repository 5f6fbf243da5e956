"""Finds the anchors of an erasure again from what lies beside its adapter."""

from __future__ import annotations

import csv
import os
from pathlib import Path

from ..anchors import Anchors
from ..concepts import Concept, PublicImages

_FILE = "anchors.csv"


def anchors_of(adapter: str | os.PathLike[str], concept: Concept, public: PublicImages | None) -> Anchors | None:
    """The anchors of an adapter that was saved by `erase`, if `public` is the set they were chosen from.

    Returns:
        `None` where the folder holds no table of all scores (a repository on the Hub lists the anchors only), or where
        the table is of other pictures.
    """
    path = Path(adapter) / _FILE
    if public is None or not path.is_file():
        return None
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if not rows or "role" not in rows[0] or {row["id"] for row in rows} - set(public.ids):
        return None
    return Anchors.read_scores(path, concept, public)
