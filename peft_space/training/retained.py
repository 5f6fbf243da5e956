"""What must stay: prompts, with the answers that the model gives to them before the erasure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image
from torch import Tensor, nn

from ..anchors import Anchors, Knowledge, in_company
from ..anchors.leading import YesNo, begins, leading_prompts
from ..anchors.lesson import Lesson
from ..concepts import Concept, Retain, load_public_images
from ..processes import share
from ..vlm import Prompt, encode, generate, prompt_batches


@dataclass(frozen=True)
class Batches:
    """Batches of what is retained, encoded anew each time that they are gone over; each process goes over its own."""

    retained: Retained
    model: nn.Module
    processor: Any
    size: int

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        prompts, answers = self.retained.prompts, self.retained.answers
        for indices in share(prompt_batches(self.model, self.processor, prompts, self.size, "statistics")):
            batch = encode(self.processor, [prompts[i] for i in indices], [answers[i] for i in indices])
            batch.pop("labels")
            yield batch


@dataclass(frozen=True)
class Retained:
    """Prompts and the model's own answers to them.

    Attributes:
        prompts: beside pictures and in text alone.
        answers: what the base model said to each.
        begun: how many tokens of each answer were given to it; none where it is empty.
    """

    prompts: tuple[Prompt, ...]
    answers: tuple[str, ...]
    begun: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.prompts)

    @classmethod
    def of(cls, *parts: Retained) -> Retained:
        """All of them as one, what is asked in text once only."""
        rows = [row for part in parts for row in zip(part.prompts, part.answers, part._given, strict=True)]
        texts: set[str] = set()
        chosen = []
        for row in rows:
            if (prompt := row[0]).image is None:
                if prompt.question in texts:
                    continue
                texts.add(prompt.question)
            chosen.append(row)
        return cls(*_columns(chosen))

    def without(self, concepts: Sequence[Concept]) -> Retained:
        """Those with pictures only where no answer names one of `concepts`, and all texts."""
        rows = zip(self.prompts, self.answers, strict=True)
        return self._take(
            [
                place
                for place, (prompt, answer) in enumerate(rows)
                if prompt.image is None or not any(one.mentioned_in(answer) for one in concepts)
            ]
        )

    def split(self, held_out: int, seed: int = 0) -> tuple[Retained, Retained]:
        """All but `held_out` of them, and the `held_out` that were drawn."""
        order = np.random.default_rng([seed, 3]).permutation(len(self)).tolist()
        return self._take(order[held_out:]), self._take(order[:held_out])

    def balanced(self, *groups: Sequence[str]) -> Retained:
        """The same with each group of texts repeated until it is as many as all other prompts without a picture.

        What is asked in text about other names may be a hundred questions in the same few words; beside them the
        retained subspace would pass over a dozen texts that are like no other.
        """
        alone = [i for i, prompt in enumerate(self.prompts) if prompt.image is None]
        members = [[i for i in alone if self.prompts[i].question in set(group)] for group in groups]
        rest = len(alone) - sum(map(len, members))
        more = [i for group in members if group for i in group * (rest // len(group) - 1)]
        return self._take([*range(len(self)), *more])

    def lessons(self, most: int, seed: int = 0) -> list[Lesson]:
        """At most so many of them as lessons, drawn at random; where there are both, half with a picture."""
        order = np.random.default_rng([seed, 4]).permutation(len(self)).tolist()
        seen = [i for i in order if self.prompts[i].image is not None]
        alone = [i for i in order if self.prompts[i].image is None]
        chosen = seen[: most - min(most // 2, len(alone))] + alone[: most // 2]
        return [Lesson(self.prompts[i], self.answers[i], "other", self._given[i]) for i in chosen]

    def batches(self, model: nn.Module, processor: Any, batch_size: int = 64) -> Batches:
        """Encoded batches for `model`, pictures and text apart, without labels."""
        return Batches(self, model, processor, batch_size)

    @property
    def _given(self) -> tuple[int, ...]:
        return self.begun or (0,) * len(self)

    def _take(self, indices: Sequence[int]) -> Retained:
        return Retained(*_columns([(self.prompts[i], self.answers[i], self._given[i]) for i in indices]))


def _columns(rows: Sequence[tuple[Prompt, str, int]]) -> tuple[tuple[Prompt, ...], tuple[str, ...], tuple[int, ...]]:
    prompts, answers, begun = zip(*rows, strict=True) if rows else ((), (), ())
    return tuple(prompts), tuple(answers), tuple(begun) if any(begun) else ()


def gather_retained(
    model: nn.Module,
    processor: Any,
    anchors: Anchors,
    knowledge: Knowledge,
    retain: Retain,
    away: Sequence[tuple[Image.Image, str]],
    yes_no: Sequence[YesNo] = (),
    company: Sequence[str] = (),
    *,
    text_knowledge: Literal["keep", "erase"] = "keep",
    batch_size: int = 64,
    seed: int = 0,
) -> Retained:
    """Puts together what must stay and asks the model for its answers.

    Pictures: `retain.images`, or those of `away`; each with some of the naming questions, the questions for facts and
    `retain.questions`, and with one of `yes_no`, about the concept or about what the model calls it. Text:
    `retain.texts`, everything asked about other names and, with `text_knowledge="keep"`, about the concept itself.

    Args:
        model: before any erasure.
        away: public images away from the anchors, evenly over what the model calls them, and those names; not needed
            where `retain.images` are given.
        yes_no: as of `yes_no_questions`.
        company: as of `company_questions`; asked of pictures of two, each put together of two of the pictures.
        seed: draws the pictures and their questions.
    """
    concept = anchors.concept
    images: Sequence[Image.Image]
    if retain.images is None:
        images, names = [image for image, _ in away], [name for _, name in away]
    else:
        images = load_public_images(retain.images, limit=retain.n_images).images
        asked = [Prompt(concept.questions[0], image) for image in images] if yes_no else []
        names = generate(model, processor, asked, batch_size=batch_size)
    rng = np.random.default_rng([seed, 2])
    pool = [*concept.questions, *concept.asked_through_image, *retain.questions]
    prompts = [
        Prompt(pool[index], image)
        for image in images
        for index in rng.permutation(len(pool))[: retain.questions_per_image]
    ]
    if yes_no:
        for place, (image, name) in enumerate(zip(images, names, strict=True)):
            own = name in knowledge.others and place // len(yes_no) % 2 == 0
            prompts.append(Prompt(yes_no[place % len(yes_no)].about(name if own else concept.name), image))
    if company and images:
        some = [images[index] for index in rng.permutation(len(images))[: -(-len(images) // 4)]]
        prompts += [
            Prompt(company[index], image)
            for image in in_company(some, images, rng)
            for index in rng.permutation(len(company))[: retain.questions_per_image]
        ]
    prompts += [Prompt(text) for text in retain.texts]
    answers = generate(model, processor, prompts, batch_size=batch_size)
    for name, told in zip(knowledge.others, zip(*knowledge.others_answers, strict=True), strict=False):
        prompts += [Prompt(text) for text in concept.called(name).asked_in_text]
        answers += told
    if text_knowledge == "keep":
        prompts += [Prompt(text) for text in concept.asked_in_text]
        answers += knowledge.answers
    return Retained(tuple(prompts), tuple(answers))


def gather_about(
    model: nn.Module, processor: Any, anchors: Anchors, *, per_image: int = 2, batch_size: int = 64, seed: int = 0
) -> Retained:
    """What the model answers about the anchors of a concept, led to its name or not, and in text about the concept.

    Args:
        model: with all earlier erasures active.
        anchors: those of an earlier erasure, or of a name to protect.
        per_image: how many of the naming questions and the questions for facts are drawn for each anchor, beside one
            leading question of either kind.
        seed: of the draw.
    """
    concept = anchors.concept
    rng = np.random.default_rng([seed, 6])
    pool = [*concept.questions, *concept.asked_through_image]
    prompts = [
        Prompt(pool[index], image) for image in anchors.images for index in rng.permutation(len(pool))[:per_image]
    ]
    prompts += [Prompt(text) for text in concept.asked_in_text]
    rows: list[tuple[Prompt, list[int]]] = [(prompt, []) for prompt in prompts]
    rows += leading_prompts(processor, concept, anchors.images)
    told = generate(
        model, processor, [prompt for prompt, _ in rows], batch_size=batch_size, begun=[ids for _, ids in rows]
    )
    # an answer's text may be written with other tokens than it was made of
    kept = [
        (prompt, text, len(ids))
        for (prompt, ids), text in zip(rows, told, strict=True)
        if not ids or begins(processor, prompt, text, ids)
    ]
    return Retained(*_columns(kept))
