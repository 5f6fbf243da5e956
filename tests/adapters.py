"""What the tests of tuner and adapter share: random subspaces, shaken adapters, a few steps of training."""

from __future__ import annotations

import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

from peft_space import SpaceConfig, attach_subspace, targeted_modules
from peft_space._peft import lora_layers
from peft_space.vlm import base_of

READS_ONE_INPUT = ("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")


class RandomSubspace:
    """A random basis of `k` directions for every distinct input of a Llama-like decoder."""

    def __init__(self, model: nn.Module, k: int = 10, adapter_name: str = "default") -> None:
        generator = torch.Generator().manual_seed(1)
        self.bases: dict[str, Tensor] = {}
        shared: dict[str, Tensor] = {}
        for name, layer in lora_layers(base_of(model), adapter_name):
            parent, leaf = name.rsplit(".", 1)
            group = next((names[0] for names in READS_ONE_INPUT if leaf in names), leaf)
            if f"{parent}.{group}" not in shared:
                Q, _ = torch.linalg.qr(torch.randn(layer.in_features, k, generator=generator))
                shared[f"{parent}.{group}"] = Q.contiguous()
            self.bases[name] = shared[f"{parent}.{group}"]

    @property
    def module_names(self) -> tuple[str, ...]:
        return tuple(self.bases)

    def basis(self, module_name: str) -> Tensor:
        return self.bases[module_name]


def space(model: nn.Module, subspace: bool = True, **config) -> PeftModel:
    """A SPACE adapter on a model, held by a random subspace."""
    peft_model = get_peft_model(model, SpaceConfig(**({"r": 4, "concept": "a thing"} | config)))
    if subspace:
        attach_subspace(peft_model, RandomSubspace(peft_model))
    return peft_model


def shake(model: nn.Module, adapter_name: str = "default", seed: int = 0) -> nn.Module:
    """Give `B` values, so that the adapter does something."""
    generator = torch.Generator().manual_seed(seed)
    for _, layer in lora_layers(base_of(model), adapter_name):
        weight = layer.lora_B[adapter_name].weight
        weight.data = torch.randn(weight.shape, generator=generator).to(weight) * 0.3
    return model


def leak(model: nn.Module, subspace: RandomSubspace, adapter_name: str = "default") -> float:
    """Largest `|dW U|` over the targeted modules, relative to the largest `|dW|`."""
    layers = dict(lora_layers(base_of(model), adapter_name))
    worst = 0.0
    for name in targeted_modules(model, adapter_name):
        delta = layers[name].get_delta_weight(adapter_name).detach().float()
        delta = delta.T if layers[name].fan_in_fan_out else delta
        worst = max(worst, float((delta @ subspace.basis(name)).abs().max() / delta.abs().max()))
    return worst


def train(model: nn.Module, batch: dict[str, Tensor], steps: int, lr: float = 1e-2, **optimiser) -> list[float]:
    """Train on a batch with AdamW; returns the losses."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    adam = torch.optim.AdamW(parameters, lr=lr, **optimiser)
    model.train()
    losses = []
    for _ in range(steps):
        loss = model(**batch, labels=batch["input_ids"]).loss
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(loss.item())
    model.eval()
    return losses
