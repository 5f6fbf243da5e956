"""What an erasure adapter is: LoRA's settings, the concept it erases, and what is refused as it would break it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from os import PathLike
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from peft import LoraConfig

from peft_space._peft import SPACE
from peft_space.untrusted import is_number, is_texts, read_json

CONFIG_FILE = "adapter_config.json"
SIDE_FILE = "space_config.json"
"""What plain LoRA has no place for lies in this file, beside `adapter_config.json`."""

PARTS = ("language", "vision", "projector")

_FORMAT = 1

# The null space holds for the output of `x -> W x + s B A (I - U U^T) x`, with `A`, `B` free and all else frozen.
_REFUSED = {
    "use_dora": "DoRA rescales the whole weight, so the change is no longer `B A`",
    "use_bdlora": "BD-LoRA makes a factor block-diagonal, which the projection undoes",
    "arrow_config": "Arrow routes between adapters by their `A`",
    "alora_invocation_tokens": "aLoRA can't be merged and depends on the prompt",
    "velora_config": "VeLoRA replaces the backward pass of `A`",
    "monteclora_config": "MonteCLoRA adds noise to the factors",
    "kasa_config": "KaSA rewrites the base weights",
    "loftq_config": "LoftQ rewrites the base weights",
    "use_qalora": "QA-LoRA pools the inputs that the basis is made of",
    "target_parameters": "the inputs of a bare parameter can't be observed",
    "layer_replication": "replicated layers are not the layers that the basis was fitted on",
    "lora_bias": "a bias changes the output for every input",
    "modules_to_save": "fully trained modules are not held by the null space",
    "trainable_token_indices": "trained embeddings are not held by the null space",
    "megatron_config": "Megatron's layers are not those that the basis was fitted on",
}

_INITIALISATIONS = (True, False, "gaussian", "eva", "orthogonal")


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_name(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _is_patterns(value: Any) -> bool:
    return _is_name(value) or is_texts(value)


def _is_table(value: Any, holds: Callable[[Any], bool]) -> bool:
    return isinstance(value, dict) and all(isinstance(key, str) and holds(entry) for key, entry in value.items())


def _is_layers(value: Any) -> bool:
    return value is None or isinstance(value, int) or (isinstance(value, list) and all(map(_is_layers, value)))


def _is_layer_names(value: Any) -> bool:
    names = [value] if isinstance(value, str) else value or []
    return is_texts(names) and all(re.fullmatch(r"[\w.]+", name) for name in names)


def _is_fingerprint(value: Any) -> bool:
    if value is None:
        return True
    return (
        isinstance(value, dict)
        and all(key in value for key in ("config", "name", "revision", "weights"))
        and all(_is_name(value[key]) for key in ("config", "name", "revision"))
        and _is_table(value["weights"], lambda some: isinstance(some, list) and all(map(is_number, some)))
    )


# What a file may have under the names that are used here, and how that is told. A file is anybody's.
_FORMS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "r": (_is_whole, "a whole number above 0"),
    "lora_alpha": (is_number, "a finite number"),
    "lora_dropout": (lambda value: is_number(value) and 0 <= value < 1, "a number from 0 to below 1"),
    "rank_pattern": (lambda value: _is_table(value, _is_whole), "a mapping of names to whole numbers above 0"),
    "alpha_pattern": (lambda value: _is_table(value, is_number), "a mapping of names to finite numbers"),
    "target_modules": (_is_patterns, "names or a pattern"),
    "exclude_modules": (_is_patterns, "names or a pattern"),
    "layers_to_transform": (_is_layers, "numbers of layers"),
    "layers_pattern": (_is_layer_names, "names of lists of layers"),
    "base_model_name_or_path": (_is_name, "a name"),
    "revision": (_is_name, "a name"),
    "auto_mapping": (lambda value: _is_table(value or {}, _is_name), "a mapping of names to names"),
    "fan_in_fan_out": (lambda value: isinstance(value, bool), "true or false"),
    "use_rslora": (lambda value: isinstance(value, bool), "true or false"),
    "concept": (_is_patterns, "a name or a list of names"),
    "parts": (lambda value: isinstance(value, str) or is_texts(value), f"some of {', '.join(PARTS)}"),
    "base_fingerprint": (_is_fingerprint, "what `base_fingerprint` returns"),
    "record": (lambda value: isinstance(value, dict), "a mapping"),
}


@dataclass
class SpaceConfig(LoraConfig):
    """Configuration of a SPACE erasure adapter.

    All fields of `LoraConfig` keep their meaning. Saved, it is a plain LoRA configuration, with the fields below in
    `space_config.json` beside it.

    Args:
        concept (`str` or `list[str]`, *optional*): What the adapter erases: a name, or several names of one concept.
        parts (`tuple[str, ...]`): Which parts of the model are adapted where `target_modules` is not given: any of
            `"language"`, `"vision"`, `"projector"`.
        base_fingerprint (`dict`, *optional*): The base model; filled when the adapter enters a model.
        record (`dict`): Anything worth keeping beside the adapter, as JSON.
    """

    concept: str | list[str] | None = field(
        default=None, metadata={"help": "What the adapter erases: a name, or several names of one concept."}
    )
    parts: tuple[str, ...] = field(
        default=("language",),
        metadata={
            "help": "Which parts of the model are adapted where `target_modules` is not given: any of 'language', "
            "'vision', 'projector'."
        },
    )
    base_fingerprint: dict[str, Any] | None = field(
        default=None, metadata={"help": "The base model; filled when the adapter enters a model."}
    )
    record: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "Anything worth keeping beside the adapter, as JSON."}
    )

    def __post_init__(self):
        for name, (fits, form) in _FORMS.items():
            if not fits(getattr(self, name)):
                raise ValueError(f"`{name}` must be {form}; got {getattr(self, name)!r:.200}.")
        self._refuse()
        super().__post_init__()
        self.peft_type = SPACE
        names = [self.concept] if isinstance(self.concept, str) else self.concept
        if names is not None and not (names and all(isinstance(name, str) and name.strip() for name in names)):
            raise ValueError(f"`concept` must be a name or a list of names; got {self.concept!r}.")
        self.parts = (self.parts,) if isinstance(self.parts, str) else tuple(self.parts)
        if not self.parts or not set(self.parts) <= set(PARTS):
            raise ValueError(f"`parts` must be some of {', '.join(PARTS)}; got {self.parts!r}.")

    def _refuse(self) -> None:
        for lora_field in fields(LoraConfig):
            name, value = lora_field.name, getattr(self, lora_field.name)
            if value and (name in _REFUSED or lora_field.metadata.get("is_lora_variant")):
                reason = _REFUSED.get(name, "this variant of LoRA may not read the projected `A`")
                raise ValueError(
                    f"`{name}` must not be set for SPACE: {reason}; got {value!r}. Do leave it at its default."
                )
        if self.bias != "none":
            raise ValueError(
                f"`bias` must be 'none' for SPACE: a bias changes the output for every input; got {self.bias!r}."
            )
        if self.init_lora_weights not in _INITIALISATIONS:
            raise ValueError(
                f"`init_lora_weights` must be one of {', '.join(map(repr, _INITIALISATIONS))} for SPACE: other "
                f"initialisations rewrite the base weights or freeze a factor; got {self.init_lora_weights!r}."
            )

    def to_lora(self) -> LoraConfig:
        """The same adapter as a plain `LoraConfig`."""
        return LoraConfig(**_init_values(self, LoraConfig))

    def to_side(self) -> dict[str, Any]:
        """What plain LoRA has no place for: the content of the side file."""
        return {"format": _FORMAT} | {name: getattr(self, name) for name in sorted(_own_fields())}

    def save_pretrained(self, save_directory, **kwargs) -> None:
        """Write a plain LoRA configuration and the side file.

        Raises:
            ValueError: `record` holds something that is not JSON.
        """
        try:
            side = json.dumps(self.to_side(), indent=2, sort_keys=True)
        except TypeError as error:
            raise ValueError(f"`record` must hold only what JSON can; got {error}.") from error
        self.to_lora().save_pretrained(save_directory, **kwargs)
        Path(save_directory, SIDE_FILE).write_text(side + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | PathLike[str], subfolder: str | None = None, **kwargs: Any
    ) -> SpaceConfig:
        """Read back what `save_pretrained` wrote, from a folder or from the Hub.

        Args:
            pretrained_model_name_or_path: folder or Hub id of an erasure adapter.
            subfolder: folder inside it.
            **kwargs: for `huggingface_hub.hf_hub_download` (`revision`, `token`, `cache_dir` ...).

        Raises:
            ValueError: there is no adapter, it is not plain LoRA, or a file is missing, damaged or of a later version.
        """
        settings = read_json(_fetched(pretrained_model_name_or_path, CONFIG_FILE, subfolder, kwargs))
        side = read_json(_fetched(pretrained_model_name_or_path, SIDE_FILE, subfolder, kwargs))
        kind = settings.get("peft_type")
        if kind != "LORA":
            raise ValueError(f"the adapter must be LoRA on disk; got {kind!r:.200} as its `peft_type`.")
        if side.pop("format", None) != _FORMAT:
            raise ValueError(f"`{SIDE_FILE}` must be of format {_FORMAT}. Do update `peft_space`.")
        if odd := side.keys() - _own_fields():
            raise ValueError(f"`{SIDE_FILE}` must hold {', '.join(sorted(_own_fields()))}; got {sorted(odd)!r:.200}.")
        # PEFT leaves it out, too: it is for the run at hand
        settings.pop("runtime_config", None)
        try:
            lora = LoraConfig.from_peft_type(**settings)
        except Exception as error:  # PEFT takes settings as its own; what it makes of others' is up to each of them
            raise ValueError(
                f"`{CONFIG_FILE}` must hold settings of LoRA; got some that PEFT can't read: {error!s:.200}"
            ) from error
        return cls(**_init_values(lora, LoraConfig), **side)


def _own_fields() -> set[str]:
    return {f.name for f in fields(SpaceConfig)} - {f.name for f in fields(LoraConfig)}


def _init_values(config: LoraConfig, config_cls: type) -> dict[str, Any]:
    return {f.name: getattr(config, f.name) for f in fields(config_cls) if f.init}


def _fetched(path: str | PathLike[str], name: str, subfolder: str | None, hub_kwargs: dict[str, Any]) -> Path:
    folder = Path(path, subfolder or "")
    if name == SIDE_FILE:
        hint = "which every erasure adapter has. Do load it as plain LoRA with `PeftModel.from_pretrained`"
    else:
        hint = "which every adapter has. Do load it as the model that it is"
    missing = ValueError(f"`{path}` must hold `{name}`, {hint} if it is something else.")
    if folder.is_dir():
        if not (folder / name).is_file():
            raise missing
        return folder / name
    try:
        return Path(hf_hub_download(str(path), name, subfolder=subfolder, **hub_kwargs))
    except Exception as error:  # as PEFT: not there, private, offline, no id, each in its own way
        raise missing from error
