"""Texts of others where they are shown, in Markdown and on a terminal: names, answers and labels are text alone."""

from __future__ import annotations

import re

from rich.text import Text

# Controls, separators of lines and halves of surrogate pairs; what turns the direction of the text around it.
_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+")
_TURNING = re.compile("[\u202a-\u202e\u2066-\u2069]")
# inside a word a low line marks nothing
_MARKS = re.compile(r"[\\`*\[\]<>&|~#!$]|(?<![^\W_])_|_(?![^\W_])")
_HARMLESS = re.compile(r"[\w ./@:+,-]+")


def one_line(text: object) -> str:
    """A text without controls, on one line; what is left stays as it is."""
    return _TURNING.sub("", _UNSEEN.sub(" ", str(text)))


def markdown(text: object) -> str:
    """A text as Markdown that reads as the text, inside a line or a table: no mark-up, HTML, link or picture."""
    return _MARKS.sub(lambda mark: f"\\{mark[0]}", one_line(text).strip())


def code(text: object) -> str:
    """A text as code inside a line; one that holds what could end the code as it is."""
    said = one_line(text)
    return f"`{said}`" if _HARMLESS.fullmatch(said) else markdown(said)


def printable(text: object, style: str = "") -> Text:
    """A text for `rich`: no mark-up of it, and no control that a terminal would follow. Lines stay apart."""
    return Text("\n".join(map(one_line, str(text).split("\n"))), style)
