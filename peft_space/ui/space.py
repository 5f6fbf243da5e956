"""The folder of a Hugging Face Space that shows some erasures, ready to be pushed."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from huggingface_hub import SpaceCard, SpaceCardData
from jinja2 import Environment
from packaging.requirements import Requirement

from ..adapter import whole_folder
from ..hub.content import is_local, open_publication, write_repository
from .workbench import DEMO, EVALUATION_FILE, Erasure, base_of_erasures

_PACKAGE = Path(__file__).parents[1]
_APP = '''"""Before and after an erasure, side by side."""

from peft_space.ui import Workbench, serve

serve(Workbench.load({given}), max_upload_mb={max_upload_mb!r})
'''
_CARD = """\
---
{{ card_data }}
---

# Before and after an erasure

A vision-language model, asked with and without erasure adapters made by `peft_space`: answers before and after, a dial
for the strength, the public images that each adapter was trained on, and what was measured.

Pictures that visitors drop are kept in memory and never written to disk.
"""


def write_space(
    sources: Sequence[str],
    output: str | Path,
    base: str | None = None,
    *,
    max_upload_mb: float = 10,
    token: str | None = None,
    dtype: str = "auto",
    load_in_4bit: bool = False,
    load_in_8bit: bool = False,
) -> Path:
    """Writes `app.py`, `requirements.txt`, `README.md`, the package and the adapters that are folders here.

    Adapters are written as `push_erasure` publishes them, with their contact sheets and evaluations and without a path
    of this machine; those on the Hub are loaded from there. `hf upload OWNER/NAME DIR --repo-type space` pushes it.

    Args:
        sources: folders or Hub ids of erasure adapters.
        output: a new or empty folder; it appears whole or not at all.
        base: `DEMO` or a Hub id; by default the base that the first erasure names.
        max_upload_mb: as for `serve`.
        token: what opens private repositories.
        dtype: how the Space loads the base, as for `load_base`.
        load_in_4bit: the same.
        load_in_8bit: the same.

    Returns:
        The folder.

    Raises:
        ValueError: an erasure is not there, or the base is a folder of this machine.
        FileExistsError: the folder has files already.
    """
    erasures = [Erasure.open(source, token=token) for source in sources]
    base = base or base_of_erasures(erasures)
    if base != DEMO and is_local(base):
        raise ValueError(f"`base` must be a Hub id that a Space can load; got the folder {base!r}. Do push it first.")
    with whole_folder(output) as draft:
        places: list[str] = []
        for erasure in erasures:
            if not Path(erasure.source).is_dir():
                places.append(erasure.source)
                continue
            name = f"{len(places)}-{re.sub(r'[^A-Za-z0-9_-]+', '-', erasure.folder.resolve().name)}"
            folder = draft / "adapters" / name
            folder.mkdir(parents=True)
            with open_publication(erasure.folder) as publication:
                hub_id = None if base == DEMO else base
                pictured = publication.sheet is not None
                write_repository(folder, publication, name, base_model=hub_id, with_images=pictured)
            if erasure.evaluation:
                shutil.copyfile(erasure.folder / EVALUATION_FILE, folder / EVALUATION_FILE)
            places.append(f"adapters/{name}")
        leave_out = shutil.ignore_patterns("__pycache__", *(() if base == DEMO else ("weights",)))
        shutil.copytree(_PACKAGE, draft / _PACKAGE.name, ignore=leave_out)
        given = f"{places!r}, {base!r}"
        given += f", dtype={dtype!r}" if dtype != "auto" else ""
        given += ", load_in_4bit=True" if load_in_4bit else ""
        given += ", load_in_8bit=True" if load_in_8bit else ""
        app = _APP.format(given=given, max_upload_mb=max_upload_mb)
        (draft / "app.py").write_text(app, encoding="utf-8")
        extras = ("demo", "4bit") if load_in_4bit or load_in_8bit else ("demo",)
        (draft / "requirements.txt").write_text("\n".join(requirements(*extras)) + "\n", encoding="utf-8")
        data = SpaceCardData(
            title="Before and after an erasure",
            emoji="🔍",
            colorFrom="gray",
            colorTo="gray",
            sdk="gradio",
            sdk_version=metadata.version("gradio"),
            python_version="3.11",
            app_file="app.py",
            models=None if base == DEMO else [base],
            short_description="A vision-language model before and after erasure adapters",
        )
        text = Environment(keep_trailing_newline=True).from_string(_CARD).render(card_data=data.to_yaml())
        SpaceCard(text).save(draft / "README.md")
    return Path(output)


def requirements(*extras: str) -> list[str]:
    """What the package needs with its `extras`, at the versions that are installed here.

    Gradio is left to the Space, whose `sdk_version` names it.
    """
    needed = map(Requirement, metadata.requires("peft-space") or [])
    wanted = (
        one for one in needed if one.marker is None or any(one.marker.evaluate({"extra": extra}) for extra in extras)
    )
    # a local version ("+cpu") is on no index
    return [f"{one.name}=={metadata.version(one.name).split('+')[0]}" for one in wanted if one.name != "gradio"]
