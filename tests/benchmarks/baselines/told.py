"""What a model makes of the answers in a batch, token by token: all that the losses look at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from peft_space.vlm import Prompt, answer_tokens, encode, speaker, text_decoder, to_device


@dataclass(frozen=True)
class Taught:
    """A prompt with an answer.

    Attributes:
        prompt: with a picture, or in text alone.
        answer: what a loss raises or lowers.
        said: what the base model says.
    """

    prompt: Prompt
    answer: str
    said: str


@dataclass(frozen=True)
class Told:
    """A model on the answers of a batch; a row for each token of an answer, its end included.

    Attributes:
        logits: `(tokens, vocabulary)` float32, where each token is predicted.
        ids: `(tokens,)`, the tokens.
        rows: `(tokens,)`, which of the answers each belongs to.
        states: `(tokens, d)`, what a layer of the decoder has in the places of `logits`.
    """

    logits: Tensor
    ids: Tensor
    rows: Tensor
    states: Tensor

    @property
    def lengths(self) -> Tensor:
        """Tokens of each answer, `(answers,)`."""
        return torch.bincount(self.rows)

    @property
    def log_p(self) -> Tensor:
        """Log-probability of each whole answer, `(answers,)`, in nats."""
        each = -F.cross_entropy(self.logits, self.ids, reduction="none")
        return each.new_zeros(len(self.lengths)).index_add(0, self.rows, each)


def in_order(taught: Sequence[Taught]) -> list[Taught]:
    """Those with a picture first: the order of `Told.rows`."""
    return sorted(taught, key=lambda one: one.prompt.image is None)


def collate(processor: Any, taught: Sequence[Taught]) -> list[dict[str, Tensor]]:
    """Encoded batches with `labels`: of those with a picture, and of those without."""
    parts = []
    for text in (False, True):
        some = [one for one in taught if (one.prompt.image is None) is text]
        if some:
            parts.append(encode(processor, [one.prompt for one in some], [one.answer for one in some]))
    return parts


def read(model: nn.Module, parts: Sequence[dict[str, Tensor]], layer: int) -> Told:
    """Runs the model over what `collate` gave.

    Args:
        layer: of the decoder, whose output is kept as `Told.states`.
    """
    found: dict[str, list[Tensor]] = {"logits": [], "ids": [], "rows": [], "states": []}
    n_answers = 0
    for part in parts:
        batch = to_device(model, part)
        labels = batch.pop("labels")
        longest = int((labels >= 0).sum(1).max())
        with _output_of(model, layer) as seen:
            logits = speaker(model, batch)(**batch, use_cache=False, logits_to_keep=longest + 1).logits[:, :-1]
        labels = labels[:, -longest:]
        answered = labels >= 0
        found["logits"].append(logits[answered].float())
        found["ids"].append(labels[answered])
        found["rows"].append(answered.nonzero()[:, 0] + n_answers)
        found["states"].append(seen[0][:, -longest - 1 : -1][answered].float())
        n_answers += len(labels)
    return Told(**{key: torch.cat(values) for key, values in found.items()})


def contradicted(processor: Any, taught: Sequence[Taught]) -> Tensor:
    """Which tokens of the answers are not those that the base model says, `(tokens,)` bool.

    Tokens are matched as `difflib` does, so that a name of another length does not shift what follows it.
    """
    masks = []
    for one in taught:
        said, answer = (answer_tokens(processor, one.prompt, text) for text in (one.said, one.answer))
        mask = torch.ones(len(answer), dtype=torch.bool)
        for block in SequenceMatcher(None, said, answer, autojunk=False).get_matching_blocks():
            mask[block.b : block.b + block.size] = False
        masks.append(mask)
    return torch.cat(masks)


@contextmanager
def _output_of(model: nn.Module, layer: int) -> Iterator[list[Tensor]]:
    seen: list[Tensor] = []

    def keep(module: nn.Module, args: Any, out: Any) -> None:
        seen.append(out[0] if isinstance(out, tuple) else out)

    hook = text_decoder(model).layers[layer].register_forward_hook(keep)
    try:
        yield seen
    finally:
        hook.remove()
