"""Where an erasure adapter lies: a folder as it is, or one commit of a Hub repository in the cache."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, RevisionNotFoundError
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from peft_space._peft import base_modules, modules_matching, rank_of
from peft_space.tuner import CONFIG_FILE, SIDE_FILE, SpaceConfig
from peft_space.vlm import base_of

WEIGHTS_FILE = "adapter_model.safetensors"
ADAPTER_FILES = (CONFIG_FILE, WEIGHTS_FILE, SIDE_FILE)

_PICKLED = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
_PREFIX = "base_model.model."
_NAMED = 3


def fetch_adapter(
    path: str | os.PathLike[str],
    files: Sequence[str] = ADAPTER_FILES,
    *,
    subfolder: str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    **hub_kwargs: Any,
) -> Path:
    """The folder that holds an adapter; from the Hub, files of one and the same commit.

    Args:
        path: folder, or Hub id of a repository.
        files: what to fetch of a repository, as far as it is there; other files stay on the Hub.
        subfolder: folder inside it.
        revision: branch, tag or commit, on the Hub.
        token: what opens a private repository; by default the one that `hf auth login` or `HF_TOKEN` has left.
        **hub_kwargs: for `huggingface_hub.snapshot_download`: `cache_dir`, `local_files_only`, `force_download` ...

    Raises:
        ValueError: there is no such folder, repository or revision, or the token does not open it.
        ConnectionError: the Hub can't be reached and the files are not in the cache.
    """
    folder = Path(path, subfolder or "")
    if folder.is_dir():
        return folder
    patterns = [f"{subfolder}/{file}" if subfolder else file for file in files]
    wrong = f"`path` must be a folder that exists or a Hub repository that you may read; got {str(path)!r}"
    try:
        snapshot = snapshot_download(str(path), revision=revision, token=token, allow_patterns=patterns, **hub_kwargs)
    except HFValidationError as error:
        raise ValueError(f"{wrong}, which is no folder and no Hub id 'owner/name'.") from error
    except RevisionNotFoundError as error:
        raise ValueError(f"`revision` must be a branch, tag or commit of {path}; got {revision!r}.") from error
    except LocalEntryNotFoundError as error:
        raise ConnectionError(
            f"{wrong}, which is not in the cache, and the Hub can't be asked ({error.__cause__ or error}). Do go "
            "online once, or pass the `cache_dir` that it was loaded into."
        ) from error
    except HfHubHTTPError as error:
        if error.response.status_code not in (401, 403, 404):
            raise
        raise ValueError(
            f"{wrong}: the Hub says that it is not there, or private. Do check the spelling; for a private one "
            "pass `token`, set HF_TOKEN or run `hf auth login`."
        ) from error
    return Path(snapshot, subfolder or "")


def weights_file(
    folder: Path, path: str | os.PathLike[str], subfolder: str | None = None, token: str | bool | None = None
) -> Path:
    """The weights in a folder that `fetch_adapter` gave for `path`: safetensors, whole, and nothing else.

    Raises:
        ValueError: there are none. Pickled weights are not read: unpickling runs whatever code a file holds.
    """
    file = folder / WEIGHTS_FILE
    if not file.is_file():
        pickled = [name for name in _siblings(folder, path, subfolder, token) if name.endswith(_PICKLED)]
        but = f"only pickled weights ({', '.join(pickled)}), which run code when they are read and are refused"
        raise ValueError(
            f"`path` must hold `{WEIGHTS_FILE}`; got {str(path)!r}, which has {but if pickled else 'none'}. Do ask "
            "whoever made it to save it as safetensors."
        )
    try:
        with safe_open(file, framework="pt"):
            return file
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"`{WEIGHTS_FILE}` must be a whole safetensors file; got {file}: {error}. Do fetch it again."
        ) from error


def _siblings(
    folder: Path, path: str | os.PathLike[str], subfolder: str | None, token: str | bool | None
) -> list[str]:
    """Names of the files beside an adapter; of a repository those that were left on the Hub too."""
    names = [file.name for file in folder.iterdir()] if folder.is_dir() else []
    if Path(path).is_dir() or constants.is_offline_mode():
        return names
    commit = (folder.parent if subfolder else folder).name
    try:
        listed = HfApi(token=token).list_repo_files(str(path), revision=commit)
    except HfHubHTTPError:
        return names
    at = f"{subfolder}/" if subfolder else ""
    return names + [name.removeprefix(at) for name in listed if name.startswith(at) and "/" not in name[len(at) :]]


def check_weights(file: Path, config: SpaceConfig, model: nn.Module) -> None:
    """Make sure that a file holds a factor `A` and a factor `B` for every targeted module, and nothing else.

    PEFT makes room for what the config says before it reads the file: the two must agree in every size.

    Args:
        file: the adapter's safetensors; only its header is read.
        config: the adapter's config.
        model: the model it is to be loaded into.

    Raises:
        ValueError: the config targets nothing, keys are missing or unexpected, or the factors do not have the rank of
            the config and the widths of the modules.
    """
    if config.target_modules is None:
        raise ValueError(
            f"`target_modules` in `{CONFIG_FILE}` must be names or a pattern, as in every saved adapter; got none, in "
            f"{file.parent}. Do fetch or save the adapter again."
        )
    base = base_of(model)
    with safe_open(file, framework="pt") as weights:
        shapes = {key: weights.get_slice(key).get_shape() for key in weights.keys()}  # noqa: SIM118
    targets = modules_matching(config, base)
    embeddings = {name for name, module in base_modules(base) if isinstance(module, nn.Embedding)} & set(targets)
    expected = {
        f"{_PREFIX}{name}.lora_embedding_{factor}" if name in embeddings else f"{_PREFIX}{name}.lora_{factor}.weight"
        for name in targets
        for factor in "AB"
    }
    # PEFT saves a targeted embedding itself beside its factors
    allowed = expected | {f"{_PREFIX}{name}.{part}" for name in embeddings for part in ("weight", "base_layer.weight")}
    odd = {"missing": expected - shapes.keys(), "unexpected": shapes.keys() - allowed}
    if any(odd.values()):
        told = " and ".join(f"{len(keys)} {kind} ({_some(keys)})" for kind, keys in odd.items() if keys)
        raise ValueError(
            f"`{WEIGHTS_FILE}` must hold the factors of the {len(targets)} modules that `{CONFIG_FILE}` targets "
            f"in this model, and nothing else; got keys that are {told}, in {file.parent}. Do fetch or save the "
            "adapter again, or load the base that it was made for."
        )
    modules = dict(base_modules(base))
    for name in targets:
        rank = rank_of(config, name)
        form = "lora_embedding_{}" if name in embeddings else "lora_{}.weight"
        first, second = (shapes[f"{_PREFIX}{name}.{form.format(factor)}"] for factor in "AB")
        found = next(iter(first), 0), next(iter(second[1:]), 0)
        if found != (rank, rank):
            raise ValueError(
                f"`{WEIGHTS_FILE}` must hold factors of rank {rank}, as `{CONFIG_FILE}` says; got {found[0]} and "
                f"{found[1]} for {name}, in {file.parent}. The two files belong to different adapters. Do fetch "
                "or save it again."
            )
        read, written = _widths(modules[name])
        if (first[1:2], second[:1]) != ([read], [written]):
            raise ValueError(
                f"`{WEIGHTS_FILE}` must hold factors for {read} inputs and {written} outputs of {name}; got shapes "
                f"{first} and {second}, in {file.parent}. Do load the base that the adapter was made for."
            )


def _widths(module: nn.Module) -> tuple[int, int]:
    """How many numbers a layer reads and how many it tells, as the factors of an adapter have it."""
    if isinstance(module, nn.Embedding):
        return module.num_embeddings, module.embedding_dim
    if hasattr(module, "in_features"):
        # of quantised weights the shape says nothing
        return cast(int, module.in_features), cast(int, module.out_features)
    first, second = cast(Tensor, module.weight).shape[:2]
    return (first, second) if isinstance(module, Conv1D) else (second, first)


def _some(keys: set[str]) -> str:
    named = sorted(keys)[:_NAMED]
    return ", ".join(named) + (", ..." if len(keys) > len(named) else "")
