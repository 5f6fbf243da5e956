"""A model whose next token depends on its last one alone, so that a test can say what it answers."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from peft_space.testbed.architecture import ASSISTANT


def saying(model: nn.Module, processor: Any, answers: Mapping[str, float]) -> nn.Module:
    """A copy of a test-bed model that answers everything alike.

    Args:
        answers: what it says, with a weight: the heaviest is its greedy answer, the next one its second choice. Where
            two of them take the same step, their weights add up.
    """
    model = copy.deepcopy(model)
    tokenizer = processor.tokenizer
    with torch.no_grad():
        for layer in model.model.language_model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        embed = model.get_input_embeddings().weight
        states = model.model.language_model.norm(embed)
        head = model.get_output_embeddings().weight.zero_()
        for answer, weight in answers.items():
            said = tokenizer(answer, add_special_tokens=False)["input_ids"]
            path = [tokenizer.convert_tokens_to_ids(ASSISTANT), *said, tokenizer.eos_token_id]
            for last, following in pairwise(path):
                head[following] += 30 * weight * states[last] / states[last].square().sum()
    return model
