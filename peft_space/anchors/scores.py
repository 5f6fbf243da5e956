"""How strongly the model ties a picture to the concept: in its projector space, and in what it would say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from ..concepts import Concept
from ..vlm import Prompt, log_likelihood, special_in, text_embeddings, text_ids

_PHRASINGS = ("{}", "a picture of {}", "this is {}")
_NEUTRAL = "something"
_N_QUESTIONS = 3


def concept_embedding(model: nn.Module, processor: Any, concept: Concept) -> Tensor:
    """The concept's direction among the model's input embeddings.

    The mean over phrasings and names, each less the same phrasing about "something", so that what remains is the name
    and not the words around it.

    Returns:
        `(d,)` float32, unit norm.

    Raises:
        ValueError: the tokenizer has no token for the name, or the name holds a token that is none of text.
    """
    for name in concept.names:
        if (token := special_in(processor, name)) is not None:
            raise ValueError(
                f"`concept` must be a name without special tokens of the model; got {name!r}, which holds {token!r}. "
                "Give the name as it is said."
            )
        ids = text_ids(processor, name)
        if not ids or all(token == processor.tokenizer.unk_token_id for token in ids):
            raise ValueError(
                f"`concept` must be text that the model's tokenizer can write; got {name!r}. Check the spelling."
            )
    told = text_embeddings(model, processor, [p.format(name) for p in _PHRASINGS for name in concept.names])
    plain = text_embeddings(model, processor, [p.format(_NEUTRAL) for p in _PHRASINGS for _ in concept.names])
    return F.normalize((told - plain).mean(0), dim=0)


def projector_cosine(features: Tensor, concept: Tensor) -> Tensor:
    """Cosine of each picture with the concept, after the pictures' common part is taken away.

    Pictures and words fill different regions of the shared space (the modality gap), so raw cosines are nearly the
    same for all pictures; subtracting the set's mean leaves what tells one picture from another.

    Args:
        features: projector features, `(n_images, d)`.
        concept: the concept's direction, `(d,)`.

    Returns:
        `(n_images,)` float32 in -1 to 1.
    """
    return F.normalize(features - features.mean(0), dim=1) @ F.normalize(concept, dim=0)


def name_likelihood(
    model: nn.Module, processor: Any, concept: Concept, images: Sequence[Image.Image], *, batch_size: int = 64
) -> Tensor:
    """What the model would say: mean log p(name | picture, question) over the concept's first three questions.

    Returns:
        `(n_images,)` float32, nats per token; of several names the likeliest.
    """
    prompts = [Prompt(question, image) for image in images for question in concept.questions[:_N_QUESTIONS]]
    per_name = [
        log_likelihood(model, processor, prompts, [name] * len(prompts), batch_size=batch_size)
        .view(len(images), -1)
        .mean(1)
        for name in concept.names
    ]
    return torch.stack(per_name).amax(0)
