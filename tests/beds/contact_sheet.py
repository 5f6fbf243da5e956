"""Draws what a test bed and a public set look like, for its page.

    python -m tests.beds.contact_sheet OUTPUT.png {digits,persons}

A row of pictures for each group of near names; below them pictures of two names where the bed has these, a row of its
close public set and one of a far one.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from peft_space.testbed import Bed

from . import far
from .worlds import BEDS

COLUMNS, SIZE, GAP = 12, 48, 2


def contact_sheet(bed: Bed) -> Image.Image:
    """Pictures of 48 x 48 in rows of `COLUMNS`."""
    rng = np.random.default_rng(0)
    rows = []
    for names in bed.groups.values():
        of_each = [bed.pictures(name, COLUMNS, 0) for name in names]
        rows.append([of_each[k * len(names) // COLUMNS][k][1] for k in range(COLUMNS)])
    pairs = [rng.choice(bed.names, 2, replace=False).tolist() for _ in range(COLUMNS)]
    rows.append([picture for _, picture in bed.pairs([(left, right) for left, right in pairs], rng)])
    rows.append(list(bed.public_images(bed.names[0], COLUMNS).images))
    rows.append(list(far.public_images(COLUMNS).images))
    rows = [row for row in rows if row]
    step = SIZE + GAP
    sheet = Image.new("RGB", (COLUMNS * step - GAP, len(rows) * step - GAP), "white")
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            sheet.paste(picture, (x * step, y * step))
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("bed", choices=list(BEDS))
    arguments = parser.parse_args()
    sheet = contact_sheet(BEDS[arguments.bed])
    # pictures are full of noise: 128 colours keep the file small
    sheet.quantize(128).save(arguments.output, optimize=True)


if __name__ == "__main__":
    main()
