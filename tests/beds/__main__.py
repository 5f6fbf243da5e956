"""Trains a small model on a test bed, once, and tells what it knows.

    python -m tests.beds {bestiary,digits,persons} [--without NAME] [--folder DIR] [--seed N]
    python -m tests.beds {bestiary,digits,persons} --device cuda --workers 3

`--without` trains the retrain oracle of one name. A model that is in DIR already is not trained again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from peft_space import testbed
from peft_space.testbed.measure import knowledge

from .worlds import BEDS, CACHE, trained


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bed", choices=list(BEDS))
    parser.add_argument("--without", metavar="NAME", help="a name to leave out: trains its retrain oracle")
    parser.add_argument("--folder", type=Path, metavar="DIR", default=CACHE, help="where trained models are kept")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="where to train")
    parser.add_argument("--workers", type=int, default=1, help="processes that draw the lessons")
    arguments = parser.parse_args()
    bed = BEDS[arguments.bed]
    if arguments.without is not None and arguments.without not in bed.names:
        parser.error(f"--without must be one of {', '.join(bed.names)}; got {arguments.without!r}.")
    options = {key: getattr(arguments, key) for key in ("without", "folder", "seed", "device", "workers")}
    place = trained(arguments.bed, **options)
    print(place)
    told = knowledge(*testbed.load(place), without=arguments.without, bed=bed)
    print(json.dumps(told, indent=2))


if __name__ == "__main__":
    main()
