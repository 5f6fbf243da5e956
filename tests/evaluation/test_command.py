import copy
import functools
import json
import re

import pytest
from typer.testing import CliRunner

from peft_space import Retain, cli, evaluation, save_erasure_adapter
from tests.adapters import shake, space


@pytest.fixture(scope="module")
def adapter(base, anchors, tmp_path_factory):
    """As `erase` saves it."""
    folder = tmp_path_factory.mktemp("erased") / "narril"
    save_erasure_adapter(shake(space(copy.deepcopy(base), subspace=False, concept="narril")), folder)
    anchors.write_scores(folder / "anchors.csv")
    return folder


@pytest.fixture(scope="module")
def folder(public, tmp_path_factory):
    """The public set, each picture by its id."""
    folder = tmp_path_factory.mktemp("public")
    for name, image in zip(public.ids, public.images, strict=True):
        image.save(folder / f"{name}.png")
    return folder


@pytest.fixture
def evaluate(base_folder, adapter, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    few = {"retain": Retain(texts=("Name a fruit.",)), "benign": ("What is one plus one?",), "n_bootstrap": 100}
    small = functools.partial(evaluation.evaluate_erasure, **few, descriptions=(), max_new_tokens=4)
    monkeypatch.setattr(evaluation, "evaluate_erasure", small)

    def evaluate(*words, **options):
        given = {"model": base_folder, "adapter": adapter, "concept": "narril", "device": "cpu", "n-images": 2}
        given |= {"question": "Name the creature.", "text-question": "Where does the {name} live?"} | options
        line = [str(word) for name, value in given.items() if value is not None for word in (f"--{name}", value)]
        return CliRunner().invoke(cli.app, ["evaluate", *line, *map(str, words)])

    return evaluate


def test_evaluate(evaluate, folder, public, tmp_path):
    pictures = tmp_path / "target"
    pictures.mkdir()
    for number in range(2):
        public.images[number].save(pictures / f"{number}.png")
    (pictures / "broken.png").write_bytes(b"no picture")
    result = evaluate(
        *("--public-images", folder, "--target-images", pictures, "--limit", 8),
        *("--other", "zormok", "--json", "told.json", "--plot", "curve.png"),
    )
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "told.json").read_text())
    assert report["concept"] == "narril" and report["settings"]["target_images"] == 2
    assert report["settings"]["public_images"] == 8 and report["settings"]["other_names"] == ["zormok"]
    assert report["figures"]["forget_accuracy"]["units"] == 2 and report["leak"]["mean"] > 0
    assert "pictures of the concept called by its name" in result.stdout and "what is not known" in result.stdout
    assert "1 of the pictures could not be read and were skipped: broken.png" in result.stdout
    assert ("curve.png" in {path.name for path in tmp_path.iterdir()}) is (report["collateral"] is not None)
    assert all(re.fullmatch(r"[a-z ]+: [\d.]+ s", line) for line in result.stderr.splitlines())


def test_evaluate_by_the_name_alone(evaluate, tmp_path):
    result = evaluate("--json", "told.json", "--plot", "curve.png")
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "told.json").read_text())
    assert {"text_told", "agreement_text", "leak"} <= set(report["figures"])
    assert {"forget_accuracy", "agreement_names", "anchor_forget_accuracy", "collateral"} <= set(report["unknown"])
    assert "There is no collateral curve to draw" in result.stdout and not (tmp_path / "curve.png").exists()


@pytest.mark.parametrize(
    ("options", "status", "told"),
    [
        ({"concept": " "}, 2, "error: `concept` must be a non-empty name"),
        ({"adapter": "./nowhere/at/all"}, 1, "error in the stage 'model': `path` must be a folder that exists"),
        ({"target-images": "./nowhere/at/all"}, 1, "error in the stage 'pictures': `public_images` must be a folder"),
    ],
)
def test_what_goes_wrong_is_told_in_one_line(evaluate, options, status, told):
    result = evaluate(**options)
    lines = [line for line in result.stderr.splitlines() if not re.fullmatch(r"[a-z ]+: [\d.]+ s", line)]
    assert result.exit_code == status and len(lines) == 1 and lines[0].startswith(told), result.output


def test_help(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")
    told = CliRunner().invoke(cli.app, ["evaluate", "--help"]).stdout
    assert all(
        f"--{name}" in told for name in ("adapter", "concept", "public-images", "target-images", "json", "plot")
    )
