"""Public benchmarks as `EvaluatedSet`s, by the schemas that they have on the Hub."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from huggingface_hub import constants
from PIL import Image, ImageOps

from ..concepts.images import read_picture, why_unreadable
from .examples import EvaluatedSet, Example
from .metrics import says

MLLMU, CLEAR = "MLLMMU/MLLMU-Bench", "therem/CLEAR"
_CAPTION = "Describe this image in one sentence."
_CHOOSE = "Answer with the letter of the right option."


@dataclass(frozen=True)
class Suite:
    """How an image-classification set is read.

    Attributes:
        question: asked about each picture; `answer` is the label's name.
        image_column: the column of the pictures.
        label_column: the column of the labels: numbers with names (`ClassLabel`), or the names themselves.
        split: the split that is not for training.
        hyphenated: whether labels have hyphens in the place of spaces.
    """

    question: str
    image_column: str = "image"
    label_column: str = "label"
    split: str = "test"
    hyphenated: bool = False


SUITES: Mapping[str, Suite] = {
    "celebrities": Suite("Who is the person in this image? Answer with the name only."),
    "stanford-dogs": Suite("What breed is the dog in this image? Answer with the breed only."),
    "wikiart": Suite(
        "Who painted this picture? Answer with the artist's name only.", "image", "artist", "train", True
    ),
    "imagenet-1k": Suite("What is the main object in this image? Answer with its name only.", split="validation"),
    "sun397": Suite("What place or scene does this image show? Answer with its name only."),
    "vegfru": Suite("Which vegetable or fruit is in this image? Answer with its name only."),
}
"""The six suites of SPACE (arXiv 2606.09868, appendix D): the usual columns, and a question for each."""


def load_classification(
    source: Any,
    suite: str | Suite,
    *,
    config: str | None = None,
    split: str | None = None,
    label_names: Sequence[str] | None = None,
    concepts: Sequence[str] | None = None,
    per_concept: int | None = None,
) -> EvaluatedSet:
    """Reads an image-classification set: an image column, a label column, the labels' names, a question.

    A label's name is written as one would say it: `n02085620-Chihuahua` is "Chihuahua", `/a/apple_orchard` is "apple
    orchard", and in "tench, Tinca tinca" the second name is an alias.

    Args:
        source: rows (mappings, or a `datasets.Dataset`), a folder in the layout of a Hub data set, or a Hub id.
        suite: a key of `SUITES`, or a `Suite` for any other set.
        config: of a Hub data set that has several.
        split: in the place of the suite's.
        label_names: names of numbered labels, where the set does not know them.
        concepts: read these only, by the names that they come out with.
        per_concept: at most so many pictures of each.

    Raises:
        ValueError: there is no such suite, column or name, or nothing is read.
    """
    if isinstance(suite, str):
        if suite not in SUITES:
            raise ValueError(f"`suite` must be one of {', '.join(SUITES)}, or a `Suite`; got {suite!r}.")
        suite = SUITES[suite]
    rows = _rows(source, config, split or suite.split)
    if label_names is None:
        feature = (getattr(rows, "features", None) or {}).get(suite.label_column)
        label_names = getattr(feature, "names", None)
    wanted = None if concepts is None else {name.casefold() for name in concepts}
    counts: dict[str, int] = {}
    examples = []
    for place, row in enumerate(rows):
        with _readable(place):
            label = _column(row, suite.label_column)
            names = _spoken(_named(label, label_names, suite.label_column), suite.hyphenated)
            number = counts.get(names[0], 0)
            if (wanted is not None and names[0].casefold() not in wanted) or number == per_concept:
                continue
            counts[names[0]] = number + 1
            image = _picture(_column(row, suite.image_column), source)
            examples.append(Example(suite.question, names[0], image, names[0], "name", aliases=tuple(names[1:])))
    return _filled(examples, source, config)


def load_mllmu(
    source: Any = MLLMU, config: str = "forget_5", *, split: str = "train", limit: int | None = None
) -> EvaluatedSet:
    """Reads a set of MLLMU-Bench (arXiv 2410.22108): multiple choice, free answers and gaps, with picture and without.

    The person's `ID` is the concept of every example, as the set has no column for names.

    Args:
        source: rows, a folder in the layout of the Hub's data set, or its id.
        config: `forget_5`, `forget_10`, `forget_15`, `retain_95`, ..., `Retain_Set`, `Test_Set`, `Full_Set`.
        split: its split.
        limit: read at most so many persons.

    Raises:
        ValueError: a column is missing, or nothing is read.
    """
    examples: list[Example] = []
    for number, row in enumerate(_rows(source, config, split)):
        if number == limit:
            break
        with _readable(number):
            examples += _of_person(row, source)
    return _filled(examples, source, config)


def _of_person(row: Mapping[str, Any], source: Any) -> list[Example]:
    examples: list[Example] = []
    person = str(_column(row, "ID"))
    # the set of transformed pictures has several of each person
    pictures = [_picture(image, source) for image in row["images"]] if row.get("images") else None
    pictures = pictures or [_picture(_column(row, "image"), source)]
    if row.get("question") and row.get("answer"):
        examples += [Example(row["question"], row["answer"], image, person, "generation") for image in pictures]
    classification = _column(row, "Classification_Task")
    for key, some in (("Image_Textual_Questions", pictures), ("Pure_Text_Questions", [None])):
        for asked in _records(classification[key]):
            options = {letter: text for letter, text in asked["Options"].items() if text is not None}
            listed = "\n".join(f"{letter}. {text}" for letter, text in options.items())
            question, letters = f"{asked['Question']}\n{listed}\n{_CHOOSE}", tuple(options)
            examples += [
                Example(question, asked["Correct_Answer"], image, person, "choice", options=letters) for image in some
            ]
    tasks: tuple[tuple[str, Literal["generation", "cloze"]], ...] = (
        ("Generation_Task", "generation"),
        ("Mask_Task", "cloze"),
    )
    for column, task in tasks:
        for asked in _records(_column(row, column)):
            alone = "pure" in asked["Type"].lower()
            for image in [None] if alone else pictures:
                examples.append(Example(asked["Question"], asked["Ground_Truth"], image, person, task))
    return examples


def load_clear(
    source: Any = CLEAR,
    config: str = "forget05",
    *,
    names: Sequence[str] = (),
    split: str = "train",
    limit: int | None = None,
) -> EvaluatedSet:
    """Reads a set of CLEAR (arXiv 2410.18057): captions of persons' pictures and questions in text.

    Rows with a picture ask for its caption and, with `perturbed_captions`, for the truth ratio; where the row has a
    name, for the name as well (`perturbed_names` are wrong ones). Rows without a picture hold a question of TOFU. The
    concept of each is its `name`. The sets with TOFU have no such column: there a row belongs to the one of `names`
    that its text holds, and to nobody without. `real_faces` asks for the names of known persons, and they are the
    concepts; `real_world` has questions about no concept.

    Args:
        source: rows, a folder in the layout of the Hub's data set, or its id.
        config: `forget05`, `forget05+tofu`, `forget05_perturbed`, `retain95`, `real_faces`, `real_world`, ...
        names: of persons, for rows that do not say whom they are about: `load_clear(source, "forget05").concepts`.
        split: its split.
        limit: read at most so many rows.

    Raises:
        ValueError: a column is missing, or nothing is read.
    """
    examples: list[Example] = []
    for number, row in enumerate(_rows(source, config, split)):
        if number == limit:
            break
        with _readable(number):
            examples += _of_clear(row, source, names)
    return _filled(examples, source, config)


def _of_clear(row: Mapping[str, Any], source: Any, names: Sequence[str]) -> list[Example]:
    examples: list[Example] = []
    text = " ".join(row.get(column) or "" for column in ("caption", "question", "answer"))
    name = row.get("name") or next((name for name in names if says((name,), text)), None)
    if row.get("options") and row.get("answer"):
        image, answer = _picture(_column(row, "image"), source), row["answer"]
        wrong = tuple(option for option in row["options"] if option != answer)
        if row.get("question"):
            return [Example(row["question"], answer, image, None, "generation", perturbed=wrong)]
        return [Example(SUITES["celebrities"].question, answer, image, answer, "name", perturbed=wrong)]
    if row.get("image") is not None:
        image = _picture(row["image"], source)
        if row.get("caption"):
            perturbed = tuple(row.get("perturbed_captions") or ())
            paraphrase = row.get("paraphrased_caption") or None
            examples.append(
                Example(
                    _CAPTION, row["caption"], image, name, "generation", paraphrase=paraphrase, perturbed=perturbed
                )
            )
        if row.get("name"):
            wrong = tuple(row.get("perturbed_names") or ())
            question = SUITES["celebrities"].question
            examples.append(Example(question, row["name"], image, name, "name", perturbed=wrong))
    elif row.get("question") and row.get("answer"):
        examples.append(Example(row["question"], row["answer"], None, name, "generation"))
    elif "caption" not in row:
        raise ValueError(f"`source` must have the columns of CLEAR, 'image', 'caption' and 'name'; got {list(row)}.")
    return examples


def _rows(source: Any, config: str | None, split: str) -> Iterable[Mapping[str, Any]]:
    if not isinstance(source, (str, Path)):
        if not isinstance(source, Iterable):
            raise TypeError(f"`source` must be rows, a folder or a Hub data-set id; got a {type(source).__name__}.")
        return cast(Iterable[Mapping[str, Any]], source)
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise ImportError("reading data sets needs `datasets`: `pip install 'peft-space[data]'`.") from error
    try:
        return cast(Iterable[Mapping[str, Any]], _undecoded(load_dataset(str(source), config, split=split)))
    except Exception as error:  # offline, unknown, private, no such split: each comes as another library's exception
        raise ValueError(
            f"`source` must be a folder or a Hub data-set id that can be loaded; got {str(source)!r}, config "
            f"{config!r}, split {split!r}. {type(error).__name__}: {error}"
        ) from error


def _undecoded(rows: Any) -> Any:
    """The rows with their pictures still files: `_picture` reads them, not the decoder that a file asks for."""
    from datasets import Image as ImageFeature

    for column, kind in (rows.features or {}).items():
        if isinstance(kind, ImageFeature):
            rows = rows.cast_column(column, ImageFeature(decode=False))
    return rows


def _column(row: Mapping[str, Any], column: str) -> Any:
    if column not in row:
        raise ValueError(f"`source` must have a column {column!r}; got {list(row)}.")
    return row[column]


def _records(value: Any) -> list[dict[str, Any]]:
    """A list of records, also where an older `datasets` has turned it into a record of lists."""
    if isinstance(value, Mapping):
        return [dict(zip(value, some, strict=True)) for some in zip(*value.values(), strict=True)]
    return list(value or ())


@contextmanager
def _readable(number: int) -> Iterator[None]:
    """Rows come from others: one that has not the form that its set is known by is told, whatever is wrong with it."""
    try:
        yield
    except (AttributeError, IndexError, KeyError, OverflowError, TypeError) as error:
        raise ValueError(
            f"`source` must have rows of the form that the data set is known by; got row {number}, where "
            f"{type(error).__name__}: {error!s:.200}."
        ) from error


def _picture(value: Any, source: Any) -> Image.Image:
    if isinstance(value, dict):
        try:
            if not isinstance(value.get("bytes"), bytes):
                _check_place(value.get("path"), source)
            return read_picture(value)
        except Exception as error:  # what a broken file raises is up to a dozen decoders
            raise ValueError(
                f"`source` must hold pictures in its image column; got one that can't be read: {why_unreadable(error)}"
            ) from error
    if not isinstance(value, Image.Image):
        raise ValueError(f"`source` must hold pictures in its image column; got a {type(value).__name__}.")
    return ImageOps.exif_transpose(value).convert("RGB")


def _check_place(path: Any, source: Any) -> None:
    """Rows may name files: those of their own set, where it lies or where `datasets` has put it, and no other."""
    if not isinstance(source, (str, Path)):
        return
    from datasets import config

    places = [source] if Path(source).is_dir() else [config.HF_DATASETS_CACHE, constants.HF_HUB_CACHE]
    if not any(Path(str(path)).resolve().is_relative_to(Path(place).resolve()) for place in places):
        raise ValueError("no picture lies in the row, and it names none of the data set")


def _named(label: Any, names: Sequence[str] | None, column: str) -> str:
    if isinstance(label, str):
        return label
    if names is None or not 0 <= int(label) < len(names):
        raise ValueError(
            f"`label_names` must name every label of the column {column!r}; got label {label!r} of "
            f"{len(names or ())} names. Give them in the order of their numbers."
        )
    return names[int(label)]


def _spoken(label: str, hyphenated: bool) -> list[str]:
    """The names in a label, as one would say them."""
    names = []
    for part in label.split(","):
        part = re.sub(r"^n\d{8}[-_ ]", "", part.strip())
        part = re.sub(r"^/\w/", "", part)
        part = part.replace("-", " ") if hyphenated else part
        # SUN397 puts what tells two kinds of a place apart behind it: "church/outdoor"
        names.append(" ".join(reversed(part.replace("_", " ").split("/"))).strip())
    return [name for name in dict.fromkeys(names) if name]


def _filled(examples: list[Example], source: Any, config: str | None) -> EvaluatedSet:
    if not examples:
        raise ValueError(f"`source` gave no question with an answer; got {_told(source)}, config {config!r}.")
    name = f"{source}" if isinstance(source, str) and not Path(source).exists() else None
    return EvaluatedSet(tuple(examples), f"{name}, {config}" if name and config else name)


def _told(source: Any) -> str:
    return repr(str(source)) if isinstance(source, (str, Path)) else f"a {type(source).__name__}"
