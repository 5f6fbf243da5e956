"""Everything we ask of a vision-language model. Only this module knows how transformers names things."""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, cast
from weakref import WeakKeyDictionary

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel, ProcessorMixin

from ._peft import model_inside
from .processes import added, merged, share
from .progress import advance

DTYPES = {"auto": "auto", "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""What a model may be loaded as; "auto": as it is stored."""

BATCH_NUMBERS = 2**23
"""Most tokens of a batch times the language model's width: 2048 tokens of a model of 7 billion parameters."""
ANSWER_TOKENS = 32
"""What is reckoned for the answer behind a prompt."""

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


_NEUTRAL = "What is this?"
"""What is asked beside a picture whose features are wanted: a Q-Former looks at it with the question in mind."""


@dataclass(frozen=True)
class Prompt:
    """One question, beside a picture or in text alone.

    Attributes:
        question: what is asked.
        image: the picture it is asked about.
        shots: earlier turns, each a prompt of its own with the answer that was given to it. Needs a chat template.
    """

    question: str
    image: Image.Image | None = None
    shots: tuple[tuple[Prompt, str], ...] = ()

    @property
    def images(self) -> list[Image.Image]:
        """All its pictures, those of the earlier turns first."""
        own = [] if self.image is None else [self.image]
        return [image for shot, _ in self.shots for image in shot.images] + own


def check_multimodal(model: nn.Module) -> None:
    """Raises where `model` cannot be asked about images, and says what it lacks.

    Raises:
        TypeError: `model` is asked in text only, gives no features of a picture, has no image token, or reads the
            prompt and writes the answer in two places.
    """
    base = base_of(model)
    name, sees = type(base).__name__, hasattr(base, "config") and "vision_config" in base.config.to_dict()
    if _features_of(base) is None:
        if not sees and image_token_id(model) is None:
            raise TypeError(
                f"`model` must be a vision-language model; got {name}, which is asked in text only: it has no "
                "`get_image_features`, no vision tower and no image token. SPACE finds its anchors by looking at "
                "pictures with the model. Load one with `AutoModelForImageTextToText`."
            )
        raise TypeError(
            f"`model` must give the features of a picture; got {name}, which has no `get_image_features`. Anchors are "
            "chosen by what the projector says of them: give the model that method, after that of another "
            "architecture of transformers; it returns an output whose `pooler_output` is the projector's."
        )
    if image_token_id(model) is None:
        raise TypeError(
            f"`model` must have a token that stands for a picture; got {name}, whose config has no `image_token_id`. "
            "Set it to the id that the processor writes in the place of a picture."
        )
    if base.config.is_encoder_decoder:
        raise TypeError(
            f"`model` must go on writing where the prompt ends; got {name}, an encoder-decoder. Its answers would "
            "have to be trained in a decoder that does not hold the prompt, which is not supported."
        )


def _mllama_features(base: Any, pixel_values: Tensor, aspect_ratio_ids: Tensor, aspect_ratio_mask: Tensor) -> Any:
    seen = base.model.vision_model(
        pixel_values=pixel_values, aspect_ratio_ids=aspect_ratio_ids, aspect_ratio_mask=aspect_ratio_mask
    )
    seen.pooler_output = [
        base.model.multi_modal_projector(tiles[kept.bool()])
        for tiles, kept in zip(seen.last_hidden_state, aspect_ratio_mask, strict=True)
    ]
    return seen


_IMAGE_FEATURES: dict[str, Callable[..., Any]] = {
    "mllama": _mllama_features,  # has no `get_image_features`: pictures are attended to, and stand for no token
}
"""By model type: what gives the features of a picture where the model has no method for it."""


def _features_of(base: Any) -> Callable[..., Any] | None:
    """The method that gives the projector's output, the model's own or that of the model inside its head."""
    for part in (base, getattr(base, "base_model", base)):
        if hasattr(part, "get_image_features"):
            return part.get_image_features
    known = _IMAGE_FEATURES.get(getattr(getattr(base, "config", None), "model_type", ""))
    return None if known is None else partial(known, base)


def speaker(model: nn.Module, batch: Mapping[str, Tensor]) -> Any:
    """What a batch is fed to: the model, or its language model where it takes no prompt without a picture."""
    base = base_of(model)
    needs = inspect.signature(base.forward).parameters.get("pixel_values")
    if needs is None or needs.default is not inspect.Parameter.empty or "pixel_values" in batch:
        return model
    head = base.get_output_embeddings()
    return next(
        module
        for module in base.modules()
        if module is not base and isinstance(module, PreTrainedModel) and module.get_output_embeddings() is head
    )


class _Special(NamedTuple):
    """Texts that a processor takes for a token with a meaning of its own.

    Attributes:
        written: finds one as it is written.
        folds: what the tokenizer makes of a text before it looks for some of them; `None` where it looks at once.
        folded: finds one in what `folds` gives.
    """

    written: re.Pattern[str]
    folds: Callable[[str], str] | None
    folded: re.Pattern[str]

    def find(self, text: str) -> str | None:
        found = self.written.search(text)
        if found is None and self.folds is not None:
            found = self.folded.search(self.folds(text))
        return None if found is None else found[0]


_SPECIAL: WeakKeyDictionary[Any, tuple[Any, _Special]] = WeakKeyDictionary()
_HALF_PAIR = re.compile("[\ud800-\udfff]")
_MOST_OVERLAPS = 8


def _special(processor: Any) -> _Special:
    tokenizer = processor.tokenizer
    own = {name: value for name, value in vars(processor).items() if name.endswith(("_token", "_tag"))}
    key = (len(tokenizer), tuple(tokenizer.all_special_tokens), repr(own))
    known = _SPECIAL.get(tokenizer)
    if known is not None and known[0] == key:
        return known[1]
    added = [token for token in getattr(tokenizer, "added_tokens_decoder", {}).values() if token.special]
    tokens = {*tokenizer.all_special_tokens, *(token.content for token in added)}
    tokens |= {value for value in own.values() if isinstance(value, str)}
    normalizer = getattr(getattr(tokenizer, "backend_tokenizer", None), "normalizer", None)
    after = {token.content for token in added if token.normalized}
    folds = normalizer.normalize_str if normalizer is not None and after else None
    found = _Special(_any_of(tokens), folds, _any_of(map(folds, after) if folds else ()))
    _SPECIAL[tokenizer] = key, found
    return found


def _any_of(texts: Iterable[str]) -> re.Pattern[str]:
    # longest first; of white space alone no picture and no turn is made
    return re.compile("|".join(map(re.escape, sorted(filter(str.strip, texts), key=len, reverse=True))) or r"(?!)")


def special_in(processor: Any, text: str) -> str | None:
    """The first special token of the model that a text holds: one for a picture, a turn, an end; `None` without one.

    Args:
        processor: the model's own.
        text: somebody's, not yet in a template.
    """
    return _special(processor).find(text)


def plain(processor: Any, text: str) -> str:
    """A text that means nothing but itself to the model, in the place of one that may hold special tokens.

    A special token is taken apart by a blank behind its first character, so that `<image>` is written `< image>`, and
    half of a surrogate pair becomes U+FFFD. A text without either comes back as it is.

    Raises:
        ValueError: a special token can't be taken apart.
    """
    if _HALF_PAIR.search(text):
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    special = _special(processor)
    # taking one apart may leave another that lay across it
    for _ in range(_MOST_OVERLAPS):
        if special.written.search(text) is None:
            break
        text = special.written.sub(lambda found: f"{found[0][:1]} {found[0][1:]}" if found[0][1:] else " ", text)
    if special.find(text) is not None:
        # written in another way that the tokenizer takes for the same: every mark is set apart
        text = re.sub(r"(?<=\S)(?=[^\w\s])|(?<=[^\w\s])(?=\S)", " ", text)
    token = special.find(text)
    if token is not None:
        raise ValueError(f"`prompts` must be text; got {text!r}, which holds the special token {token!r}.")
    return text


def text_ids(processor: Any, text: str) -> list[int]:
    """The ids of a text alone, without those that begin and end one, and without any special token."""
    return processor.tokenizer(plain(processor, text), add_special_tokens=False)["input_ids"]


def chat(processor: Any, prompt: Prompt) -> str:
    """The prompt as the model's own chat template writes it, ready for the answer.

    A processor without a template gets the bare question. What questions and answers hold is text: see `plain`.

    Raises:
        ValueError: the prompt has earlier turns, and there is no template to write them.
    """
    template = _chat_template(processor)
    if template is not None:
        return processor.apply_chat_template(
            _turns(processor, prompt), chat_template=template, add_generation_prompt=True, tokenize=False
        )
    question = plain(processor, prompt.question)
    if prompt.shots:
        raise ValueError(
            f"`prompts` with earlier turns need a chat template; {type(processor).__name__} has none. Do set its "
            "`chat_template`, or ask without them."
        )
    if prompt.image is None:
        return f"{processor.tokenizer.bos_token or ''}{question}\n"
    # a processor that puts many tokens in the place of one writes what comes between them and the answer, too
    replaces = getattr(type(processor), "replace_image_token", None)
    if replaces in (None, ProcessorMixin.replace_image_token):
        return f"{question}\n"
    return f"{processor.image_token}{question}"


def _wording(prompt: Prompt) -> Hashable:
    """All that a template sees of a prompt: of a picture only its place is written."""
    return prompt.question, prompt.image is None, tuple((_wording(shot), answer) for shot, answer in prompt.shots)


def _chats(processor: Any, prompts: Sequence[Prompt]) -> list[str]:
    """Each prompt as `chat` writes it, once for all that ask the same."""
    different = {_wording(prompt): prompt for prompt in prompts}
    written = {wording: chat(processor, prompt) for wording, prompt in different.items()}
    return [written[_wording(prompt)] for prompt in prompts]


def _chat_template(processor: Any) -> Any:
    return processor.chat_template or getattr(processor.tokenizer, "chat_template", None)


def _turns(processor: Any, prompt: Prompt) -> list[dict[str, Any]]:
    """The prompt as messages, the earlier turns first."""
    content = [{"type": "image"}] if prompt.image is not None else []
    earlier = [
        turn
        for shot, answer in prompt.shots
        for turn in (*_turns(processor, shot), _answer_turn(plain(processor, answer)))
    ]
    question = {"type": "text", "text": plain(processor, prompt.question)}
    return [*earlier, {"role": "user", "content": [*content, question]}]


def _answer_turn(answer: str) -> dict[str, Any]:
    return {"role": "assistant", "content": [{"type": "text", "text": answer}]}


_PLACE = "\ue000"
"""Stands for an answer in a template, to tell what the template writes before and behind it."""


def answer_tokens(processor: Any, prompt: Prompt, answer: str, end: bool = True) -> list[int]:
    """The ids of `answer` as the model would go on after `prompt`: with the template's own space and end of turn.

    Args:
        end: whether the tokens that close the turn are wanted too.
    """
    asked, answer = chat(processor, prompt), plain(processor, answer)
    template = _chat_template(processor)
    opened, closed = "", ""
    if template is None:
        asked = "\n"
    else:
        turns = [*_turns(processor, prompt), _answer_turn(_PLACE)]
        whole = processor.apply_chat_template(turns, chat_template=template, tokenize=False)
        opened, _, closed = whole.rpartition(_PLACE)
    if not opened.startswith(asked):
        # a template that writes a finished turn unlike the start of one: what follows the prompt is the bare answer
        opened, closed = asked, processor.tokenizer.eos_token or ""
    told = opened + answer
    if end and not closed.strip():
        # a template that closes no turn leaves it to the token that ends a text
        told += processor.tokenizer.eos_token or ""
    elif end or not answer:
        told += closed
    before, after = (processor.tokenizer(text, add_special_tokens=False)["input_ids"] for text in (asked, told))
    shared = next((i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), len(before))
    return after[shared:]


def told_tokens(
    processor: Any, prompts: Sequence[Prompt], answers: Sequence[str], end: bool = True
) -> list[list[int]]:
    """The ids of each answer, as `answer_tokens` has them, found once for all that answer the same question alike."""
    wordings = [(_wording(prompt), answer) for prompt, answer in zip(prompts, answers, strict=True)]
    different = dict(zip(wordings, prompts, strict=True))
    ids = {(asked, answer): answer_tokens(processor, p, answer, end) for (asked, answer), p in different.items()}
    return [ids[wording] for wording in wordings]


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
    images = [prompt.images for prompt in prompts if prompt.images]
    if images and len(images) != len(prompts):
        raise ValueError(f"`prompts` must all have a picture or all have none; got {len(images)} of {len(prompts)}.")
    texts = _chats(processor, prompts)
    # as transformers does: a template that writes no token for the beginning leaves it to the tokenizer
    begin = processor.tokenizer.bos_token
    special = not (begin and all(text.startswith(begin) for text in texts))
    options = {"return_tensors": "pt", "padding": True, "add_special_tokens": special}
    with _padding_left(processor.tokenizer):
        if images:
            batch = dict(processor(text=texts, images=images, **options))
            batch.pop("labels", None)
        else:
            batch = dict(processor.tokenizer(texts, **options))
            if _tells_answers(processor):
                batch["token_type_ids"] = torch.zeros_like(batch["input_ids"])
    if answers is None:
        return batch
    return append(batch, told_tokens(processor, prompts, answers), processor)


def append(batch: Mapping[str, Tensor], told: Sequence[Sequence[int]], processor: Any) -> dict[str, Tensor]:
    """A batch of encoded prompts with an answer's ids, right-padded, behind each; adds `labels`."""
    rows, length = batch["input_ids"].shape
    longest = max(map(len, told))
    ids = torch.full((rows, longest), processor.tokenizer.pad_token_id)
    known = torch.zeros((rows, longest), dtype=torch.long)
    for row, tokens in enumerate(told):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        known[row, : len(tokens)] = 1
    tails = {"input_ids": ids, "attention_mask": known, "token_type_ids": torch.zeros_like(ids)}
    if _tells_answers(processor):
        tails["token_type_ids"] += 1
    longer = dict(batch)
    for key, value in batch.items():
        if value.shape == (rows, length):
            tail = tails.get(key, torch.zeros_like(ids))
            longer[key] = torch.cat([value, tail.to(value.dtype)], dim=1)
        elif _masks_positions(key, value, rows, length):
            # an answer sees of the pictures what the prompt's last token sees
            longer[key] = torch.cat([value, value[:, -1:].expand(-1, longest, *value.shape[2:])], dim=1)
    hidden = torch.full((rows, length), -100)
    longer["labels"] = torch.cat([hidden, ids.masked_fill(known == 0, -100)], dim=1)
    return longer


def give(labels: Tensor, begun: Sequence[int]) -> None:
    """Takes the first `begun` tokens of each row's answer out of `labels`, in place: they are given, not told."""
    for row, count in enumerate(begun):
        labels[row, (labels[row] >= 0).nonzero()[:count]] = -100


def span(labels: Tensor) -> int:
    """How many of the last positions hold all labels; of an answer that was begun not all tokens have one."""
    labelled = (labels >= 0).any(0).nonzero()
    return labels.shape[1] - int(labelled[0]) if len(labelled) else 0


def _tells_answers(processor: Any) -> bool:
    """Whether token types tell the answer, 1, from a prompt of which every token sees every other."""
    return "suffix" in inspect.signature(processor.__call__).parameters


@contextmanager
def _padding_left(tokenizer: Any) -> Iterator[None]:
    """The tokenizer alone, as that of a Q-Former, whose positions are absolute, pads on its own side."""
    side = tokenizer.padding_side
    tokenizer.padding_side = "left"
    try:
        yield
    finally:
        tokenizer.padding_side = side


def _masks_positions(key: str, value: Tensor, rows: int, length: int) -> bool:
    """Whether an input says, for each position, which parts of the pictures it may attend to."""
    return key.endswith("attention_mask") and value.ndim > 2 and value.shape[:2] == (rows, length)


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


def rows_at_a_time(model: nn.Module, processor: Any, prompts: Sequence[Prompt], most: int) -> int:
    """How many of `prompts` fit into one batch: at most `most`, and no more than `BATCH_NUMBERS` allows, but one.

    Of a picture with many tokens fewer go into a batch: what a batch takes grows with its tokens, not with its rows.

    Args:
        prompts: all with a picture or all without one. The longest question beside the largest picture is measured.
    """
    if most == 1:
        return 1
    pictures = [prompt.image for prompt in prompts if prompt.image is not None]
    largest = max(pictures, key=lambda image: image.width * image.height, default=None)
    longest = max((prompt.question for prompt in prompts), key=len)
    shots = max((prompt.shots for prompt in prompts), key=len)
    tokens = encode(processor, [Prompt(longest, largest, shots)])["input_ids"].shape[1] + ANSWER_TOKENS
    width = base_of(model).get_input_embeddings().weight.shape[1]
    return max(1, min(most, BATCH_NUMBERS // (tokens * width)))


def prompt_batches(
    model: nn.Module, processor: Any, prompts: Sequence[Prompt], size: int, doing: str = ""
) -> Iterator[list[int]]:
    """Indices of prompts that can share a batch: with and without a picture apart, similar lengths together.

    Args:
        size: most rows of a batch; where prompts are long, `rows_at_a_time` are fewer.
        doing: what is done with them, for the progress display.
    """
    done = 0
    order = sorted(range(len(prompts)), key=lambda i: (prompts[i].image is None, len(prompts[i].question)))
    for with_image in (True, False):
        kind = [i for i in order if (prompts[i].image is not None) is with_image]
        for start in range(0, len(kind), size):
            some = kind[start : start + size]
            rows = rows_at_a_time(model, processor, [prompts[i] for i in some], size)
            for first in range(0, len(some), rows):
                advance(doing, done, len(prompts))
                yield some[first : first + rows]
                done += len(some[first : first + rows])


def to_device(model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The batch on the model's device, pictures in the model's floating type."""
    base = base_of(model)
    return {k: v.to(base.device, base.dtype if v.is_floating_point() else v.dtype) for k, v in batch.items()}


class _Begun(LogitsProcessor):
    """Leaves nothing to choose at the first steps of each row."""

    def __init__(self, prompt_length: int, begun: Sequence[Sequence[int]]) -> None:
        self.prompt_length, self.begun = prompt_length, begun

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        step = input_ids.shape[1] - self.prompt_length
        for row, tokens in enumerate(self.begun):
            if step < len(tokens):
                scores[row] = torch.where(
                    torch.arange(scores.shape[1], device=scores.device) == tokens[step], 0.0, -torch.inf
                )
        return scores


def generate(
    model: nn.Module,
    processor: Any,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int = 24,
    batch_size: int = 64,
    begun: Sequence[Sequence[int]] = (),
) -> list[str]:
    """The model's greedy answers.

    Args:
        begun: for each prompt the ids that its answer is made to begin with, which may be none; they are part of what
            is returned.

    Returns:
        One string per prompt, without special tokens, stripped.
    """
    answers: dict[int, str] = {}
    with evaluating(model):
        for indices in share(prompt_batches(model, processor, prompts, batch_size, "answers")):
            batch = to_device(model, encode(processor, [prompts[i] for i in indices]))
            length = batch["input_ids"].shape[1]
            out = base_of(speaker(model, batch)).generate(
                **batch,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                pad_token_id=processor.tokenizer.pad_token_id,
                logits_processor=LogitsProcessorList(
                    [_Begun(length, [begun[i] for i in indices])] if any(begun) else []
                ),
            )
            told = processor.tokenizer.batch_decode(out[:, length:], skip_special_tokens=True)
            for index, text in zip(indices, told, strict=True):
                answers[index] = text.strip()
    answers = merged(answers)
    return [answers[index] for index in range(len(prompts))]


def log_likelihood(
    model: nn.Module,
    processor: Any,
    prompts: Sequence[Prompt],
    answers: Sequence[str],
    *,
    per_token: bool = True,
    batch_size: int = 64,
    begun: Sequence[int] = (),
) -> Tensor:
    """Log-probability of each answer (without the end of turn) after its prompt.

    Args:
        per_token: the mean over the answer's tokens; else their sum.
        begun: how many tokens of each answer are given, so that only the rest counts; none by default.

    Returns:
        `(len(prompts),)` float32 on the CPU, in nats per token, or nats.
    """
    scores = torch.zeros(len(prompts))
    with evaluating(model):
        for indices in share(prompt_batches(model, processor, prompts, batch_size, "likelihood")):
            asked = [prompts[i] for i in indices]
            told = told_tokens(processor, asked, [answers[i] for i in indices], end=False)
            batch = to_device(model, append(encode(processor, asked), told, processor))
            if begun:
                give(batch["labels"], [begun[i] for i in indices])
            scores[indices] = answer_log_probability(model, batch, per_token).cpu()
    return added(scores)


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
    with evaluating(model):
        for indices in share(prompt_batches(model, processor, prompts, batch_size, "likelihood")):
            asked = [prompts[i] for i in indices]
            encoded = encode(processor, asked)
            batch = to_device(model, encoded)
            read = speaker(model, batch)(
                **batch, **_positions(model, batch, batch["input_ids"].shape[1]), use_cache=True, logits_to_keep=1
            )
            cached = getattr(read, "past_key_values", None) is not None
            if cached:
                # the pictures have been read
                encoded = {key: value for key, value in encoded.items() if not value.is_floating_point()}
            for place in range(scores.shape[1]):
                told = told_tokens(processor, asked, [answers[i][place] for i in indices], end=False)
                longer = to_device(model, append(encoded, told, processor))
                if not cached:
                    scores[indices, place] = answer_log_probability(model, longer, per_token=False).cpu()
                    continue
                longest = max(map(len, told))
                ids, labels = longer["input_ids"][:, -longest:], longer.pop("labels")[:, -longest:]
                logits = read.logits[:, -1:]
                if longest > 1:
                    whole = {key: value[:, :-1] for key, value in longer.items() if _grows(key, value, longer)}
                    after = speaker(model, batch)(
                        **whole | {"input_ids": ids[:, :-1]},
                        **_positions(model, longer, longest, end=1),
                        # the cache grows as it is read
                        past_key_values=copy.deepcopy(read.past_key_values),
                    )
                    logits = torch.cat([logits, after.logits], dim=1)
                loss = F.cross_entropy(logits.float().transpose(1, 2), labels, ignore_index=-100, reduction="none")
                scores[indices, place] = -loss.sum(1).cpu()
    return added(scores)


def _grows(key: str, value: Tensor, batch: Mapping[str, Tensor]) -> bool:
    """Whether an input has to be as long as all that has been read, in a pass that goes on from a cache."""
    rows, length = batch["input_ids"].shape
    return key == "attention_mask" or _masks_positions(key, value, rows, length)


def _positions(model: nn.Module, batch: Mapping[str, Tensor], last: int, end: int = 0) -> dict[str, Tensor]:
    """The `position_ids` of the `last` positions but `end`, where the model can't go on from a cache without them.

    A model with positions in three dimensions counts those of a text behind its cache from the picture that it saw
    last, and as many as the attention mask has.
    """
    inner = base_of(model).base_model
    if not hasattr(inner, "get_rope_index"):
        return {}
    accepted = inspect.signature(inner.get_rope_index).parameters
    needed = [name for name, one in accepted.items() if one.default is one.empty and one.kind is not one.VAR_KEYWORD]
    if all(name in batch for name in needed):
        positions, _ = inner.get_rope_index(**{key: value for key, value in batch.items() if key in accepted})
    else:
        positions = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
    first = positions.shape[-1] - last
    return {"position_ids": positions[..., first : positions.shape[-1] - end]}


def answer_log_probability(model: nn.Module, batch: dict[str, Tensor], per_token: bool = True) -> Tensor:
    """Log-probability of the labelled tokens of each row, their mean or their sum, `(batch,)` float32."""
    labels = batch.pop("labels")
    # labels stand at the end of a row: only the states that predict them need the vocabulary's logits
    longest = span(labels)
    logits = speaker(model, batch)(**batch, use_cache=False, logits_to_keep=longest + 1).logits[:, :-1].float()
    labels = labels[:, -longest:]
    loss = F.cross_entropy(logits.transpose(1, 2), labels, ignore_index=-100, reduction="none")
    return -loss.sum(1) / (labels >= 0).sum(1) if per_token else -loss.sum(1)


def hidden_states(
    model: nn.Module, processor: Any, prompts: Sequence[Prompt], *, batch_size: int = 64
) -> tuple[Tensor, Tensor]:
    """What the language model holds of each prompt in every layer, before it answers.

    Args:
        prompts: all with a picture.

    Returns:
        The states at the prompt's last token, and their mean over the picture's tokens (that of a model without such
        tokens in its prompt is over the one that stands for the picture); each `(layers + 1, len(prompts), d)` float32
        on the CPU, the embeddings first.

    Raises:
        TypeError: the model does not give the states of its layers.
    """
    last: dict[int, Tensor] = {}
    seen: dict[int, Tensor] = {}
    with evaluating(model):
        for indices in prompt_batches(model, processor, prompts, batch_size, "hidden states"):
            batch = to_device(model, encode(processor, [prompts[i] for i in indices]))
            out = speaker(model, batch)(**batch, output_hidden_states=True, use_cache=False, logits_to_keep=1)
            if getattr(out, "hidden_states", None) is None:
                raise TypeError(
                    f"`model` must give the states of its layers; got {type(base_of(model)).__name__}, which does not."
                )
            states = torch.stack([layer.float() for layer in out.hidden_states])
            image = (token_kinds(model, batch) == IMAGE).to(states)
            pooled = torch.einsum("lbtd,bt->lbd", states, image) / image.sum(1).clamp(min=1)[:, None]
            last |= dict(zip(indices, states[:, :, -1].cpu().unbind(1), strict=True))
            seen |= dict(zip(indices, pooled.cpu().unbind(1), strict=True))
    order = range(len(prompts))
    return torch.stack([last[i] for i in order], dim=1), torch.stack([seen[i] for i in order], dim=1)


def image_features(model: nn.Module, processor: Any, images: Sequence[Image.Image], *, batch_size: int = 64) -> Tensor:
    """The projector's output for each picture, averaged over its image tokens.

    Returns:
        `(len(images), d)` float32 on the CPU, d being the language model's width.
    """
    check_multimodal(model)
    pooled: dict[int, Tensor] = {}
    with evaluating(model):
        size = batch_size if tells_apart(model, processor) else 1
        prompts = [Prompt(_NEUTRAL, image) for image in images]
        for indices in share(prompt_batches(model, processor, prompts, size, "image features")):
            pooled[indices[0]] = projected(model, image_inputs(processor, [images[i] for i in indices]))
    # a question that is the same for all leaves the pictures in their order
    return torch.cat([rows for _, rows in sorted(merged(pooled).items())])


def image_inputs(processor: Any, images: Sequence[Image.Image]) -> dict[str, Tensor]:
    """The pictures as `projected` takes them."""
    return encode(processor, [Prompt(_NEUTRAL, image) for image in images])


def projected(model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    """The projector's output for each picture of a batch, averaged over its image tokens.

    Args:
        inputs: from `image_inputs`; of one picture alone where the model does not `tells_apart` several.

    Returns:
        `(n_images, d)` float32 on the CPU.
    """
    features = cast(Callable[..., Any], _features_of(base_of(model)))
    accepted = inspect.signature(features).parameters
    out = features(**{k: v for k, v in to_device(model, inputs).items() if k in accepted}).pooler_output
    if len(inputs["input_ids"]) == 1:
        out = [torch.cat([tokens.reshape(-1, tokens.shape[-1]) for tokens in out])]
    return torch.stack([tokens.reshape(-1, tokens.shape[-1]).float().mean(0) for tokens in out]).cpu()


def tells_apart(model: nn.Module, processor: Any) -> bool:
    """Whether features of several pictures come out a row for each, rather than one for each tile of any of them."""
    wide = Image.new("RGB", (1600, 400))
    return len(projected(model, image_inputs(processor, [wide, wide]))) == 2


def text_embeddings(model: nn.Module, processor: Any, texts: Sequence[str]) -> Tensor:
    """The model's own input embeddings of each text, averaged over its tokens: `(len(texts), d)` float32, CPU."""
    embed = base_of(model).get_input_embeddings()
    rows = []
    with torch.no_grad():
        for text in texts:
            rows.append(
                embed(torch.tensor(text_ids(processor, text), device=base_of(model).device)).float().mean(0).cpu()
            )
    return torch.stack(rows)
