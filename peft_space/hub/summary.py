"""What a published erasure says of itself, read without its base and without its weights."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ..adapter import CONFIG_FILE, fetch_adapter
from ..tuner import SIDE_FILE, SpaceConfig
from .card import attack_rows, concept_names, marks
from .content import REPORT_FILE, report_of
from .redaction import HASH_KEY


def inspect_erasure(path: str | os.PathLike[str], **hub_kwargs: Any) -> dict[str, Any]:
    """What an erasure adapter erases, from which base, and what was measured.

    Args:
        path: folder or Hub id.
        **hub_kwargs: as for `load_erasure`.

    Returns:
        JSON types: `concept` (list of names; empty where it is redacted or not said), `redacted`, `base` and
        `base_revision`, `rank`, `alpha`, `targets` (how many, or the pattern), `text_knowledge`, `reached`, `stopped`,
        `steps`, `leak` (`mean` and `max`), `anchors` (`images` and their `dataset`), `figures` (for each: `key`,
        `label`, `before`, `after`), `gauges` and `attacks` (`name` and `figures`). What is not known is `None` or
        empty.

    Raises:
        ValueError: there is no erasure adapter at `path`, or a damaged one.
        ConnectionError: the Hub can't be reached and the adapter is not in the cache.
    """
    config, report = read_report(path, **hub_kwargs)
    fingerprint: Mapping[str, Any] = config.base_fingerprint or {}
    targets, leak = config.target_modules, report.get("leak")
    anchors = report.get("anchor_images") or config.record.get("anchor_images") or {}
    return {
        "concept": concept_names(config, report.get("aliases") or ()),
        "redacted": HASH_KEY in report,
        "base": config.base_model_name_or_path or fingerprint.get("name"),
        "base_revision": fingerprint.get("revision"),
        "rank": config.r,
        "alpha": config.lora_alpha,
        "targets": targets if isinstance(targets, str) else len(targets or ()),
        **{key: report.get(key) for key in ("text_knowledge", "reached", "stopped", "steps")},
        "leak": leak and {key: leak.get(key) for key in ("mean", "max")},
        "anchors": {"images": len(anchors.get("images", ())), "dataset": anchors.get("dataset")},
        "figures": marks(report),
        "gauges": report.get("gauges") or [],
        "attacks": attack_rows(report.get("attacks")),
    }


def read_report(path: str | os.PathLike[str], **hub_kwargs: Any) -> tuple[SpaceConfig, dict[str, Any]]:
    """The config of an erasure adapter, and its report: what its record and `report.json` hold together.

    Args:
        path: folder or Hub id.
        **hub_kwargs: as for `load_erasure`.
    """
    folder = fetch_adapter(path, (CONFIG_FILE, SIDE_FILE, REPORT_FILE), **hub_kwargs)
    config = SpaceConfig.from_pretrained(folder)
    return config, report_of(folder, config)
