"""The page: what is asked on the left, both answers on the right, and what is known of the erasure below."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from . import panels
from .picture import picture_input, read_data_url
from .workbench import MOST_STRENGTH, Workbench

MEGABYTE = 10**6
CSS = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
# the machine's own fonts, and greys that are dark enough to read
THEME = gr.themes.Base(
    primary_hue="neutral", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
).set(
    body_text_color_subdued="*neutral_600",
    body_text_color_subdued_dark="*neutral_300",
    block_info_text_color="*neutral_600",
    block_info_text_color_dark="*neutral_300",
    button_primary_background_fill="*neutral_800",
    button_primary_background_fill_hover="*neutral_600",
    button_primary_text_color="white",
    slider_color="*neutral_700",
    slider_color_dark="*neutral_500",
)
_TITLE = "Before and after an erasure"


def build_page(workbench: Workbench, *, max_upload_mb: float = 10) -> gr.Blocks:
    """The page as Gradio's blocks; `serve` puts it on a port.

    Args:
        workbench: the model and its erasures.
        max_upload_mb: a picture with more megabytes (of 10^6 bytes) is refused.

    Raises:
        ValueError: `max_upload_mb` is not above 0.
    """
    if not max_upload_mb > 0:
        raise ValueError(f"`max_upload_mb` must be above 0; got {max_upload_mb}.")
    max_bytes = int(max_upload_mb * MEGABYTE)
    labels = list(workbench.erasures)

    def ask(label: str, strength: float, question: str, url: str | None) -> str:
        if not question.strip():
            return ""
        try:
            before, after = workbench.ask(label, strength, question, read_data_url(url, max_bytes))
        except ValueError as error:
            return panels.trouble(str(error))
        return panels.answers(before, after, label, strength)

    def known(label: str) -> Iterator[Any]:
        erasure, measures = workbench.erasures[label], workbench.measures(label)
        yield gr.Button(visible=measures)
        yield panels.anchors(erasure)
        yield panels.collateral(erasure, measures)
        yield panels.leak(erasure, measures)
        yield panels.report(erasure)

    def suggested(label: str) -> gr.Dropdown:
        return gr.Dropdown(choices=workbench.erasures[label].questions(workbench.on_testbed), value=None)

    def measure(label: str, progress: gr.Progress = gr.Progress()) -> list[Any]:  # noqa: B008
        def listen(stage: str, doing: str, done: int, total: int) -> None:
            progress((done, total) if doing and total else 0, desc=f"{stage}: {doing}" if doing else stage)

        if workbench.measures(label):
            workbench.measure(label, listen)
        return list(known(label))

    # the model is one, and answers one visitor at a time
    alone: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "model", "api_visibility": "private"}
    quick: dict[str, Any] = {"queue": True, "api_visibility": "private", "show_progress": "hidden"}
    with gr.Blocks(title=_TITLE, analytics_enabled=False) as page:
        gr.HTML(f"<h1>{_TITLE}</h1>")
        with gr.Row(equal_height=False):
            with gr.Column(scale=2, min_width=280):
                erasure = gr.Dropdown(labels, value=labels[0], label="Erasure", elem_id="erasure", filterable=False)
                picture = picture_input(workbench.examples(), max_bytes=max_bytes)
            with gr.Column(scale=3, min_width=280):
                questions = workbench.erasures[labels[0]].questions(workbench.on_testbed)
                question = gr.Textbox(questions[0], label="Question", elem_id="question", max_lines=3)
                suggestions = gr.Dropdown(
                    questions, value=None, label="Questions to choose from", elem_id="suggestions", filterable=False
                )
                strength = gr.Slider(
                    0,
                    MOST_STRENGTH,
                    1,
                    step=0.05,
                    label="Strength",
                    info="0 is the base, 1 what was trained, more than 1 a larger dose",
                    elem_id="strength",
                )
                button = gr.Button("Ask", variant="primary", elem_id="ask")
                answers = gr.HTML(elem_id="answers", min_height=160)
        with gr.Tabs():
            with gr.Tab("Anchors"):
                anchors = gr.HTML(elem_id="anchors")
            with gr.Tab("Collateral and leak"):
                measured = gr.Button("Measure it on the test bed (a minute or two)", elem_id="measure")
                with gr.Row():
                    with gr.Column(min_width=280):
                        collateral = gr.HTML(elem_id="collateral")
                    with gr.Column(min_width=280):
                        leak = gr.HTML(elem_id="leak")
            with gr.Tab("Report"):
                report = gr.HTML(elem_id="report")

        asked = [erasure, strength, question, picture]
        told = [measured, anchors, collateral, leak, report]
        gr.on(
            [button.click, question.submit, strength.change, erasure.input, picture.input],
            ask,
            asked,
            answers,
            trigger_mode="always_last",
            show_progress="minimal",
            **alone,
        )
        suggestions.input(lambda text: text, suggestions, question, **quick).then(ask, asked, answers, **alone)
        gr.on([page.load, erasure.input], lambda label: list(known(label)), erasure, told, **quick)
        erasure.input(suggested, erasure, suggestions, **quick)
        measured.click(measure, erasure, told, show_progress_on=[collateral], **alone)
    return page
