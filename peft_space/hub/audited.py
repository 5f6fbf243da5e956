"""What was found by attacks, put beside the adapter that they were aimed at."""

from __future__ import annotations

import copy
import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from ..report import write_json
from ..untrusted import read_json
from .card import CARD_FILE, build_card
from .content import REPORT_FILE, open_publication, public_base, without_paths


def _license_of(card: Path) -> str | None:
    try:
        license = ModelCard.load(card).data.license
    except Exception as error:  # YAML that is none, or more than a parser takes
        raise ValueError(
            f"`{CARD_FILE}` must be a model card; got {card}, which can't be read: {error!s:.200}. Do take it away."
        ) from error
    return license if isinstance(license, str) else None


def record_attacks(folder: str | os.PathLike[str], attacks: Sequence[Mapping[str, Any]]) -> Path:
    """Writes attacks into an adapter's `report.json`, where a push finds them, and its model card anew.

    The card is that of the adapter as it lies there: one that is redacted stays so.

    Args:
        folder: of the adapter.
        attacks: as `AuditReport.card_rows` gives them; those of an earlier audit give way.

    Returns:
        The model card.

    Raises:
        ValueError: the folder holds no erasure adapter.
    """
    folder = Path(folder)
    with open_publication(folder) as publication:
        own = read_json(folder / REPORT_FILE) if (folder / REPORT_FILE).exists() else {}
        write_json(folder / REPORT_FILE, own | {"attacks": list(attacks)})
        config = copy.copy(publication.config)
        base, label = public_base(config)
        config.base_model_name_or_path = base
        config.base_fingerprint = config.base_fingerprint and config.base_fingerprint | {"name": label}
        config.record = without_paths(publication.report) | {"attacks": list(attacks)}
        path = folder / CARD_FILE
        license = _license_of(path) if path.is_file() else None
        card = build_card(config, folder.name, license=license, with_images=publication.sheet is not None)
    beside = folder / f".{CARD_FILE}.{uuid.uuid4().hex[:8]}"
    beside.write_text(str(card), encoding="utf-8")
    return beside.replace(path)
