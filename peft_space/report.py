"""What a run leaves beside its adapter: JSON, and what the adapter weighs."""

from __future__ import annotations

import json
import math
import os
import sys
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import safe_open

if TYPE_CHECKING:
    from .anchors import Anchors


def write_json(path: str | os.PathLike[str], data: Mapping[str, Any]) -> Path:
    """Writes JSON beside `path` and renames it into place, so that no reader ever sees half of it.

    Figures that are not finite become `null`: NaN is no JSON.

    Raises:
        OSError: the folder cannot be written to; a file that was there still is.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}"
    try:
        beside.write_text(json.dumps(_finite(data), indent=2, allow_nan=False) + "\n", encoding="utf-8")
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    return path


def check_output(folder: str | os.PathLike[str], name: str = "output_dir") -> Path:
    """The folder, if a run may write there.

    Args:
        folder: where to.
        name: what the user knows it by.

    Raises:
        ValueError: it is a file, or has files in it.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(
            f"`{name}` must be a new or empty folder; got {str(folder)!r}. Name another one, or empty it."
        )
    return folder


def adapter_facts(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """An adapter's `path`, the `bytes` of its weights and how many `parameters` they are."""
    weights = Path(folder) / "adapter_model.safetensors"
    with safe_open(weights, framework="pt") as file:
        parameters = sum(math.prod(file.get_slice(key).get_shape()) for key in file.keys())  # noqa: SIM118
    return {"path": str(folder), "bytes": weights.stat().st_size, "parameters": parameters}


def anchor_images(*several: Anchors) -> dict[str, Any]:
    """Where the anchors can be found, without the pictures themselves.

    Args:
        several: the anchors of one concept or of several, chosen from the same public images.

    Returns:
        `dataset` and `split` (`None` where the pictures are not from the Hub), and `images`: for each anchor its `id`
        and `index` in the public images, its projector `cosine` and `log_likelihood` of the name, nats per token.
    """
    rows = {
        index: {
            "id": anchors.public.ids[index],
            "index": anchors.place(index),
            "cosine": round(float(anchors.cosine[index]), 5),
            "log_likelihood": round(float(anchors.likelihood[index]), 4),
        }
        for anchors in several
        for index in anchors.indices
    }
    public = several[0].public
    return {"dataset": public.dataset, "split": public.split, "images": list(rows.values())}


def hardly_told(report: Mapping[str, Any]) -> list[str]:
    """What the base model told of hardly any public picture: the gauges that began below even odds.

    How far such a gauge fell says little of what the concept's own pictures tell.
    """
    to_fall = [gauge for gauge in report.get("gauges") or [] if None not in (gauge["reference"], gauge["before"])]
    return list(dict.fromkeys(gauge["about"] for gauge in to_fall if gauge["before"] <= 0))


def skipped_images(skipped: Sequence[tuple[str, str]], most: int = 100) -> list[dict[str, str]]:
    """`id` and `reason` of the first pictures that could not be used."""
    return [{"id": name, "reason": why} for name, why in skipped[:most]]


def peak_memory_mib() -> int:
    """The most main memory that this process has held so far, in MiB."""
    if sys.platform == "win32":
        import psutil

        return round(psutil.Process().memory_info().peak_wset / 2**20)
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(most / (2**20 if sys.platform == "darwin" else 2**10))


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    return value
