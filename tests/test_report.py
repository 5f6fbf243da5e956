import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from peft_space import Anchors, Concept, PublicImages
from peft_space.report import adapter_facts, anchor_images, check_output, hardly_told, peak_memory_mib, write_json


def test_what_is_written_can_be_read(tmp_path):
    path = write_json(tmp_path / "deep" / "report.json", {"leak": {"mean": 0.01}, "kinds": ("a", "b")})
    assert json.loads(path.read_text()) == {"leak": {"mean": 0.01}, "kinds": ["a", "b"]}
    assert [file.name for file in path.parent.iterdir()] == ["report.json"]


@pytest.mark.parametrize("figure", [float("nan"), float("inf"), -float("inf")])
def test_a_figure_that_is_not_finite_is_null(tmp_path, figure):
    path = write_json(tmp_path / "report.json", {"gauges": [{"after": figure}]})
    assert json.loads(path.read_text()) == {"gauges": [{"after": None}]}


def test_disk_full(tmp_path, monkeypatch):
    write_json(tmp_path / "report.json", {"seed": 0})

    def full(self, text, **kwargs):
        with open(self, "w") as file:
            file.write(text[:3])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        write_json(tmp_path / "report.json", {"seed": 1})
    assert [file.name for file in tmp_path.iterdir()] == ["report.json"]
    assert json.loads((tmp_path / "report.json").read_text()) == {"seed": 0}


def test_facts_of_an_adapter(tmp_path):
    save_file({"A": torch.zeros(4, 8), "B": torch.zeros(8, 4)}, tmp_path / "adapter_model.safetensors")
    facts = adapter_facts(tmp_path)
    assert facts == {"path": str(tmp_path), "bytes": facts["bytes"], "parameters": 64}
    assert facts["bytes"] > 64 * 4


@pytest.mark.parametrize("kind", ["new", "empty"])
def test_a_folder_that_may_be_written_to(tmp_path, kind):
    folder = tmp_path / kind
    if kind == "empty":
        folder.mkdir()
    assert check_output(str(folder)) == folder


@pytest.mark.parametrize("kind", ["a file", "a folder with files"])
def test_a_folder_that_may_not(tmp_path, kind):
    folder = tmp_path / "out"
    if kind == "a folder with files":
        folder.mkdir()
        (folder / "precious").touch()
    else:
        folder.touch()
    with pytest.raises(ValueError, match=r"`output_dir` must be a new or empty folder; got '.*out'"):
        check_output(folder)


def test_peak_memory_never_falls():
    first = peak_memory_mib()
    block = torch.ones(2**24)  # 64 MiB
    assert first > 50 and peak_memory_mib() >= first
    del block
    assert peak_memory_mib() >= first


def test_anchors_are_listed_by_where_others_find_them():
    pictures = tuple(Image.new("RGB", (2, 2)) for _ in range(4))
    public = PublicImages(pictures, ("7", "8", "11", "12"), dataset="jane/birds", split="test")
    likelihood = torch.tensor([-1.0, float("nan"), -3.25, -0.5])
    anchors = Anchors(Concept("owl"), public, (3, 0), (2,), torch.tensor([0.1, 0.2, 0.3, 0.4]), likelihood, 0.1)
    assert json.loads(json.dumps(anchor_images(anchors))) == {
        "dataset": "jane/birds",
        "split": "test",
        "images": [
            {"id": "12", "index": 3, "cosine": 0.4, "log_likelihood": -0.5},
            {"id": "7", "index": 0, "cosine": 0.1, "log_likelihood": -1.0},
        ],
    }


def test_what_was_hardly_told_began_below_even_odds_and_should_fall():
    gauges = [
        {"about": "name", "before": 3.0, "reference": -6.0},
        {"about": "fact in text", "before": 0.0, "reference": -6.0},
        {"about": "yes or no", "before": -1.0, "reference": -6.0},
        {"about": "yes or no", "before": -2.0, "reference": -6.0},
        {"about": "fact through the image", "before": None, "reference": -6.0},
        {"about": "what should stay", "before": -0.1, "reference": None},
    ]
    assert hardly_told({"gauges": gauges}) == ["fact in text", "yes or no"]
    assert hardly_told({}) == []
