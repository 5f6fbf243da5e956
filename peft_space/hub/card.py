"""The model card of a published erasure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from ..attacks.report import CARD_FIGURES, KINDS
from ..console import MARKS
from ..quoting import code, markdown, one_line
from ..report import hardly_told
from ..tuner import SpaceConfig
from ..untrusted import is_number
from .redaction import HASH_KEY

CARD_FILE = "README.md"
TAGS = ("lora", "concept-erasure", "unlearning")
_TEMPLATE = Path(__file__).with_name("model_card.md.jinja")
_TASK = "image-text-to-text"

# what other parts of a repository are called, and what a report may say
_SAID = """
adapter_config.json adapter_model.safetensors space_config.json README.md report.json anchors.csv anchors.png dataset
split id index cosine log_likelihood keep erase dose reached leak budget spent max_steps loss not finite name, not
asked for; in company; yes or no; half of the name given; fact through the image; fact in text; what should stay;
format pt record concept
parts language vision projector base_fingerprint weights config revision scrypt salt digests kdf transformers LORA
null true false anchors steps stopped monitor_tied gauges readings losses kept_rank spectral_entropy seconds
peak_memory_mib before spectrum per_module after adapter seed text_knowledge about reference levels step mean max
public_images skipped passed monitor recognised_dropped threshold threshold_margin best_cosine anchor_log_likelihood
short_list_log_likelihood_median histogram edges counts model images knowledge retained subspace training report exam
total bytes parameters task diversity epoch learning_rate strength leak_composed sum measured
"""


def build_card(
    config: SpaceConfig, repo_id: str, *, license: str | None = None, with_images: bool = False
) -> ModelCard:
    """The card of an erasure: whatever its config and its record tell, and nothing else.

    Args:
        config: of the adapter as it is published.
        repo_id: where it is published.
        license: as the Hub abbreviates it; without one, the card says that the base's licence holds.
        with_images: whether the contact sheet is in the repository.
    """
    report = config.record
    anchors = report.get("anchor_images") or {}
    leak = report.get("leak") or {}
    fingerprint = config.base_fingerprint or {}
    on_hub = _is_hub_id(config.base_model_name_or_path)
    base = config.base_model_name_or_path or fingerprint.get("name")
    data = ModelCardData(
        base_model=base if on_hub else None,
        base_model_relation="adapter" if on_hub else None,
        datasets=[anchors["dataset"]] if _is_hub_id(anchors.get("dataset")) else None,
        library_name="peft",
        license=license,
        pipeline_tag=_TASK,
        tags=list(TAGS),
        model_name=repo_id.rsplit("/", 1)[-1],
        eval_results=eval_results(report) or None,
    )
    return ModelCard.from_template(
        data,
        template_path=str(_TEMPLATE),
        repo_id=repo_id,
        names=concept_names(config, report.get("aliases") or ()),
        redacted=HASH_KEY in report,
        base=base,
        base_is_on_hub=on_hub,
        revision=fingerprint.get("revision"),
        config=config,
        report=report,
        marks=marks(report),
        gauges=[gauge for gauge in report.get("gauges") or [] if gauge.get("after") is not None],
        unseen=hardly_told(report),
        anchors=anchors,
        attacks=attack_rows(report.get("attacks")),
        with_images=with_images,
        dataset_is_on_hub=_is_hub_id(anchors.get("dataset")),
        leak=leak if all(is_number(leak.get(how)) for how in ("mean", "max")) else None,
        card_data_license=license,
        markdown=markdown,
        code=code,
    )


def _is_hub_id(name: Any) -> bool:
    """Whether a name can be that of a repository, so that it may be linked to and stand in code."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return isinstance(name, str)


def concept_names(config: SpaceConfig, aliases: Iterable[str] = ()) -> list[str]:
    """What an adapter erases: the name (of several concepts, all in one), then what else it is called.

    Args:
        config: of the adapter.
        aliases: as in its report. Of several concepts they hold the names too.
    """
    names = [config.concept] if isinstance(config.concept, str) else list(config.concept or ())
    known = {part for name in names for part in (name, *name.split(", "))}
    return names + [alias for alias in dict.fromkeys(aliases) if alias not in known]


def marks(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The figures that were measured before and after: `key`, `label`, `before`, `after`, shares from 0 to 1."""
    before, after = report.get("before") or {}, report.get("after") or {}
    keys = [*(key for key in MARKS if key in before), *(key for key in before if key not in MARKS)]
    return [
        {
            "key": key,
            "label": MARKS.get(key, one_line(key).replace("_", " ")),
            "before": before[key],
            "after": after[key],
        }
        for key in keys
        if is_number(before[key]) and is_number(after.get(key))
    ]


def eval_results(report: Mapping[str, Any]) -> list[EvalResult]:
    """A report's figures as the Hub lists them; in the card's metadata they become its `model-index`."""
    exam, retained = "held-out images and questions of peft_space's test bed", "held-out retained inputs"
    results = [
        _result("peft-space-test-bed", exam, mark["key"], mark["label"], mark["after"]) for mark in marks(report)
    ]
    leak = report.get("leak") or {}
    return results + [
        _result("retained-inputs", retained, f"leak_{how}", f"leak, {how} over layers", leak[how])
        for how in ("mean", "max")
        if is_number(leak.get(how))
    ]


def fixed_words() -> str:
    """Every text that a repository may hold whatever was erased."""
    settings = [str(word) for f in fields(SpaceConfig) for word in (f.name, f.default) if isinstance(word, str)]
    attacks = [*KINDS.values(), *CARD_FIGURES]
    said = [_TEMPLATE.read_text(encoding="utf-8"), _SAID, *MARKS, *MARKS.values(), *TAGS]
    return "\n".join([*said, *attacks, *settings])


def _result(kind: str, dataset: str, metric: str, label: str, value: float) -> EvalResult:
    return EvalResult(
        task_type=_TASK,
        dataset_type=kind,
        dataset_name=dataset,
        metric_type=metric,
        metric_name=label,
        metric_value=round(float(value), 6),
    )


def attack_rows(attacks: Any) -> list[dict[str, Any]]:
    """Attacks as `name` and `figures`, from a mapping of names to figures or a list of mappings with a `name`."""
    if isinstance(attacks, Mapping):
        attacks = [
            {"name": name, **(told if isinstance(told, Mapping) else {"value": told})}
            for name, told in attacks.items()
        ]
    return [
        {"name": row.get("name") or "unnamed", "figures": {k: row[k] for k in _in_order(row) if is_number(row[k])}}
        for row in attacks or []
    ]


def _in_order(row: Mapping[str, Any]) -> list[str]:
    """An audit's figures as it tells them, whatever order a file had them in."""
    return sorted(row, key=lambda key: CARD_FIGURES.index(key) if key in CARD_FIGURES else len(CARD_FIGURES))
