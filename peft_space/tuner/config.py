"""What an erasure adapter is: LoRA's settings, the concept it erases, and what is refused as it would break it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from os import PathLike
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from peft import LoraConfig

from peft_space._peft import SPACE

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
}

_INITIALISATIONS = (True, False, "gaussian", "eva", "orthogonal")


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
        own = {f.name for f in fields(self)} - {f.name for f in fields(LoraConfig)}
        return {"format": _FORMAT} | {name: getattr(self, name) for name in sorted(own)}

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
            ValueError: there is no adapter, it is not plain LoRA, or the side file is missing or of a later version.
        """
        lora = LoraConfig.from_pretrained(pretrained_model_name_or_path, subfolder=subfolder, **kwargs)
        if type(lora) is not LoraConfig:
            raise ValueError(f"the adapter must be LoRA on disk; got {type(lora).__name__}.")
        side = json.loads(_side_file(pretrained_model_name_or_path, subfolder, kwargs).read_text(encoding="utf-8"))
        if side.pop("format", None) != _FORMAT:
            raise ValueError(f"`{SIDE_FILE}` must be of format {_FORMAT}. Do update `peft_space`.")
        return cls(**_init_values(lora, LoraConfig), **side)


def _init_values(config: LoraConfig, config_cls: type) -> dict[str, Any]:
    return {f.name: getattr(config, f.name) for f in fields(config_cls) if f.init}


def _side_file(path: str | PathLike[str], subfolder: str | None, hub_kwargs: dict[str, Any]) -> Path:
    folder = Path(path, subfolder or "")
    missing = ValueError(
        f"`{path}` must hold `{SIDE_FILE}`, which every erasure adapter has. Do load it as plain LoRA with "
        "`PeftModel.from_pretrained` if it is another adapter."
    )
    if folder.is_dir():
        if not (folder / SIDE_FILE).is_file():
            raise missing
        return folder / SIDE_FILE
    try:
        return Path(hf_hub_download(str(path), SIDE_FILE, subfolder=subfolder, **hub_kwargs))
    except EntryNotFoundError as error:
        raise missing from error
