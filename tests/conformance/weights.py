"""Features that write an adapter into weights, turn it into another, or change what weights are made of."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from peft import PeftModel, convert_to_lora, get_peft_model, save_as_lora, set_peft_model_state_dict

from peft_space import bake, has_subspace
from peft_space._peft import lora_layers
from peft_space.tuner.projection import RetainedBasis
from peft_space.vlm import base_of
from tests.adapters import leak, train
from tests.conformance.cases import ROUNDING, Case, apart, close


def merge_and_unmerge(case: Case, folder: Path) -> None:
    """Into the weights and out again, with and without the check for finite values."""
    model = case.erased()
    erased = case.logits(model)
    for safe in (False, True):
        model.merge_adapter(safe_merge=safe)
        close(case.logits(model), erased)
        assert case.leak(model) < ROUNDING
        model.unmerge_adapter()
        close(case.logits(model), erased)
    with model.disable_adapter():
        close(case.logits(model), case.base_logits())
    assert has_subspace(model)


def merge_and_unload(case: Case, folder: Path) -> None:
    """The model without adapter, erased for good; a merge of broken values is refused."""
    model = case.erased()
    erased = case.logits(model)
    merged = model.merge_and_unload(safe_merge=True)
    assert not any("lora_" in name for name, _ in merged.named_modules())
    close(case.logits(merged), erased)
    assert case.leak(merged) < ROUNDING
    broken = case.erased()
    _, layer = next(lora_layers(base_of(broken)))
    layer.lora_B["default"].weight.data.fill_(torch.nan)
    with pytest.raises(ValueError, match="NaNs detected"):
        broken.merge_and_unload(safe_merge=True)


def unload(case: Case, folder: Path) -> None:
    """The base comes back as it was."""
    assert case.logits(case.erased().unload()).equal(case.base_logits())


def convert(case: Case, folder: Path) -> None:
    """`convert_to_lora` and `save_as_lora` read the projected factor."""
    model = case.erased()
    config, state = convert_to_lora(model, rank=4, progressbar=False)
    converted = get_peft_model(case.build(), config)
    set_peft_model_state_dict(converted, state)
    save_as_lora(folder / "converted", model, rank=4, progressbar=False)
    for again in (converted, PeftModel.from_pretrained(case.build(), folder / "converted")):
        close(case.logits(again), case.logits(model), 1e-4)
        assert case.leak(again) < ROUNDING


def half_base(case: Case, folder: Path) -> None:
    """On a float16 or bfloat16 base the adapter stays float32, and so does what it keeps."""
    for dtype, rounding in ((torch.float16, 1e-2), (torch.bfloat16, 5e-2)):
        model = case.erased(case.build().to(dtype))
        assert all(layer.lora_A["default"].weight.dtype == torch.float32 for _, layer in lora_layers(base_of(model)))
        assert leak(model, case.subspace()) < ROUNDING
        # a retained input that is rounded to 16 bits leaves the subspace by that much
        assert case.leak(model) < torch.finfo(dtype).eps
        close(case.logits(model), case.logits(case.erased()), rounding)
        apart(case.logits(model), case.base_logits(), 2 * rounding)
        losses = train(model, case.batch_for(model), steps=2)
        assert all(map(torch.isfinite, map(torch.tensor, losses)))
        assert leak(model, case.subspace()) < ROUNDING


def autocast(case: Case, folder: Path) -> None:
    """Trained under bfloat16 autocast, the projection is still computed in float32."""
    model = case.held()
    under_autocast = torch.autocast("cpu", dtype=torch.bfloat16)
    # around each forward pass, as the Trainer has it: autocast keeps its 16-bit copies of weights until it is left
    model.forward = under_autocast(model.forward)
    losses = train(model, case.batch(), steps=20)
    del model.forward
    assert losses[-1] < losses[0]
    subspace = case.subspace()
    with under_autocast:
        weights = {name: layer.lora_A["default"].weight for name, layer in lora_layers(base_of(model))}
    assert all((weight @ subspace.basis(name)).abs().max() < ROUNDING for name, weight in weights.items())
    assert leak(model, subspace) < ROUNDING
    apart(case.logits(model), case.base_logits())


def model_half(case: Case, folder: Path) -> None:
    """`model.half()` rounds the factors but not the basis: what leaks is one rounding of `A`."""
    model = case.erased()
    erased = case.logits(model)
    bases = [module.U.clone() for module in model.modules() if isinstance(module, RetainedBasis)]
    model.half()
    assert all(layer.lora_A["default"].weight.dtype == torch.float16 for _, layer in lora_layers(base_of(model)))
    kept = [module.U for module in model.modules() if isinstance(module, RetainedBasis)]
    assert all(U.dtype == torch.float32 and U.equal(before) for U, before in zip(kept, bases, strict=True))
    assert case.leak(model) < torch.finfo(torch.float16).eps
    close(case.logits(model), erased, 1e-2)
    close(case.logits(model.float()), erased, 1e-2)
    assert leak(model, case.subspace()) < ROUNDING


def deep_copy(case: Case, folder: Path) -> None:
    """A copy shares nothing with its model, and inside it layers share what they shared."""
    model = case.erased()
    twin = copy.deepcopy(model)
    assert case.logits(twin).equal(case.logits(model))
    mine, its = ({id(m) for m in x.modules() if isinstance(m, RetainedBasis)} for x in (model, twin))
    assert len(mine) == len(its) and not mine & its
    train(twin, case.batch(), steps=2)
    bake(twin)
    assert has_subspace(model) and not has_subspace(twin)
    close(case.logits(model), case.logits(case.erased()))
    assert leak(twin, case.subspace()) < ROUNDING


def pickled(case: Case, folder: Path) -> None:
    """torch refuses to pickle a parametrized module; a baked one, of the very same values, goes through."""
    model, erased = case.erased(), case.logits(case.erased())
    with pytest.raises(RuntimeError, match="parametrized modules is only supported through state_dict"):
        pickle.dumps(model)
    bake(model)
    bake(model)
    assert all(p.requires_grad for _, layer in lora_layers(base_of(model)) for p in layer.lora_A.parameters())
    # before the first forward pass: transformers leaves hooks on a LLaVA that can't be pickled
    again = pickle.loads(pickle.dumps(model))
    assert case.logits(model).equal(erased)
    assert case.logits(again).equal(erased)
    assert case.leak(again) < ROUNDING
