"""What a published erasure consists of, and how it is written into a folder."""

from __future__ import annotations

import copy
import csv
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml
from huggingface_hub.utils import yaml_dump
from peft import PeftModel
from PIL import Image
from safetensors import safe_open

from ..adapter import ADAPTER_FILES, CONFIG_FILE, WEIGHTS_FILE, save_erasure_adapter, weights_file
from ..concepts.images import read_picture, why_unreadable
from ..report import write_json
from ..tuner import SIDE_FILE, SpaceConfig
from ..untrusted import is_number, is_texts, read_json
from .card import CARD_FILE, attack_rows, build_card, concept_names, fixed_words
from .redaction import HASH_KEY, Redaction, hash_names

if TYPE_CHECKING:
    from ..erasure import ErasureResult

REPORT_FILE, ANCHORS_FILE, SHEET_FILE = "report.json", "anchors.csv", "anchors.png"
RESULTS_FILE = ".eval_results/erasure.yaml"

# What a report may tell when the concept is not to be known. What is added to reports later stays out until it is
# listed here.
_TELLING_NOTHING = frozenset(
    "text_knowledge seed anchors steps stopped reached monitor_tied gauges readings losses kept_rank spectrum leak "
    "spectral_entropy seconds peak_memory_mib before after adapter strength leak_composed".split()
)
_FIXED_TEXTS = frozenset({"text_knowledge", "stopped", "about"})


@dataclass(frozen=True)
class Publication:
    """An erasure as it lies before us, nothing left out yet.

    Attributes:
        folder: holds the adapter's config and its weights.
        config: the adapter's config.
        report: what is known of the erasure, as in docs/method.md.
        sheet: the anchors as one picture, if it is at hand.
    """

    folder: Path
    config: SpaceConfig
    report: dict[str, Any] = field(default_factory=dict)
    sheet: Image.Image | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Every name of what was erased that is known here."""
        said = [self.report.get("concept"), *(self.report.get("aliases") or [])]
        return tuple(dict.fromkeys(name for name in (*concept_names(self.config), *said) if name))


@contextmanager
def open_publication(
    result_or_dir: ErasureResult | PeftModel | str | os.PathLike[str], adapter_name: str | None = None
) -> Iterator[Publication]:
    """What there is to publish, from whatever holds it.

    Raises:
        ValueError: it holds no erasure adapter.
        TypeError: it is neither an erasure's result, nor a `PeftModel`, nor a folder.
    """
    if isinstance(result_or_dir, (str, os.PathLike)):
        folder = Path(result_or_dir)
        if not folder.is_dir():
            raise ValueError(
                f"`result_or_dir` must be a folder that exists; got {str(result_or_dir)!r}. Do pass what `erase` "
                "returned, or the folder that it saved."
            )
        _check_links(folder)
        weights_file(folder, folder)
        config = SpaceConfig.from_pretrained(folder)
        report = report_of(folder, config)
        sheet = _sheet_of(folder) if (folder / SHEET_FILE).is_file() else None
        yield Publication(folder, config, report, sheet)
        return
    model = result_or_dir if isinstance(result_or_dir, PeftModel) else getattr(result_or_dir, "model", None)
    if not isinstance(model, PeftModel) or not (model is result_or_dir or hasattr(result_or_dir, "contact_sheet")):
        raise TypeError(
            "`result_or_dir` must be what `erase` returned, a `PeftModel` with an erasure adapter, or the folder of "
            f"one; got a {type(result_or_dir).__name__}."
        )
    result: Any = None if model is result_or_dir else result_or_dir
    with TemporaryDirectory(prefix="peft-space-") as scratch:
        name = adapter_name or ("default" if result is None else str(result.adapter_name))
        folder = save_erasure_adapter(model, Path(scratch) / "adapter", name)
        config = SpaceConfig.from_pretrained(folder)
        report = config.record | (result.report if result is not None else {})
        pictured = result is not None and result.anchors is not None
        yield Publication(folder, config, report, result.contact_sheet() if pictured else None)


def report_of(folder: Path, config: SpaceConfig) -> dict[str, Any]:
    """What is known of an erasure that lies in a folder: its record and, over it, its `report.json`.

    Raises:
        ValueError: they are damaged, or hold something else under a name that is used here.
    """
    file = folder / REPORT_FILE
    own = read_json(file) if file.exists() else {}
    for told, where in ((config.record, SIDE_FILE), (own, REPORT_FILE)):
        for name, (fits, form) in _FORMS.items():
            if told.get(name) is not None and not fits(told[name]):
                raise ValueError(
                    f"`{where}` must hold {form} as `{name}`; got {told[name]!r:.200}, in {folder}. Do fetch the "
                    "adapter again."
                )
    return config.record | own


def _is_known(value: Any) -> bool:
    return value is None or is_number(value)


def _holds(value: Any, **forms: Callable[[Any], bool]) -> bool:
    return isinstance(value, dict) and all(fits(value.get(key)) for key, fits in forms.items())


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_said(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _is_gauge(value: Any) -> bool:
    known = _holds(value, about=_is_text, before=_is_known, reference=_is_known, after=_is_known)
    known = known and {"about", "before", "reference", "after"} <= value.keys()
    return known and (value.get("after") is None or value.get("before") is not None)


def _is_place(value: Any) -> bool:
    whole = _holds(value, id=_is_text, index=is_number, cosine=_is_known, log_likelihood=_is_known)
    return whole and {"id", "index", "cosine", "log_likelihood"} <= value.keys()


def _is_pair(value: Any) -> bool:
    return _are(is_number)(value) and len(value) == 2


def _are_shares(value: Any) -> bool:
    return value is None or (isinstance(value, dict) and all(map(is_number, value.values())))


def _are(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(fits, value))


# What is used of a report, and in which form. A report is anybody's, and whatever else it holds is passed on.
_FORMS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "concept": (lambda value: isinstance(value, str) or is_texts(value), "a name or a list of names"),
    "aliases": (is_texts, "a list of names"),
    "gauges": (_are(_is_gauge), "a list of mappings with `about`, `before`, `reference` and `after`"),
    "leak": (
        lambda value: _holds(value, mean=_is_known, max=_is_known, per_module=_are_shares),
        "a mapping with `mean`, `max` and `per_module`",
    ),
    "spectrum": (
        lambda value: isinstance(value, dict) and all(map(_are(_is_pair), value.values())),
        "a mapping with lists of ranks and shares",
    ),
    "readings": (
        _are(lambda row: _holds(row, step=is_number, leak=_is_known, levels=_are(_is_known))),
        "a list of mappings with `step`, `leak` and `levels`",
    ),
    "losses": (_are(lambda row: _holds(row, step=is_number)), "a list of mappings with `step`"),
    "before": (lambda value: isinstance(value, dict), "a mapping of figures"),
    "after": (lambda value: isinstance(value, dict), "a mapping of figures"),
    "anchor_images": (
        lambda value: (
            _holds(value, dataset=_is_said, split=_is_said, images=_are(_is_place))
            and {"dataset", "split"} <= value.keys()
        ),
        "a mapping with `dataset`, `split` and `images`",
    ),
    "attacks": (
        lambda value: isinstance(value, dict) or _are(lambda row: _holds(row, name=_is_said))(value),
        "a mapping, or a list of mappings with a `name`",
    ),
    "reached": (lambda value: isinstance(value, bool), "true or false"),
    "stopped": (_is_text, "a text"),
    "text_knowledge": (_is_text, "a text"),
    "model": (_is_text, "a name"),
    "steps": (is_number, "a number"),
    "strength": (is_number, "a number"),
    "kept_rank": (lambda value: isinstance(value, dict) and all(map(is_number, value.values())), "a mapping of ranks"),
    HASH_KEY: (
        lambda value: _holds(value, kdf=_is_text, salt=_is_text, digests=is_texts),
        "a mapping with `kdf`, `salt` and `digests`",
    ),
}


def _check_links(folder: Path) -> None:
    """What a file links to would be published under its name."""
    own = folder.resolve()
    # in the Hub's cache, files of a snapshot link to blobs beside it
    blobs = [parent.parent / "blobs" for parent in own.parents if parent.name == "snapshots"]
    for name in (*ADAPTER_FILES, REPORT_FILE, SHEET_FILE):
        file = (folder / name).resolve()
        if not any(file.is_relative_to(place) for place in (own, *blobs)):
            raise ValueError(
                f"`result_or_dir` must hold its files itself; got {folder}, whose {name} links to {file}. Do put a "
                "copy in its place, if it is meant to be published."
            )


def _sheet_of(folder: Path) -> Image.Image:
    try:
        return read_picture(folder / SHEET_FILE)
    except Exception as error:  # what a broken file raises is up to a dozen decoders
        raise ValueError(
            f"`{SHEET_FILE}` must be a picture; got {folder / SHEET_FILE}, which can't be read: "
            f"{why_unreadable(error)}. Do take it away."
        ) from error


def write_repository(
    folder: Path,
    publication: Publication,
    repo_id: str,
    *,
    base_model: str | None = None,
    license: str | None = None,
    redact: bool | Sequence[str] = False,
    with_images: bool = False,
    eval_results: Sequence[EvalResultEntry] = (),
    said_besides: str = "",
) -> None:
    """Write every file of the repository, in the form in which anyone may see it.

    No path of this machine gets in. With `redact`, neither does the concept's name.

    Args:
        folder: an empty folder.
        publication: what there is.
        repo_id: the repository's id, for its model card.
        base_model: Hub id of the base, where the adapter knows it as a folder of this machine only.
        license: licence of the adapter, as the Hub abbreviates it.
        redact: keep the name out; or further spellings of it that must stay out too.
        with_images: put the anchors' contact sheet in as well.
        eval_results: results on benchmarks of the Hub.
        said_besides: what else the Hub is told: the commit's message, for example. It may not tell the name either.

    Raises:
        ValueError: there is no contact sheet, or the name can't be kept out.
    """
    if with_images and publication.sheet is None:
        raise ValueError(
            "`with_images` needs the anchors' pictures, which a model does not hold; got True. Do pass what `erase` "
            "returned or the folder that it saved, or leave it out."
        )
    config, report = copy.copy(publication.config), without_paths(publication.report)
    base, label = public_base(config, base_model)
    anchors = report.pop("anchor_images", None)
    redaction, hashed = None, None
    if redact is not False:
        spellings = () if redact is True else (redact,) if isinstance(redact, str) else tuple(redact)
        names = tuple(dict.fromkeys((*publication.names, *spellings)))
        if not names:
            raise ValueError("`redact` needs a name to keep out; the adapter names no concept. Do pass it as a list.")
        redaction = Redaction(names, fixed_words() + _words_of_the_base(publication))
        if term := redaction.tells(f"{repo_id} {said_besides}"):
            raise ValueError(
                f"`repo_id`, `revision` and the commit's message must not tell the name either; got {term!r} in "
                f"{said_besides or repo_id!r}. Do choose others."
            )
        hashed = hash_names(names)
        base, label = (name if name is None or redaction.tells(name) is None else None for name in (base, label))
        anchors = _only_places(anchors, redaction) if anchors else None
        report = {HASH_KEY: hashed} | _telling_nothing(report, redaction)
        config.concept = None
    config.base_model_name_or_path = base
    config.base_fingerprint = config.base_fingerprint and config.base_fingerprint | {"name": label}
    if "model" in report:
        report["model"] = label
    # in the order in which a side file has it, so that the same report is the same bytes wherever it was read from
    report = json.loads(json.dumps(report, sort_keys=True))
    told = json.loads(write_json(folder / REPORT_FILE, report).read_text(encoding="utf-8"))
    config.record = told | ({"anchor_images": anchors} if anchors else {})
    config.save_pretrained(folder)
    _in_order(folder / CONFIG_FILE)
    shutil.copyfile(publication.folder / WEIGHTS_FILE, folder / WEIGHTS_FILE)
    if anchors:
        _write_anchors(folder / ANCHORS_FILE, anchors)
    if with_images and publication.sheet is not None:
        # pixels alone: whatever a file said beside them stays here
        Image.frombytes("RGB", publication.sheet.size, publication.sheet.tobytes()).save(folder / SHEET_FILE)
    if eval_results:
        (folder / RESULTS_FILE).parent.mkdir()
        text = yaml_dump(eval_result_entries_to_yaml(list(eval_results)))
        (folder / RESULTS_FILE).write_text(text, encoding="utf-8")
    card = build_card(config, repo_id, license=license, with_images=with_images)
    (folder / CARD_FILE).write_text(str(card), encoding="utf-8")
    if redaction is not None and hashed is not None:
        redaction.check(folder, hashed)


def is_local(name: str) -> bool:
    """Whether what a model was loaded from is a folder of this machine rather than a Hub id."""
    return name.startswith((".", "~")) or name.count("/") > 1 or "\\" in name or Path(name).exists()


def public_base(config: SpaceConfig, base_model: str | None = None) -> tuple[str | None, str | None]:
    """The base's Hub id, if it has one, and what it is called.

    A folder's name is no id: on the Hub, it may be that of another model.
    """
    known = base_model or config.base_model_name_or_path or (config.base_fingerprint or {}).get("name")
    if known and base_model is None and is_local(known):
        return None, Path(known).name
    return known, known


def without_paths(report: Mapping[str, Any]) -> dict[str, Any]:
    """A report as it may leave this machine."""
    kept = copy.deepcopy(dict(report))
    if isinstance(kept.get("adapter"), dict):
        kept["adapter"].pop("path", None)
    return kept


def _words_of_the_base(publication: Publication) -> str:
    """Names of modules and digits of hashes: they depend on the base alone."""
    fingerprint = publication.config.base_fingerprint or {}
    with safe_open(publication.folder / WEIGHTS_FILE, framework="pt") as weights:
        keys = [*weights.keys(), *fingerprint.get("weights", {}), *publication.report.get("kept_rank", {})]
    kind = publication.config.auto_mapping or {}
    return " ".join(map(str, [*keys, fingerprint.get("config"), fingerprint.get("revision"), *kind.values()]))


def _only_places(anchors: Mapping[str, Any], redaction: Redaction) -> dict[str, Any]:
    """Anchors by their place in the data set alone: a file's name often says what it shows."""
    dataset = anchors["dataset"]
    told = dataset is not None and redaction.tells(f"{dataset} {anchors['split']}") is not None
    rows = [row | {"id": row["id"] if str(row["id"]).isdigit() else str(row["index"])} for row in anchors["images"]]
    return {"dataset": None if told else dataset, "split": None if told else anchors["split"], "images": rows}


def _telling_nothing(report: Mapping[str, Any], redaction: Redaction) -> dict[str, Any]:
    """The figures of a report, without any text that a model or a user wrote."""

    def kept(value: Any, key: str) -> Any:
        if isinstance(value, str):
            return value if key in _FIXED_TEXTS and redaction.tells(value) is None else None
        if isinstance(value, Mapping):
            return {k: kept(v, k) for k, v in value.items() if redaction.tells(str(k)) is None}
        if isinstance(value, (list, tuple)):
            return [kept(entry, key) for entry in value]
        return value

    figures = {key: kept(value, key) for key, value in report.items() if key in _TELLING_NOTHING}
    attacks = [
        {"name": row["name"], **row["figures"]}
        for row in attack_rows(report.get("attacks"))
        if redaction.tells(" ".join([row["name"], *row["figures"]])) is None
    ]
    return figures | ({"attacks": attacks} if attacks else {})


def _in_order(file: Path) -> None:
    """Sets have no order of their own: the same adapter should be the same bytes each time it is pushed."""
    settings = json.loads(file.read_text(encoding="utf-8"))
    for key, value in settings.items():
        if isinstance(value, list) and all(isinstance(entry, str) for entry in value):
            settings[key] = sorted(value)
    file.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _write_anchors(path: Path, anchors: Mapping[str, Any]) -> None:
    columns = ("id", "index", "cosine", "log_likelihood")
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("dataset", "split", *columns))
        for row in anchors["images"]:
            writer.writerow((anchors["dataset"] or "", anchors["split"] or "", *(row[column] for column in columns)))
