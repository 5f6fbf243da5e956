import re
import sys

import pytest
from transformers.utils import logging
from typer.testing import CliRunner

from peft_space import demo, testbed
from peft_space.cli import app

pytest.importorskip("gradio", reason="the page needs gradio: `pip install 'peft-space[demo]'`")

import peft_space.ui
from peft_space.ui.demo import demo_erasures


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs `peft-space ui` in an empty folder of its own; `run.served` holds what would have been served."""
    monkeypatch.chdir(tmp_path)
    level = logging.get_verbosity()

    class Page:
        local_url = "http://127.0.0.1:7860/"

        def block_thread(self):
            run.waited = True

    def serve(workbench, **given):
        run.served = (workbench, given)
        return Page()

    def run(*words):
        return CliRunner().invoke(app, ["ui", *map(str, words)])

    run.served, run.waited = None, False
    monkeypatch.setattr(peft_space.ui, "serve", serve)
    yield run
    logging.set_verbosity(level)
    logging.enable_progress_bar()


def test_adapters_are_served_until_it_is_interrupted(run, folders, base_folder):
    result = run(*folders, "--port", 7999, "--max-upload-mb", 2, "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert "http://127.0.0.1:7860/, with narril, malwen" in result.stdout and run.waited
    workbench, given = run.served
    assert workbench.base == str(base_folder) and not workbench.on_testbed
    assert given == {"host": None, "port": 7999, "max_upload_mb": 2, "wait": False}


def test_demo_shows_the_erasures_of_the_test_bed_that_are_there(run, folders, tmp_path, base_folder, monkeypatch):
    monkeypatch.setattr(testbed, "WEIGHTS", base_folder)
    monkeypatch.setattr(testbed, "load", lambda load=testbed.load: load(base_folder))
    for folder in folders:
        (tmp_path / "erased").mkdir(exist_ok=True)
        (tmp_path / "erased" / folder.rsplit("/", 1)[1]).symlink_to(folder)
    result = run("demo", "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert list(run.served[0].erasures) == ["malwen", "narril"] and run.served[0].on_testbed


def test_demo_makes_one_where_there_is_none(run, small_world, base_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(testbed, "WEIGHTS", base_folder)
    result = run("demo", "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert "training: " in result.stderr and (tmp_path / "erased" / "narril" / "report.json").is_file()
    assert list(run.served[0].erasures) == ["narril"]


def test_an_erasure_of_another_model_is_no_demo(folders, tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr("peft_space.ui.demo.run_demo", lambda **given: made.append(given["output_dir"]))
    (tmp_path / "malwen").symlink_to(folders[1])
    assert demo_erasures(tmp_path) == [str(tmp_path / demo.default_creature())] == [str(made[0])]


def test_a_space(run, folders, tmp_path):
    result = run(folders[1], "--space", "mine", "--base", "owner/base", "--load-in-8bit")
    assert result.exit_code == 0 and "hf upload OWNER/NAME mine --repo-type space" in result.stdout
    assert "load_in_8bit=True" in (tmp_path / "mine" / "app.py").read_text() and run.served is None


@pytest.mark.parametrize(
    ("words", "status", "told"),
    [
        (["demo", "erased/narril"], 2, "error: `demo` must stand alone"),
        (["demo", "--base", "owner/base"], 2, "error: `demo` must stand alone"),
        (["x", "--max-upload-mb", "0"], 2, "error: `--max-upload-mb` must be above 0; got 0"),
        (["x", "--space", "."], 2, "error: `space` must be a new or empty folder"),
        (["./nowhere"], 1, "error in the stage 'model': `path` must be a folder that exists or a Hub repository"),
    ],
)
def test_mistakes_are_told_in_one_line(run, tmp_path, words, status, told):
    (tmp_path / "precious").touch()
    result = run(*words)
    assert result.exit_code == status and run.served is None
    assert result.stderr.startswith(told) and result.stderr.count("\n") == 1


@pytest.mark.parametrize("missing", ["gradio", "matplotlib"])
def test_without_the_extra(run, monkeypatch, missing):
    for name in [name for name in sys.modules if name.startswith("peft_space.ui") or name.split(".")[0] == missing]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("peft_space.ui")
    monkeypatch.setitem(sys.modules, missing, None)
    result = run("demo")
    assert result.exit_code == 2 and re.search(
        rf"`peft-space ui` needs {missing}, which is not installed: `pip install 'peft-space\[demo\]'`", result.stderr
    )
