"""Publishing an erasure: one commit that holds all of it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from huggingface_hub import (
    CommitInfo,
    CommitOperationAdd,
    CommitOperationDelete,
    EvalResultEntry,
    HfApi,
    hf_hub_download,
)
from huggingface_hub.errors import HfHubHTTPError
from peft import PeftModel

from .._peft import adapter_configs, publish_with
from ..tuner import SIDE_FILE, SpaceConfig
from .content import ANCHORS_FILE, REPORT_FILE, RESULTS_FILE, SHEET_FILE, open_publication, write_repository
from .redaction import HASH_KEY

if TYPE_CHECKING:
    from ..erasure import ErasureResult

_MESSAGE = "Publish an erasure adapter"
# what an earlier push may have left that this one does not bring along
_PASSING = frozenset({REPORT_FILE, ANCHORS_FILE, SHEET_FILE, RESULTS_FILE, "adapter_model.bin"})
_HUB_MADE = frozenset({".gitattributes"})

# the root of the HTTP library's errors; which library it is differs between releases of huggingface_hub
_HTTP_ERROR: type[Exception] = next(cls for cls in HfHubHTTPError.__mro__ if cls.__name__ == "HTTPError")


def push_erasure(
    result_or_dir: ErasureResult | PeftModel | str | os.PathLike[str],
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    token: str | bool | None = None,
    redact: bool | Sequence[str] = False,
    with_images: bool = False,
    base_model: str | None = None,
    license: str | None = None,
    eval_results: Sequence[EvalResultEntry] = (),
    adapter_name: str | None = None,
    commit_message: str = _MESSAGE,
    commit_description: str | None = None,
) -> CommitInfo:
    """Publishes an erasure on the Hugging Face Hub: adapter, side file, report, list of anchors and model card.

    Everything goes up in one commit, so a repository never holds half of it: where the connection is cut, there is
    what was there before, and the same call again completes it. Files of an earlier push that this one does not bring
    along are deleted in the same commit.

    Args:
        result_or_dir: what `erase` returned, the folder that it saved, or a `PeftModel` with an erasure adapter.
        repo_id: where to, "owner/name"; created if it is not there.
        private: make a new repository private. One that is there keeps what it is: a public one is refused then.
        revision: branch to commit to; created if it is not there. By default the main one.
        create_pr: open a pull request in the place of committing.
        token: by default the one that `hf auth login` or `HF_TOKEN` has left.
        redact: keep the concept's name, its aliases and their telling words out of every file; a salted hash stands
            in, which `verify_redacted` checks. Other spellings that must stay out as well can be given as a list.
            The weights themselves still act on the name, and a name that can be guessed can be checked.
        with_images: publish the anchors' contact sheet too. Mind the rights in the pictures.
        base_model: Hub id of the base, for a base that was loaded from a folder.
        license: licence of the adapter, as the Hub abbreviates it ("apache-2.0"). The base's holds in any case.
        eval_results: results on benchmarks that the Hub knows; they are written to `.eval_results/`.
        adapter_name: which adapter of a model; by default the one that `erase` made, of a bare model "default".
        commit_message: title of the commit or the pull request.
        commit_description: its text.

    Returns:
        The commit; its `pr_url` is that of the pull request, if there is one.

    Raises:
        ValueError: an argument is wrong, there is no erasure adapter, the token is missing or not allowed to, or a
            redacted erasure would go beside files that may tell its name.
        TypeError: `result_or_dir` is nothing that holds an erasure.
        ConnectionError: the Hub can't be reached, or hung up.
    """
    if not isinstance(repo_id, str) or repo_id.count("/") > 1 or not repo_id.strip("/"):
        raise ValueError(f"`repo_id` must be a Hub id, 'owner/name'; got {repo_id!r}.")
    if create_pr and revision is not None:
        raise ValueError(
            f"`revision` must be left out with `create_pr`, which opens a branch itself; got {revision!r}."
        )
    api = HfApi(token=token)
    with (
        TemporaryDirectory(prefix="peft-space-") as scratch,
        open_publication(result_or_dir, adapter_name) as publication,
    ):
        folder = Path(scratch)
        said = " ".join(filter(None, (repo_id, revision, commit_message, commit_description)))
        write_repository(
            folder,
            publication,
            repo_id,
            base_model=base_model,
            license=license,
            redact=redact,
            with_images=with_images,
            eval_results=eval_results,
            said_besides=said,
        )
        files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
        with _clear_errors(repo_id):
            repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
            if private and not api.repo_info(repo_id).private:
                raise ValueError(
                    f"`private` must be left out for a repository that is public already; got {private} for "
                    f"{repo_id}, which everybody can read. Do make it private on the Hub, or push to another."
                )
            if revision is not None:
                api.create_branch(repo_id, branch=revision, exist_ok=True)
            present = set(api.list_repo_files(repo_id, revision=revision))
            if redact is not False:
                _refuse_what_may_tell(repo_id, revision, token, present)
            return api.create_commit(
                repo_id,
                [
                    *(CommitOperationAdd(name, path) for name, path in sorted(files.items())),
                    *(CommitOperationDelete(name) for name in sorted(_PASSING & present - files.keys())),
                ],
                commit_message=commit_message,
                commit_description=commit_description,
                revision=revision,
                create_pr=create_pr,
            )


def _refuse_what_may_tell(repo_id: str, revision: str | None, token: str | bool | None, present: set[str]) -> None:
    """A repository keeps all that was ever pushed: only what has been redacted from the start may go on."""
    if not present - _HUB_MADE:
        return
    if SIDE_FILE in present:
        side = hf_hub_download(repo_id, SIDE_FILE, revision=revision, token=token)
        if HASH_KEY in Path(side).read_text(encoding="utf-8"):
            return
    raise ValueError(
        f"`repo_id` must be a new repository, or hold a redacted erasure, for a redacted one; got {repo_id!r}, whose "
        "files and their history may tell the name. Do push to a repository of another name."
    )


def _push_model(model: PeftModel, repo_id: str, adapter_name: str | None = None, **kwargs: Any) -> CommitInfo:
    """`PeftModel.push_to_hub` of a model whose active adapters are erasures."""
    ignored = {"max_shard_size", "tags"} & kwargs.keys()
    if ignored:
        raise ValueError(
            f"`push_to_hub` of an erasure adapter must not be given {', '.join(sorted(ignored))}: its files and its "
            "model card are its own. Do leave it out."
        )
    active = model.active_adapters
    if adapter_name is None and len(active) > 1:
        raise ValueError(
            f"`adapter_name` must say which of the active erasures {active} is to be published; got none. A "
            "repository holds one: do push each to one of its own."
        )
    given = {key: value for key, value in kwargs.items() if value is not None}
    return push_erasure(model, repo_id, adapter_name=adapter_name or active[0], **given)


def _is_erasure(model: PeftModel) -> bool:
    configs = adapter_configs(model)
    active = model.active_adapters
    return bool(active) and all(isinstance(configs.get(name), SpaceConfig) for name in active)


publish_with(_push_model, _is_erasure)


@contextmanager
def _clear_errors(repo_id: str) -> Iterator[None]:
    try:
        yield
    except HfHubHTTPError as error:
        if error.response.status_code not in (401, 403):
            raise
        raise ValueError(
            f"`token` must be one that may write to {repo_id}; the Hub answered {error.response.status_code}. Do pass "
            "`token`, set HF_TOKEN or run `hf auth login`, with a token that has the permission to write."
        ) from error
    except Exception as error:
        if not any(isinstance(cause, _HTTP_ERROR) for cause in _causes(error)):
            raise
        raise ConnectionError(
            f"the push to {repo_id} did not come to its end: {error}. It is published whole or not at all. Do push "
            "again: what is there already is not sent twice."
        ) from error


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__
