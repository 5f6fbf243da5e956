"""The model's own answers, with what must not be said suppressed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LogitsProcessor, LogitsProcessorList

from ..concepts.concept import find_any
from ..processes import merged, share
from ..vlm import Prompt, base_of, encode, evaluating, prompt_batches, speaker, to_device

_ROUNDS = 12


class _Bans(LogitsProcessor):
    """Bans given tokens at given steps of given rows."""

    def __init__(self, prompt_length: int, bans: Sequence[dict[int, set[int]]]) -> None:
        self.prompt_length, self.bans = prompt_length, bans

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        step = input_ids.shape[1] - self.prompt_length
        for row, banned in enumerate(self.bans):
            if step in banned:
                scores[row, list(banned[step])] = -torch.inf
        return scores


def suppressed_answers(
    model: nn.Module,
    processor: Any,
    prompts: Sequence[Prompt],
    banned: Sequence[tuple[str, ...]],
    *,
    max_new_tokens: int = 24,
    batch_size: int = 64,
) -> list[str | None]:
    """Greedy answers in which none of the banned phrases occurs.

    Where a phrase turns up, the token that began it is banned at that step and the answer is written anew from there,
    so that everything before it, and the model's second choice, stay its own.

    Args:
        banned: for each prompt the phrases that its answer may not hold.

    Returns:
        One answer per prompt; `None` where every way on led back to a banned phrase.
    """
    answers: dict[int, str] = {}
    tokenizer = processor.tokenizer
    with evaluating(model):
        for indices in share(prompt_batches(model, processor, prompts, batch_size, "anchors' answers")):
            bans: dict[int, dict[int, set[int]]] = {i: {} for i in indices}
            for _ in range(_ROUNDS):
                batch = to_device(model, encode(processor, [prompts[i] for i in indices]))
                length = batch["input_ids"].shape[1]
                out = base_of(speaker(model, batch)).generate(
                    **batch,
                    max_new_tokens=max_new_tokens,
                    do_sample=False,
                    pad_token_id=tokenizer.pad_token_id,
                    logits_processor=LogitsProcessorList([_Bans(length, [bans[i] for i in indices])]),
                )
                again = []
                for index, ids in zip(indices, out[:, length:].tolist(), strict=True):
                    text = tokenizer.decode(ids, skip_special_tokens=True)
                    start = find_any(banned[index], text)
                    if start is None:
                        answers[index] = text.strip()
                        continue
                    # the first token without which the phrase has not begun yet
                    step = next(
                        n
                        for n in range(len(ids))
                        if len(tokenizer.decode(ids[: n + 1], skip_special_tokens=True)) > start
                    )
                    bans[index].setdefault(step, set()).add(ids[step])
                    again.append(index)
                indices = again
                if not indices:
                    break
    answers = merged(answers)
    return [answers.get(index) for index in range(len(prompts))]
