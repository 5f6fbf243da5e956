"""Everything we ask of a vision-language model. Only this module knows how transformers names things."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from ._peft import model_inside
from .progress import advance

DTYPES = {"auto": "auto", "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""What a model may be loaded as; "auto": as it is stored."""

PADDING, IMAGE, TEXT, TEXT_ONLY = range(4)
"""Kinds of token: padding, an image token, text beside an image, and text of a prompt that holds no image."""


def base_of(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside a `PeftModel` or `PeftMixedModel`; any other model is returned as it is."""
    return model_inside(model)


def text_decoder(model: nn.Module) -> nn.Module:
    """The language model inside a vision-language model (without its `lm_head`).

    Args:
        model: a transformers model or a `PeftModel` around one.

    Raises:
        TypeError: `model` has no `get_decoder`.
    """
    base = base_of(model)
    if not hasattr(base, "get_decoder"):
        raise TypeError(
            f"`model` must be a transformers model that has `get_decoder`; got {type(base).__name__}. "
            "Load it with `AutoModelForImageTextToText.from_pretrained`, or name `target_modules` yourself."
        )
    return base.get_decoder()


def text_decoder_name(model: nn.Module) -> str:
    """Dotted path of `text_decoder(model)` inside the transformers model; `""` where it is the model itself."""
    decoder = text_decoder(model)
    return next(name for name, module in base_of(model).named_modules() if module is decoder)


def image_token_id(model: nn.Module) -> int | None:
    """The id that stands for an image position in `input_ids`; `None` for a model without one."""
    config = base_of(model).config
    for name in ("image_token_id", "image_token_index"):
        if getattr(config, name, None) is not None:
            return getattr(config, name)
    return None


def token_kinds(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """What each position of a batch is.

    Args:
        model: the model the batch is for.
        batch: model inputs with `input_ids` `(batch, length)` and, optionally, a 2-d `attention_mask` of that shape.

    Returns:
        `(batch, length)` int64 of `PADDING`, `IMAGE`, `TEXT` or `TEXT_ONLY`.
    """
    ids = batch["input_ids"]
    token = image_token_id(model)
    image = torch.zeros_like(ids, dtype=torch.bool) if token is None else torch.eq(ids, token)
    kinds = torch.where(image.any(dim=1, keepdim=True), TEXT, TEXT_ONLY).expand(ids.shape).clone()
    kinds[image] = IMAGE
    mask = batch.get("attention_mask")
    if mask is not None:
        kinds[mask == 0] = PADDING
    return kinds


@dataclass(frozen=True)
class Prompt:
    """One question, beside a picture or in text alone."""

    question: str
    image: Image.Image | None = None


def check_multimodal(model: nn.Module) -> None:
    """Raises where `model` cannot be asked about images.

    Raises:
        TypeError: `model` lacks `get_image_features` or an image token.
    """
    base = base_of(model)
    if not hasattr(base, "get_image_features") or image_token_id(model) is None:
        raise TypeError(
            f"`model` must be a vision-language model with `get_image_features` and an image token; got "
            f"{type(base).__name__}, which is asked in text only. Load it with `AutoModelForImageTextToText`."
        )


def chat(processor: Any, prompt: Prompt) -> str:
    """The prompt as the model's own chat template writes it, ready for the answer."""
    content = [{"type": "image"}] if prompt.image is not None else []
    content.append({"type": "text", "text": prompt.question})
    return processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )


def answer_tokens(processor: Any, prompt: Prompt, answer: str, end: bool = True) -> list[int]:
    """The ids of `answer` as the model would go on after `prompt`: with the template's own space and end of turn.

    Args:
        end: whether the tokens that close the turn are wanted too.
    """
    asked = chat(processor, prompt)
    user = [{"type": "image"}] if prompt.image is not None else []
    turns = [
        {"role": "user", "content": [*user, {"type": "text", "text": prompt.question}]},
        {"role": "assistant", "content": [{"type": "text", "text": answer}]},
    ]
    told = processor.apply_chat_template(turns, tokenize=False)
    if not told.startswith(asked):
        # a template that writes a finished turn unlike the start of one: what follows the prompt is the bare answer
        told = asked + answer + (processor.tokenizer.eos_token or "")
    if not end:
        told = told[: told.rindex(answer) + len(answer)]
    before, after = (processor.tokenizer(text, add_special_tokens=False)["input_ids"] for text in (asked, told))
    shared = next((i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), len(before))
    return after[shared:]


def encode(processor: Any, prompts: Sequence[Prompt], answers: Sequence[str] | None = None) -> dict[str, Tensor]:
    """A batch of prompts, left-padded, and behind them their answers, right-padded.

    Args:
        processor: the model's own.
        prompts: all with a picture or all without one.
        answers: one per prompt; `None` for prompts alone.

    Returns:
        Model inputs; with `answers` also `labels`, `(batch, length)` int64: the answers' ids and -100 elsewhere.

    Raises:
        ValueError: some prompts have a picture and some have none.
    """
    images = [prompt.image for prompt in prompts if prompt.image is not None]
    if images and len(images) != len(prompts):
        raise ValueError(f"`prompts` must all have a picture or all have none; got {len(images)} of {len(prompts)}.")
    texts = [chat(processor, prompt) for prompt in prompts]
    options = {"return_tensors": "pt", "padding": True, "padding_side": "left", "add_special_tokens": False}
    if images:
        batch = dict(processor(text=texts, images=[[image] for image in images], **options))
    else:
        batch = dict(processor.tokenizer(texts, **options))
    if answers is None:
        return batch
    told = [answer_tokens(processor, prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
    return append(batch, told, processor.tokenizer.pad_token_id)


def append(batch: Mapping[str, Tensor], told: Sequence[Sequence[int]], pad: int) -> dict[str, Tensor]:
    """A batch of encoded prompts with an answer's ids, right-padded, behind each; adds `labels`."""
    rows, length = batch["input_ids"].shape
    longest = max(map(len, told))
    ids = torch.full((rows, longest), pad)
    known = torch.zeros((rows, longest), dtype=torch.long)
    for row, tokens in enumerate(told):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        known[row, : len(tokens)] = 1
    longer = dict(batch)
    for key, value in batch.items():
        if value.shape == (rows, length):
            tail = {"input_ids": ids, "attention_mask": known}.get(key, torch.zeros_like(ids))
            longer[key] = torch.cat([value, tail.to(value.dtype)], dim=1)
    hidden = torch.full((rows, length), -100)
    longer["labels"] = torch.cat([hidden, ids.masked_fill(known == 0, -100)], dim=1)
    return longer


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients inside; the former mode afterwards."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def prompt_batches(prompts: Sequence[Prompt], size: int, doing: str = "") -> Iterator[list[int]]:
    """Indices of prompts that can share a batch: with and without a picture apart, similar lengths together.

    Args:
        doing: what is done with them, for the progress display.
    """
    done = 0
    order = sorted(range(len(prompts)), key=lambda i: (prompts[i].image is None, len(prompts[i].question)))
    for with_image in (True, False):
        kind = [i for i in order if (prompts[i].image is not None) is with_image]
        for start in range(0, len(kind), size):
            advance(doing, done, len(prompts))
            yield kind[start : start + size]
            done += len(kind[start : start + size])


def to_device(model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The batch on the model's device, pictures in the model's floating type."""
    base = base_of(model)
    return {k: v.to(base.device, base.dtype if v.is_floating_point() else v.dtype) for k, v in batch.items()}


def generate(
    model: nn.Module, processor: Any, prompts: Sequence[Prompt], *, max_new_tokens: int = 24, batch_size: int = 64
) -> list[str]:
    """The model's greedy answers.

    Returns:
        One string per prompt, without special tokens, stripped.
    """
    answers = [""] * len(prompts)
    with evaluating(model):
        for indices in prompt_batches(prompts, batch_size, "answers"):
            batch = to_device(model, encode(processor, [prompts[i] for i in indices]))
            out = base_of(model).generate(
                **batch,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                pad_token_id=processor.tokenizer.pad_token_id,
            )
            told = processor.tokenizer.batch_decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
            for index, text in zip(indices, told, strict=True):
                answers[index] = text.strip()
    return answers


def log_likelihood(
    model: nn.Module,
    processor: Any,
    prompts: Sequence[Prompt],
    answers: Sequence[str],
    *,
    per_token: bool = True,
    batch_size: int = 64,
) -> Tensor:
    """Log-probability of each answer (without the end of turn) after its prompt.

    Args:
        per_token: the mean over the answer's tokens; else their sum.

    Returns:
        `(len(prompts),)` float32 on the CPU, in nats per token, or nats.
    """
    scores = torch.zeros(len(prompts))
    with evaluating(model):
        for indices in prompt_batches(prompts, batch_size, "likelihood"):
            asked = [prompts[i] for i in indices]
            told = [answer_tokens(processor, p, answers[i], end=False) for p, i in zip(asked, indices, strict=True)]
            batch = to_device(model, append(encode(processor, asked), told, processor.tokenizer.pad_token_id))
            scores[indices] = answer_log_probability(model, batch, per_token).cpu()
    return scores


def log_likelihoods(
    model: nn.Module, processor: Any, prompts: Sequence[Prompt], answers: Sequence[Sequence[str]], batch_size: int = 64
) -> Tensor:
    """Log-probability of several answers to each prompt; the prompt, with its picture, is read once for all of them.

    Args:
        answers: for each prompt as many as for the others.

    Returns:
        `(len(prompts), answers of each)` float32 on the CPU, in nats.
    """
    scores = torch.zeros(len(prompts), len(answers[0]) if answers else 0)
    tokens = ("input_ids", "attention_mask")
    pad = processor.tokenizer.pad_token_id
    with evaluating(model):
        for indices in prompt_batches(prompts, batch_size, "likelihood"):
            asked = [prompts[i] for i in indices]
            batch = to_device(model, encode(processor, asked))
            read = model(**batch, use_cache=True, logits_to_keep=1)
            for place in range(scores.shape[1]):
                told = [
                    answer_tokens(processor, prompt, answers[i][place], end=False)
                    for prompt, i in zip(asked, indices, strict=True)
                ]
                longer = to_device(model, append({k: batch[k].cpu() for k in tokens}, told, pad))
                longest = max(map(len, told))
                ids, labels = longer["input_ids"][:, -longest:], longer["labels"][:, -longest:]
                logits = read.logits[:, -1:]
                if longest > 1:
                    # the cache grows as it is read
                    after = model(
                        input_ids=ids[:, :-1],
                        attention_mask=longer["attention_mask"][:, :-1],
                        past_key_values=copy.deepcopy(read.past_key_values),
                    )
                    logits = torch.cat([logits, after.logits], dim=1)
                loss = F.cross_entropy(logits.float().transpose(1, 2), labels, ignore_index=-100, reduction="none")
                scores[indices, place] = -loss.sum(1).cpu()
    return scores


def answer_log_probability(model: nn.Module, batch: dict[str, Tensor], per_token: bool = True) -> Tensor:
    """Log-probability of the labelled tokens of each row, their mean or their sum, `(batch,)` float32."""
    labels = batch.pop("labels")
    longest = int((labels >= 0).sum(1).max())
    # labels stand at the end of a row: only the states that predict them need the vocabulary's logits
    logits = model(**batch, use_cache=False, logits_to_keep=longest + 1).logits[:, :-1].float()
    labels = labels[:, -longest:]
    loss = F.cross_entropy(logits.transpose(1, 2), labels, ignore_index=-100, reduction="none")
    return -loss.sum(1) / (labels >= 0).sum(1) if per_token else -loss.sum(1)


def image_features(model: nn.Module, processor: Any, images: Sequence[Image.Image], *, batch_size: int = 64) -> Tensor:
    """The projector's output for each picture, averaged over its image tokens.

    Returns:
        `(len(images), d)` float32 on the CPU, d being the language model's width.
    """
    check_multimodal(model)
    pooled = []
    with evaluating(model):
        for start in range(0, len(images), batch_size):
            advance("image features", start, len(images))
            pooled.append(projected(model, image_inputs(processor, images[start : start + batch_size])))
    return torch.cat(pooled)


def image_inputs(processor: Any, images: Sequence[Image.Image]) -> dict[str, Tensor]:
    """The pictures as `projected` takes them."""
    return dict(processor.image_processor(list(images), return_tensors="pt"))


def projected(model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    """The projector's output for each picture of a batch, averaged over its image tokens.

    Returns:
        `(len(images), d)` float32 on the CPU.
    """
    out = base_of(model).get_image_features(**to_device(model, inputs)).pooler_output
    return torch.stack([tokens.reshape(-1, tokens.shape[-1]).float().mean(0) for tokens in out]).cpu()


def text_embeddings(model: nn.Module, processor: Any, texts: Sequence[str]) -> Tensor:
    """The model's own input embeddings of each text, averaged over its tokens: `(len(texts), d)` float32, CPU."""
    embed = base_of(model).get_input_embeddings()
    rows = []
    with torch.no_grad():
        for text in texts:
            ids = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
            rows.append(embed(torch.tensor(ids, device=base_of(model).device)).float().mean(0).cpu())
    return torch.stack(rows)
