import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import SpaceCard

from peft_space import testbed

pytest.importorskip("gradio", reason="the page needs gradio: `pip install 'peft-space[demo]'`")

from peft_space.ui import space, write_space


@pytest.fixture
def shipped(folders, base_folder, monkeypatch):
    """The small random model in the place of the one that ships with the package."""
    monkeypatch.setattr(testbed, "WEIGHTS", base_folder)
    return folders


def test_a_space_holds_all_that_it_needs_and_no_path_of_this_machine(shipped, tmp_path, base_folder):
    folder = write_space(shipped, tmp_path / "space", max_upload_mb=4)
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert files >= {"app.py", "requirements.txt", "README.md", "peft_space/ui/page.css", "peft_space/cli.py"}
    assert files >= {f"adapters/0-narril/{name}" for name in ("adapter_model.safetensors", "anchors.png", "README.md")}
    assert "adapters/0-narril/evaluation.json" in files and "adapters/1-malwen/evaluation.json" not in files
    assert not [name for name in files if "__pycache__" in name]
    for path in folder.rglob("*.*"):
        if path.suffix in (".json", ".py", ".md", ".txt", ".csv"):
            text = path.read_text(encoding="utf-8")
            assert str(base_folder) not in text and str(tmp_path) not in text, path
    card = SpaceCard.load(folder / "README.md").data
    assert (card.sdk, card.app_file, card.python_version) == ("gradio", "app.py", "3.11")
    import gradio

    assert card.sdk_version == gradio.__version__ and "narril" not in (folder / "README.md").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["space"]


def test_what_a_space_installs_is_pinned(shipped):
    import torch

    pins = dict(line.split("==") for line in space.requirements("demo"))
    assert pins["torch"] == torch.__version__.split("+")[0] and {"matplotlib", "peft", "transformers"} <= set(pins)
    assert not {"gradio", "pytest", "bitsandbytes"} & set(pins)
    assert any(line.startswith("bitsandbytes==") for line in space.requirements("demo", "4bit"))


def test_a_space_runs(shipped, tmp_path, base_folder):
    folder = write_space(shipped, tmp_path / "space")
    for name in ("config.json", "model.safetensors"):
        (folder / "peft_space" / "testbed" / "weights" / name).unlink()
    for path in base_folder.iterdir():
        (folder / "peft_space" / "testbed" / "weights" / path.name).write_bytes(path.read_bytes())
    told = (
        "import runpy, sys, types; import peft_space.ui as ui; "
        "ui.serve = lambda bench, **given: print('SERVED', ui.__file__, bench.base, list(bench.erasures), given, "
        "bench.ask('malwen', 1.0, 'Where?')); runpy.run_path('app.py', run_name='__main__')"
    )
    environment = {**os.environ, "PYTHONPATH": ".", "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run(
        [sys.executable, "-c", told], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr
    line = next(line for line in run.stdout.splitlines() if line.startswith("SERVED"))
    assert str(folder) in line and "demo ['narril', 'malwen'] {'max_upload_mb': 10}" in line


def test_a_space_loads_the_base_as_it_was_told(shipped, tmp_path):
    how = {"dtype": "bfloat16", "load_in_4bit": True}
    folder = write_space(shipped[1:], tmp_path / "space", "owner/base", **how)
    app = (folder / "app.py").read_text()
    assert "'owner/base', dtype='bfloat16', load_in_4bit=True), max_upload_mb=10)" in app
    assert "\nbitsandbytes==" in (folder / "requirements.txt").read_text()


def test_an_adapter_of_the_hub_stays_there(shipped, hub, tmp_path):
    from peft_space import push_erasure

    push_erasure(shipped[1], "jane/malwen-erased", base_model="owner/base")
    folder = write_space(["jane/malwen-erased"], tmp_path / "space")
    assert "load(['jane/malwen-erased'], 'owner/base'), max" in (folder / "app.py").read_text()
    assert not (folder / "adapters").exists() and not (folder / "peft_space" / "testbed" / "weights").exists()
    assert SpaceCard.load(folder / "README.md").data.models == ["owner/base"]


def test_a_base_that_a_space_can_not_load(folders, tmp_path):
    with pytest.raises(ValueError, match=r"`base` must be a Hub id that a Space can load; got the folder"):
        write_space(folders, tmp_path / "space")
    assert not list(tmp_path.iterdir())


def test_a_name_is_no_code(shipped, tmp_path):
    evil = tmp_path / "it's \"); import os #"
    Path(shipped[1]).rename(evil)
    try:
        folder = write_space([str(evil)], tmp_path / "space")
    finally:
        evil.rename(shipped[1])
    assert "['adapters/0-it-s-import-os-']" in (folder / "app.py").read_text()
    compile((folder / "app.py").read_text(), "app.py", "exec")


def test_nothing_is_overwritten(shipped, tmp_path):
    (tmp_path / "space").mkdir()
    (tmp_path / "space" / "precious").touch()
    with pytest.raises(FileExistsError):
        write_space(shipped, tmp_path / "space")
    assert [path.name for path in (tmp_path / "space").iterdir()] == ["precious"]
    assert json.loads((Path(shipped[0]) / "report.json").read_text())
