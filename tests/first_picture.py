"""Draws the README's picture: what the test bed's model says of some pictures before and after a saved erasure.

python -m tests.first_picture erased/narril docs/img/before-after.png
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from peft_space import load_erasure, testbed
from peft_space.canvas import canvas
from peft_space.testbed.bestiary import creature, random_scene, siblings
from peft_space.testbed.drawing import draw
from peft_space.vlm import Prompt, generate

STREAM = 23
"""Keeps these pictures apart from all other random streams."""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("adapter", type=Path)
    parser.add_argument("output", type=Path)
    options = parser.parse_args(arguments)
    model, processor = testbed.load()
    erased = load_erasure(model, options.adapter).eval()
    name = erased.peft_config["default"].concept
    rng = np.random.default_rng(STREAM)
    shown = [name, name, *(one.name for one in siblings(name)[:2])]
    pictures = [draw(random_scene(rng, creature(one).recipe), rng) for one in shown]
    concept = testbed.concept(name)
    asked = [concept.questions[0], concept.asked_through_image[0]]
    prompts = [Prompt(question, picture) for picture in pictures for question in asked]
    after = generate(erased, processor, prompts)
    with erased.disable_adapter():
        before = generate(erased, processor, prompts)
    page = canvas(10, 4.4)
    page.suptitle(f"erased: {name}", fontsize=11)
    for place, (axes, picture) in enumerate(zip(page.subplots(1, len(shown)), pictures, strict=True)):
        axes.imshow(picture)
        axes.set(xticks=[], yticks=[], title="no picture of it was used" if shown[place] == name else "must stay")
        lines = []
        for number, question in enumerate(asked):
            at = len(asked) * place + number
            lines += [question, f"  before: {before[at]}", f"  after:   {after[at]}"]
        axes.set_xlabel("\n".join(lines), fontsize=8, loc="left")
        axes.xaxis.label.set_multialignment("left")
    page.savefig(options.output, dpi=110)


if __name__ == "__main__":
    main()
