import subprocess
import sys
import tomllib
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    built = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(built, cwd=ROOT, check=True, capture_output=True)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as file:
        yield file


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    ours = [path for path in (ROOT / "peft_space").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    metadata = {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE"}
    names = {name for name in wheel.namelist() if not name.startswith("peft_space-")}
    assert names == {path.relative_to(ROOT).as_posix() for path in ours}
    assert {name.split("/", 1)[1] for name in wheel.namelist() if name not in names} == metadata
    kinds = (".py", ".pyi", ".typed", ".jinja", ".json", ".safetensors", ".css", ".html", ".js")
    assert not {name for name in names if not name.endswith(kinds)}
    needed = "py.typed __init__.pyi hub/model_card.md.jinja testbed/weights/model.safetensors"
    assert {f"peft_space/{name}" for name in needed.split()} <= names


def test_the_wheel_names_what_it_needs(wheel):
    text = wheel.read(next(name for name in wheel.namelist() if name.endswith("/METADATA"))).decode()
    told = HeaderParser().parsestr(text)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert told["Name"] == project["name"] and told["Requires-Python"] == project["requires-python"]
    assert set(told.get_all("Provides-Extra")) == set(project["optional-dependencies"])
    needed = [line.split(";")[0].strip() for line in told.get_all("Requires-Dist") if "extra ==" not in line]
    assert len(needed) == len(project["dependencies"])
    entry = wheel.read(next(name for name in wheel.namelist() if name.endswith("entry_points.txt"))).decode()
    assert "peft-space = peft_space.cli:app" in entry
