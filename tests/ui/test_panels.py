import re
import shutil

import pytest
from PIL import Image

from peft_space import ErasureResult
from peft_space.report import write_json

pytest.importorskip("gradio", reason="the page needs gradio: `pip install 'peft-space[demo]'`")

from peft_space.ui import Erasure, panels


@pytest.fixture
def narril(folders):
    return Erasure.open(folders[0])


@pytest.fixture
def malwen(folders):
    return Erasure.open(folders[1])


def test_answers_say_in_words_whether_they_differ():
    assert "The same answer." in panels.answers("a bird", "a bird", "narril", 0.0)
    changed = panels.answers("<script>alert(1)</script>", "", "<i>it</i>", 1.5)
    assert "The answer has changed." in changed and "strength 1.50" in changed and "(no answer)" in changed
    assert "<script" not in changed and "&lt;script&gt;" in changed and "&lt;i&gt;it" in changed
    assert "&lt;b&gt;" in panels.trouble("<b>")


def test_anchors_are_a_gallery_with_scores(malwen, anchors):
    html = panels.anchors(malwen)
    assert html.count("<li") == html.count("data:image/jpeg") == len(anchors) == 8
    first = anchors.indices[0]
    assert f"{anchors.likelihood[first]:.3f} &middot; {anchors.cosine[first]:.2f}" in html
    assert anchors.public.ids[first] in html


def test_a_contact_sheet_is_cut_where_the_pictures_are(anchors):
    side = 92
    sheet = ErasureResult(None, (anchors, anchors), None).contact_sheet()
    tiles = panels.cut(sheet, [len(anchors), len(anchors)])
    assert [tile.tobytes() for tile in tiles] == [
        picture.resize((side, side)).tobytes() for picture in [*anchors.images, *anchors.images]
    ]
    assert panels.cut(sheet, [len(anchors)]) == []


def test_anchors_without_pictures_and_a_sheet_that_can_not_be_cut(malwen, folders, tmp_path):
    folder = shutil.copytree(folders[1], tmp_path / "malwen")
    Image.new("RGB", (100, 100)).save(folder / "anchors.png")
    html = panels.anchors(Erasure.open(str(folder)))
    assert html.count("data:image/jpeg") == 1 and "<li" not in html
    (folder / "anchors.png").unlink()
    html = panels.anchors(Erasure.open(str(folder)))
    assert "not published" in html and html.count("<tr>") == 9 and "data:" not in html


def test_plots_have_their_figures_as_a_table_too(narril):
    html = panels.collateral(narril)
    assert "data:image/svg+xml" in html and "kelzil (near)" in html and "0.12 [0.00, 0.25]" in html
    assert "<b>bold" not in html and "&lt;b&gt;bold" in html
    html = panels.leak(narril)
    assert html.count('<th scope="col">') == 3 and "0.0200" in html and "data:image/svg+xml" in html
    assert all(
        re.search(r"<img [^>]*alt=\"[^\"]+\"", html) for html in (panels.collateral(narril), panels.leak(narril))
    )


def test_the_leak_by_layer():
    rows = panels.by_layer({"model.layers.0.mlp.up": 0.1, "model.layers.11.mlp.up": 0.2, "head": 0.3})
    assert rows == {"up": {0: 0.1, 11: 0.2}, "head": {0: 0.3}}
    axes = panels.leak_figure(rows).axes[0]
    assert [list(line.get_xdata()) for line in axes.lines] == [[0, 11], [0]]
    assert len({line.get_marker() for line in axes.lines}) == 2
    assert {line.get_color() for line in axes.lines} == {"black"}


def test_what_was_not_measured_is_said_and_how_to_measure_it(malwen, folders, base_folder):
    for html in (panels.collateral(malwen), panels.leak(malwen)):
        assert "There is no" in html and "peft-space evaluate" in html and "data:" not in html
        assert f"--json {folders[1]}/evaluation.json" in html and str(base_folder) not in html
    assert "button above" in panels.collateral(malwen, measures=True)


def test_the_report_is_tables_and_tells_no_path(narril, malwen, base_folder):
    html = panels.report(narril)
    assert "0.125 [0.000, 0.250]" in html and "there is no text" in html and "LoRA of rank 4" in html
    assert str(base_folder) not in html and base_folder.name in html
    assert "What is not known" not in panels.report(malwen)


def test_what_an_adapter_says_is_no_markup(folders, tmp_path):
    folder = shutil.copytree(folders[1], tmp_path / "evil")
    evil = "<img src=x onerror=alert(1)>"
    place = {"id": evil, "index": 0, "log_likelihood": -1.0, "cosine": 0.5}
    told = {
        "anchor_images": {"dataset": evil, "split": None, "images": [place]},
        "before": {evil: 0.5},
        "after": {evil: 0.25},
        "gauges": [{"about": evil, "before": 0.0, "reference": None, "after": 0.5}],
        "attacks": [{"name": evil, evil: 1.0}],
        "stopped": evil,
        "aliases": [evil],
    }
    write_json(folder / "report.json", told)
    erasure = Erasure.open(str(folder))
    for panel in (panels.anchors, panels.collateral, panels.leak, panels.report):
        assert "<img src=x" not in panel(erasure)
    assert panels.report(erasure).count("&lt;img src=x") >= 4
