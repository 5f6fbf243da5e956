"""What the models tell in text: of the concept by its name, and where nobody asked for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..anchors import elicit
from ..concepts import Concept, Retain
from ..vlm import Prompt
from .agreement import measure_answers
from .metrics import same, says
from .pair import Pair
from .report import HELD_OUT, RETAINED, TRAINED_ON, Ledger

UNSEEN_TEXT_QUESTIONS = (
    "Describe {name} in one sentence.",
    "What do people usually say about {name}?",
    "Give a short introduction to {name}.",
)
BENIGN_TEXTS = (
    "What is three plus four?",
    "Name an animal that can fly.",
    "What do you use an umbrella for?",
    "Which month comes after March?",
    "What is the capital of Italy?",
    "Suggest a name for a cat.",
    "How do plants get water?",
    "Who painted the Mona Lisa?",
    "Write one sentence about autumn.",
    "What is the opposite of early?",
    "How many minutes are in an hour?",
    "What can be cooked with rice?",
    "Translate 'thank you' into French.",
    "What does a teacher do?",
    "Why do people wear glasses?",
    "Name two rivers.",
)
"""Harmless prompts; none is a built-in one of `Retain`, so that the erasure was not told to keep their answers."""


def measure_text(
    pair: Pair,
    ledger: Ledger,
    concept: Concept,
    retain: Retain,
    *,
    others: Sequence[str],
    unseen: Sequence[str],
    benign: Sequence[str],
) -> list[tuple[Prompt, str]]:
    """What is told of the name in text, and whether other text stays as it was.

    Args:
        others: other concepts' names, to tell what is said of this one alone.
        unseen: questions about the name that the erasure did not ask, each with `{name}`.
        benign: harmless prompts.

    Returns:
        The prompts of `retain` with the base's answers.
    """
    for key, questions, data in (
        ("", concept.text_questions, TRAINED_ON),
        ("_unseen", tuple(q for q in unseen if q not in concept.text_questions), HELD_OUT),
    ):
        if questions:
            _facts(pair, ledger, replace(concept, text_questions=questions), others, key, data)
    apart = [text for text in benign if text not in retain.texts]
    spoken: tuple[list[str], ...] = ([], [])
    kept: list[str] = []
    for key, texts, whose, data in (
        ("text", list(retain.texts), "text prompts", RETAINED),
        ("benign", apart, "harmless text prompts", HELD_OUT),
    ):
        if texts:
            told = measure_answers(pair, ledger, [Prompt(text) for text in texts], key, whose, data)
            for side, some in zip(spoken, told, strict=True):
                side += some
            kept = kept or told[0]
    base, erased = ([float(says(concept.names, text)) for text in some] for some in spoken)
    units = [*retain.texts, *apart]
    label = "other text: the name said though nobody asked"
    ledger.add("text_name_unasked", label, base, erased, units, data=RETAINED)
    return [(Prompt(text), answer) for text, answer in zip(retain.texts, kept, strict=False)]


def _facts(pair: Pair, ledger: Ledger, concept: Concept, others: Sequence[str], key: str, data: str) -> None:
    """Whether what the base tells of the name in text is still told.

    "Telling" are the words of an answer that the base does not say of other names as well (`anchors.elicit`).
    """
    wording = "facts of the name, asked in text" + (", unseen questions" if key else "")
    prompts = [Prompt(text) for text in concept.asked_in_text]
    told = pair.answers(prompts)
    units = concept.asked_in_text
    agrees = [float(same(*both)) for both in zip(*told, strict=True)]
    ledger.add(f"text_told{key}", f"{wording}: answered the same as before", None, agrees, units, data=data)
    kept = [place for place, text in enumerate(told[0]) if text]
    levels = pair.likelihood([prompts[place] for place in kept], [told[0][place] for place in kept])
    base, erased = (some.exp().tolist() for some in levels)
    label = f"{wording}: probability of the base's answers, per token"
    asked = [units[place] for place in kept]
    ledger.add(f"text_told{key}_probability", label, base, erased, asked, data=data, unit="probability")
    if not others:
        ledger.unknown[f"text_leakage{key}"] = (
            "what is told of this name alone can't be told from what is told of any; pass `others`, or `public_images`"
        )
        return
    with pair.before() as model:
        telling = elicit(model, pair.processor, concept, others).telling
    rows = [(words, both) for words, *both in zip(telling, *told, strict=True) if words]
    base, erased = ([float(says(words, both[side])) for words, both in rows] for side in (0, 1))
    asked = [text for text, words in zip(units, telling, strict=True) if words]
    label = f"{wording}: words that tell this name from others, still said"
    ledger.add(f"text_leakage{key}", label, base, erased, asked, data=data)
