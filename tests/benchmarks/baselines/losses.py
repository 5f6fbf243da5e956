"""The terms that the baselines' losses are made of, as functions of logits and states alone."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def divergence(logits: Tensor, reference: Tensor) -> Tensor:
    """Mean KL(reference || model) over tokens, in nats.

    Args:
        logits: the model's, `(tokens, vocabulary)`.
        reference: those of the base model.
    """
    now, before = F.log_softmax(logits, dim=-1), F.log_softmax(reference, dim=-1)
    return F.kl_div(now, before, reduction="batchmean", log_target=True)


def npo(log_p: Tensor, reference: Tensor, beta: float) -> Tensor:
    """Negative preference optimisation: -(2 / beta) mean log sigmoid(-beta log(p / p_ref)).

    Source: Zhang et al. 2024, arXiv 2404.05868, equation 3. Its gradient is that of gradient ascent, each answer
    weighted by 2 p^beta / (p^beta + p_ref^beta).

    Args:
        log_p: of whole answers, `(answers,)`.
        reference: the base model's, `(answers,)`.
        beta: inverse temperature, above 0.
    """
    return -2 / beta * F.logsigmoid(-beta * (log_p - reference)).mean()


def simnpo(log_p: Tensor, lengths: Tensor, beta: float, gamma: float) -> Tensor:
    """Simple NPO: -(2 / beta) mean log sigmoid(-(beta / |y|) log p - gamma), without a reference model.

    Source: Fan et al. 2024, arXiv 2410.07163.

    Args:
        log_p: of whole answers, `(answers,)`.
        lengths: tokens of each, `(answers,)`.
        beta: inverse temperature, above 0.
        gamma: margin.
    """
    return -2 / beta * F.logsigmoid(-beta * log_p / lengths - gamma).mean()


def misdirection(states: Tensor, reference: Tensor, direction: Tensor, coefficient: float) -> Tensor:
    """Mean squared distance of states from a random direction, at `coefficient` times the base model's norm.

    Source: RMU, Li et al. 2024, arXiv 2403.03218; that the length follows the base model's own is adaptive RMU,
    Huu-Tien et al. 2024, arXiv 2408.06223.

    Args:
        states: of one layer, `(tokens, d)`.
        reference: the base model's.
        direction: unit norm, `(d,)`.
    """
    return F.mse_loss(states, coefficient * reference.norm(dim=-1, keepdim=True) * direction)


def dual_masked_divergence(logits: Tensor, reference: Tensor, hidden: Tensor, unsaid: Tensor) -> Tensor:
    """Mean KL(reference || model) without what has to change.

    Source: SIU, Li et al. 2024, arXiv 2405.12523: tokens that contradict what the model knew are masked, and of the
    vocabulary the concept's name.

    Args:
        logits: the model's, `(tokens, vocabulary)`.
        reference: the base model's.
        hidden: masked tokens, `(tokens,)` bool.
        unsaid: ids that are taken out of both distributions before they are normalised.
    """
    kept = torch.ones(logits.shape[1], dtype=torch.bool)
    kept[unsaid] = False
    return divergence(logits[~hidden][:, kept], reference[~hidden][:, kept])
