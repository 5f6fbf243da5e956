"""Features that put an adapter on disk, into a state dict or into a model, and get it back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import (
    AutoPeftModel,
    PeftModel,
    PeftType,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from peft.utils.hotswap import hotswap_adapter
from safetensors.torch import load_file

from peft_space import SpaceConfig, attach_subspace, has_subspace, load_erasure, merge_and_save, save_erasure_adapter
from peft_space._peft import lora_layers
from peft_space.vlm import base_of
from tests.adapters import shake
from tests.conformance.cases import ROUNDING, Case, close


def safetensors(case: Case, folder: Path) -> None:
    """Plain LoRA on disk, the projection folded into `A`; it comes back in PEFT and as SPACE."""
    model = case.erased()
    model.save_pretrained(folder / "adapter")
    stored = load_file(folder / "adapter" / "adapter_model.safetensors")
    assert len(stored) == 2 * len(case.targets())
    assert all(key.endswith(("lora_A.weight", "lora_B.weight")) for key in stored)
    for again in (
        PeftModel.from_pretrained(case.build(), folder / "adapter"),
        load_erasure(case.build(), folder / "adapter"),
    ):
        close(case.logits(again), case.logits(model))
        assert case.leak(again) < ROUNDING


def sharded_base(case: Case, folder: Path) -> None:
    """The base lies in several files, and so does what comes of merging."""
    base = case.base_on_disk(folder, max_shard_size="30KB")
    assert len(list(base.glob("*.safetensors"))) > 1
    model = case.erased(case.load_base(base))
    save_erasure_adapter(model, folder / "adapter")
    close(case.logits(load_erasure(case.load_base(base), folder / "adapter")), case.logits(model))
    load_erasure(case.load_base(base), folder / "adapter").merge_and_unload().save_pretrained(
        folder / "merged", max_shard_size="30KB"
    )
    merged = case.load_base(folder / "merged")
    close(case.logits(merged), case.logits(model))
    assert case.leak(merged) < ROUNDING


def merge_and_save_from_disk(case: Case, folder: Path) -> None:
    """The package's own way from an adapter and a base on disk to a model without adapter."""
    base = case.base_on_disk(folder)
    model = case.erased(case.load_base(base))
    save_erasure_adapter(model, folder / "adapter")
    merged = case.load_base(merge_and_save(folder / "adapter", base, folder / "merged"))
    close(case.logits(merged), case.logits(model))
    assert case.leak(merged) < ROUNDING


def low_cpu_mem_usage(case: Case, folder: Path) -> None:
    """Loaded through the meta device, as the only adapter and as one more."""
    model = case.erased()
    model.save_pretrained(folder / "adapter")
    again = PeftModel.from_pretrained(case.build(), folder / "adapter", low_cpu_mem_usage=True)
    again.load_adapter(folder / "adapter", "second", low_cpu_mem_usage=True)
    for name in ("default", "second"):
        again.set_adapter(name)
        assert not any(parameter.is_meta for parameter in again.parameters())
        close(case.logits(again), case.logits(model))
        assert case.leak(again) < ROUNDING


def low_cpu_mem_usage_when_created(case: Case, folder: Path) -> None:
    """A factor on the meta device has no values to project."""
    model = get_peft_model(case.build(), SpaceConfig(r=4), low_cpu_mem_usage=True)
    with pytest.raises(ValueError, match="`adapter_name` must name an adapter that has its weights; got 'default'"):
        attach_subspace(model, case.subspace())
    assert not has_subspace(model)


def modules_to_save(case: Case, folder: Path) -> None:
    """A fully trained module is held by nothing."""
    head = "lm_head"
    assert head in dict(case.build().named_modules())
    with pytest.raises(ValueError, match=r"`modules_to_save` must not be set for SPACE: .*; got \['lm_head'\]"):
        SpaceConfig(modules_to_save=[head])


def state_dict(case: Case, folder: Path) -> None:
    """`get_peft_model_state_dict` gives plain LoRA, `set_peft_model_state_dict` takes it, into a held adapter too."""
    model = case.erased()
    state = get_peft_model_state_dict(model)
    assert all(key.endswith(("lora_A.weight", "lora_B.weight")) for key in state)
    held = case.held(init_lora_weights=False)
    assert not set_peft_model_state_dict(held, state).unexpected_keys
    assert has_subspace(held)
    close(case.logits(held), case.logits(model))
    assert case.leak(held) < ROUNDING


def inject_adapter(case: Case, folder: Path) -> None:
    """`inject_adapter_in_model` leaves the model without a wrapper; a subspace holds it all the same."""
    model = inject_adapter_in_model(SpaceConfig(r=4), case.build())
    attach_subspace(model, case.subspace())
    shake(model)
    assert case.leak(model) < ROUNDING
    again = inject_adapter_in_model(SpaceConfig(r=4), case.build())
    assert not set_peft_model_state_dict(again, get_peft_model_state_dict(model)).unexpected_keys
    close(case.logits(again), case.logits(model))


def auto_peft_model(case: Case, folder: Path) -> None:
    """The adapter names its base, and both are loaded by the adapter's name alone."""
    base = case.base_on_disk(folder)
    model = case.erased(case.load_base(base))
    model.save_pretrained(folder / "adapter")
    again = AutoPeftModel.from_pretrained(folder / "adapter")
    assert type(base_of(again)) is type(base_of(model)) and again.peft_type == PeftType.LORA
    close(case.logits(again), case.logits(model))
    assert case.leak(again) < ROUNDING


def transformers_adapters(case: Case, folder: Path) -> None:
    """transformers' own `add_adapter`, `disable_adapters`, `save_pretrained`, `load_adapter` and `delete_adapter`."""
    model = case.build()
    model.add_adapter(SpaceConfig(r=4, concept="a thing"))
    attach_subspace(model, case.subspace())
    shake(model)
    erased = case.logits(model)
    assert case.leak(model) < ROUNDING
    model.disable_adapters()
    close(case.logits(model), case.base_logits())
    model.enable_adapters()
    close(case.logits(model), erased)
    model.save_pretrained(folder / "adapter")
    again = case.build()
    again.load_adapter(str(folder / "adapter"))
    close(case.logits(again), erased)
    close(case.logits(PeftModel.from_pretrained(case.build(), folder / "adapter")), erased)
    model.delete_adapter("default")
    close(case.logits(model), case.base_logits())


def hotswap(case: Case, folder: Path) -> None:
    """One published erasure takes another's place without a new layer."""
    erased = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        model = case.erased(seed=seed)
        model.save_pretrained(folder / str(seed))
        erased.append(case.logits(model))
    swapped = PeftModel.from_pretrained(case.build(), folder / "1")
    close(case.logits(swapped), erased[0])
    hotswap_adapter(swapped, str(folder / "2"), adapter_name="default", torch_device="cpu")
    close(case.logits(swapped), erased[1])
    assert case.leak(swapped) < ROUNDING


def hotswap_into_a_held_adapter(case: Case, folder: Path) -> None:
    """PEFT would write into the projected value, which nobody keeps; it refuses, and nothing is changed."""
    case.erased(seed=2).save_pretrained(folder / "other")
    model = case.erased(seed=1)
    before = case.logits(model)
    with pytest.raises(ValueError, match="Incompatible PEFT types found: SPACE and LORA"):
        hotswap_adapter(model, str(folder / "other"), adapter_name="default", torch_device="cpu")
    close(case.logits(model), before)
    assert case.leak(model) < ROUNDING


def rank_and_alpha_pattern(case: Case, folder: Path) -> None:
    """One kind of module gets another rank and strength."""
    model = case.erased(rank_pattern={case.leaf: 2}, alpha_pattern={case.leaf: 6})
    shapes = {name: len(layer.lora_A["default"].weight) for name, layer in lora_layers(base_of(model))}
    assert {rank for name, rank in shapes.items() if name.endswith(case.leaf)} == {2}
    assert {rank for name, rank in shapes.items() if not name.endswith(case.leaf)} == {4}
    scalings = {layer.scaling["default"] for name, layer in lora_layers(base_of(model)) if name.endswith(case.leaf)}
    assert scalings == {6 / 2}
    _comes_back(case, folder, model)


def rslora(case: Case, folder: Path) -> None:
    """The strength is `alpha / sqrt(r)`."""
    model = case.erased(use_rslora=True, lora_alpha=6)
    assert {layer.scaling["default"] for _, layer in lora_layers(base_of(model))} == {6 / 4**0.5}
    _comes_back(case, folder, model)


def layers_to_transform(case: Case, folder: Path) -> None:
    """Only the second layer is adapted."""
    model = case.erased(layers_to_transform=[1])
    names = [name for name, _ in lora_layers(base_of(model))]
    assert names == [name for name in case.targets() if ".1." in name]
    _comes_back(case, folder, model)


def regular_expression_targets(case: Case, folder: Path) -> None:
    """A pattern picks modules of one layer, and they are the same after loading."""
    model = case.erased(target_modules=rf"{case.layers}\.1\..*{case.leaf}")
    names = [name for name, _ in lora_layers(base_of(model))]
    assert names == [name for name in case.targets() if ".1." in name and name.endswith(case.leaf)]
    again = _comes_back(case, folder, model)
    assert [name for name, _ in lora_layers(base_of(again))] == names


def _comes_back(case: Case, folder: Path, model: PeftModel) -> PeftModel:
    """Asserts that the adapter holds, and that it is the same when loaded as plain LoRA."""
    assert case.leak(model) < ROUNDING
    model.save_pretrained(folder / "adapter")
    again = PeftModel.from_pretrained(case.build(), folder / "adapter")
    close(case.logits(again), case.logits(model))
    assert case.leak(again) < ROUNDING
    return again
