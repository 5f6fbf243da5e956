"""A picture from the visitor's machine, read in the browser and sent along with the question: no file on this side.

Gradio's own upload writes each file into a folder for temporary files, where it stays. Here the browser turns the
file into a data URL, which is the component's value: text in the request, and in memory alone.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path

import gradio as gr
from PIL import Image

from ..concepts.images import read_picture, why_unreadable

_HERE = Path(__file__).parent


def picture_input(examples: Sequence[tuple[str, Image.Image]] = (), *, max_bytes: int) -> gr.HTML:
    """A place to drop, paste or choose a picture, and some pictures to try; its value is a data URL or `None`.

    Args:
        examples: pictures, each with what it shows.
        max_bytes: a larger file is refused by the browser.
    """
    return gr.HTML(
        label="Picture",
        html_template=(_HERE / "picture.html").read_text(encoding="utf-8"),
        js_on_load=(_HERE / "picture.js").read_text(encoding="utf-8"),
        elem_id="picture",
        message="",
        max_bytes=max_bytes,
        megabytes=f"{max_bytes / 1e6:g}",
        examples=[{"name": name, "url": data_url(picture)} for name, picture in examples],
    )


def data_url(picture: Image.Image) -> str:
    """The picture as a PNG in a data URL."""
    file = io.BytesIO()
    picture.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def read_data_url(value: str | None, max_bytes: int) -> Image.Image | None:
    """The picture in a data URL as RGB and upright; `None` where there is none.

    Raises:
        ValueError: it is larger than `max_bytes`, or no picture that can be read.
    """
    if not value:
        return None
    kind, _, data = value.partition(";base64,")
    if not kind.startswith("data:"):
        raise ValueError("`picture` must be a picture in a data URL; got something else. Do choose a file.")
    if len(data) * 3 // 4 > max_bytes + 2:
        size = f"{len(data) * 0.75e-6:.1f} MB"
        raise ValueError(f"`picture` must have at most {max_bytes / 1e6:g} MB; got {size}. Do make it smaller.")
    try:
        return read_picture(base64.b64decode(data, validate=True))
    except Exception as error:  # what a broken file raises is up to a dozen decoders
        why = why_unreadable(error).rstrip(".")
        raise ValueError(f"`picture` can't be read: {why}. Do choose another file.") from error
