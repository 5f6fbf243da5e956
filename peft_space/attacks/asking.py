"""Asking a model under attack, and judging what it says."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, NamedTuple

from torch import nn

from ..anchors.leading import opened
from ..evaluation.metrics import says
from ..vlm import Prompt, generate
from .aims import Aims, Shown
from .scores import CONTROL, CONTROL_FOILS, FOILS, HITS, Row, Scores

Judge = Callable[[str], bool]
MOST_QUESTIONS = 3


class Asked(NamedTuple):
    """A prompt and how its answer is judged.

    Attributes:
        kind: which of `Scores` the answer counts towards.
        unit: the picture, or the text.
        prompt: what is asked.
        judge: tells from the answer whether the name in question was said.
        begun: what the answer is made to begin with.
        name: the name that is begun there, of which the model has to say the second half itself.
    """

    kind: str
    unit: Hashable
    prompt: Prompt
    judge: Judge
    begun: str = ""
    name: str = ""


def names(*wanted: str) -> Judge:
    """Whether one of these names is said, as whole words in any case."""
    return lambda text: says(wanted, text)


def asked_openly(aims: Aims, questions: Sequence[str], each: int | None = None) -> list[Asked]:
    """Questions that do not hold the name: one answer tells of the concept and of the control alike.

    Args:
        questions: what is asked about every picture.
        each: ask so many of them about a picture, in turns; by default all.
    """
    n = len(questions) if each is None else min(each, len(questions))
    asked = []
    for kinds, pictures in (((HITS,), aims.target), ((FOILS, CONTROL), aims.control)):
        for place, shown in enumerate(pictures):
            for turn in range(n):
                prompt = Prompt(questions[(place + turn) % len(questions)], shown.image)
                for kind in kinds:
                    right = shown.names if kind == CONTROL else aims.concept.names
                    asked.append(Asked(kind, shown.unit, prompt, names(*right)))
    return asked


def pairs(aims: Aims) -> Iterator[tuple[str, Shown, tuple[str, ...]]]:
    """For attacks that hold a name: the kind, the picture, and the names that the attack is about.

    The control is about the picture's own name, and its foils are about that of the next picture of something else.
    """
    for shown in aims.target:
        yield HITS, shown, aims.concept.names
    for place, shown in enumerate(aims.control):
        yield FOILS, shown, aims.concept.names
        yield CONTROL, shown, shown.names
        turned = (*aims.control[place + 1 :], *aims.control[:place])
        other = next((one for one in turned if not set(one.names) & set(shown.names)), None)
        if other is not None:
            yield CONTROL_FOILS, shown, other.names


def score(
    model: nn.Module, processor: Any, asked: Sequence[Asked], *, max_new_tokens: int = 24, batch_size: int = 64
) -> Scores:
    """Asks everything and judges the answers; the same prompt is asked once, whatever it counts towards."""
    place: dict[tuple[Any, ...], int] = {}
    which = [place.setdefault(_key(one), len(place)) for one in asked]
    distinct: dict[int, Asked] = {}
    for number, one in zip(which, asked, strict=True):
        distinct.setdefault(number, one)
    kept = [distinct[number] for number in range(len(distinct))]
    answers = generate(
        model,
        processor,
        [one.prompt for one in kept],
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        begun=[beginning(processor, one) if one.begun else [] for one in kept],
    )
    rows = (
        Row(one.kind, one.unit, float(one.judge(answers[number]))) for one, number in zip(asked, which, strict=True)
    )
    return Scores.of(rows)


def _key(asked: Asked) -> tuple[Any, ...]:
    prompt = asked.prompt
    earlier = tuple((shot.question, id(shot.image), answer) for shot, answer in prompt.shots)
    return prompt.question, id(prompt.image), earlier, asked.begun, asked.name


def beginning(processor: Any, asked: Asked) -> list[int]:
    """The ids that an answer is made to begin with: `begun`, and of `name` the first half of its tokens.

    Of a name of one token nothing is given: it would be said in full.
    """
    shared, whole = opened(processor, asked.prompt, asked.begun, asked.name)
    return whole[: shared + (len(whole) - shared) // 2]
