"""Features of several adapters in one model, and of adapters that come, go and mix."""

from __future__ import annotations

from pathlib import Path

import peft
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

from peft_space import SpaceConfig, attach_subspace, bake, has_subspace, load_erasure, save_erasure_adapter
from peft_space._peft import active_adapters, lora_layers
from peft_space.tuner.projection import RetainedBasis
from peft_space.vlm import base_of
from tests.adapters import shake, train
from tests.conformance.cases import ROUNDING, Case, apart, close, second_adapter


def set_adapter(case: Case, folder: Path) -> None:
    """Two adapters by turns and at once; together they are what the sum of their changes makes of the weights."""
    model = second_adapter(case, case.erased())
    alone = {}
    for name in ("default", "second"):
        model.set_adapter(name)
        alone[name] = case.logits(model)
        assert case.leak(model) < ROUNDING
    apart(alone["default"], alone["second"])
    model.base_model.set_adapter(["default", "second"])
    both = case.logits(model)
    apart(both, alone["default"])
    apart(both, alone["second"])
    assert case.leak(model) < ROUNDING
    model.save_pretrained(folder / "adapters")
    again = PeftModel.from_pretrained(case.build(), folder / "adapters")
    again.load_adapter(folder / "adapters" / "second", "second")
    again.base_model.set_adapter(["default", "second"])
    close(case.logits(again), both)
    merged = model.merge_and_unload(adapter_names=["default", "second"])
    close(case.logits(merged), both)
    assert case.leak(merged) < ROUNDING


def disable_adapter(case: Case, folder: Path) -> None:
    """Switched off, the model is its base, bit for bit; afterwards it is erased again."""
    model = case.erased()
    erased = case.logits(model)
    apart(erased, case.base_logits())
    with model.disable_adapter():
        assert case.logits(model).equal(case.base_logits())
    assert case.logits(model).equal(erased)
    assert has_subspace(model)


def delete_adapter(case: Case, folder: Path) -> None:
    """What one adapter leaves behind is the other, and no basis."""
    model = case.erased()
    erased, bases = case.logits(model), sum(isinstance(m, RetainedBasis) for m in model.modules())
    second_adapter(case, model)
    model.set_adapter("second")
    model.delete_adapter("second")
    assert sum(isinstance(m, RetainedBasis) for m in model.modules()) == bases
    model.set_adapter("default")
    close(case.logits(model), erased)
    assert case.leak(model) < ROUNDING


def mixed_batches(case: Case, folder: Path) -> None:
    """Each row of a batch goes through an adapter of its own, or through none."""
    model = second_adapter(case, case.erased())
    alone = {"__base__": case.base_logits()}
    for name in ("default", "second"):
        model.set_adapter(name)
        alone[name] = case.logits(model)
    model.eval()
    for names in (["default", "__base__"], ["second", "default"]):
        with torch.no_grad():
            mixed = model(**case.batch(), adapter_names=names).logits
        for row, name in enumerate(names):
            close(mixed[row], alone[name][row])


def add_weighted_adapter_linear(case: Case, folder: Path) -> None:
    """The factors are averaged apart, so what both keep stays kept."""
    model, expected = _weighted(case, "linear")
    for name, layer in lora_layers(base_of(model), "both"):
        A, B = (
            sum(w**0.5 * getattr(layer, f"lora_{f}")[k].weight for k, w in (("default", 0.7), ("second", 0.4)))
            for f in "AB"
        )
        scaling = layer.scaling["default"]
        torch.testing.assert_close(layer.lora_B["both"].weight @ layer.lora_A["both"].weight, B @ A * scaling)
        assert expected[name].shape == layer.get_delta_weight("both").shape


def add_weighted_adapter_cat(case: Case, folder: Path) -> None:
    """The exact sum, at the sum of the ranks."""
    model, expected = _weighted(case, "cat")
    for name, layer in lora_layers(base_of(model), "both"):
        assert layer.r["both"] == 8
        torch.testing.assert_close(layer.get_delta_weight("both"), expected[name], atol=1e-5, rtol=1e-5)


def add_weighted_adapter_svd(case: Case, folder: Path) -> None:
    """The sum again, refactored: at the sum of the ranks nothing is lost."""
    model, expected = _weighted(case, "svd", svd_rank=8)
    for name, layer in lora_layers(base_of(model), "both"):
        torch.testing.assert_close(layer.get_delta_weight("both"), expected[name], atol=1e-4, rtol=1e-4)


def _weighted(case, combination, **kwargs):
    """A model with two adapters and their combination "both", which is active; and the weighted sums of the two."""
    model = second_adapter(case, case.erased())
    model.add_weighted_adapter(["default", "second"], [0.7, 0.4], "both", combination_type=combination, **kwargs)
    model.set_adapter("both")
    assert case.leak(model) < ROUNDING
    assert not has_subspace(model, "both") and model.peft_config["both"].concept == "a thing"
    sums = {
        name: 0.7 * layer.get_delta_weight("default") + 0.4 * layer.get_delta_weight("second")
        for name, layer in lora_layers(base_of(model), "both")
    }
    return model, sums


def add_weighted_adapter_ties_and_dare(case: Case, folder: Path) -> None:
    """Pruning single entries of a projected factor takes it out of the null space; each way of it is refused."""
    model = second_adapter(case, case.erased())
    for pruning in ("ties", "dare_linear", "dare_ties", "magnitude_prune"):
        for combination in (pruning, f"{pruning}_svd"):
            with pytest.raises(ValueError, match=f"`combination_type` must be one of .* got '{combination}'"):
                model.add_weighted_adapter(
                    ["default", "second"], [0.7, 0.4], "both", combination_type=combination, density=0.5
                )
    assert "both" not in model.peft_config
    assert case.leak(model) < ROUNDING


def mixed_model(case: Case, folder: Path) -> None:
    """`PeftMixedModel`: another method beside it. Each alone does what it does alone; merged, both are there."""
    model = get_peft_model(case.build(), SpaceConfig(r=4, target_modules=case.targets()), mixed=True)
    attach_subspace(model, case.subspace())
    shake(model)
    erased = case.logits(model)
    assert case.leak(model) < ROUNDING
    loha = peft.LoHaConfig(r=2, target_modules=[case.leaf], init_weights=False)
    if case.leaf == "c_attn":  # LoHa knows no `Conv1D`
        loha = LoraConfig(r=2, target_modules=[case.leaf], init_lora_weights=False, fan_in_fan_out=True)
    model.add_adapter("task", loha)
    model.set_adapter("default")
    close(case.logits(model), erased)
    assert case.leak(model) < ROUNDING
    model.set_adapter(["default", "task"])
    both = case.logits(model)
    apart(both, erased)
    close(case.logits(model.merge_and_unload()), both)


def baking_one_of_two(case: Case, folder: Path) -> None:
    """Each adapter is held, and let go, on its own."""
    model = second_adapter(case, case.erased())
    erased = case.logits(model)
    bake(model, "second")
    assert has_subspace(model) and not has_subspace(model, "second")
    close(case.logits(model), erased)
    model.set_adapter("second")
    assert case.leak(model) < ROUNDING


def task_lora_on_an_erased_model(case: Case, folder: Path) -> None:
    """An ordinary LoRA is trained while the erasure stays on: the erasure is not touched, and can be had alone."""
    save_erasure_adapter(case.erased(), folder / "erasure")
    model = load_erasure(get_peft_model(case.build(), _task(case), adapter_name="task"), folder / "erasure", "erasure")
    model.base_model.set_adapter(["task", "erasure"])
    model.set_requires_grad("erasure", False)
    erased = case.logits(PeftModel.from_pretrained(case.build(), folder / "erasure"))
    close(case.logits(model), erased)
    train(model, case.batch(), steps=3)
    both = case.logits(model)
    apart(both, erased)
    model.set_adapter("erasure", inference_mode=True)
    close(case.logits(model), erased)
    assert case.leak(model) < ROUNDING
    model.base_model.set_adapter(["task", "erasure"])
    close(case.logits(model.merge_and_unload(adapter_names=["task", "erasure"])), both)


def task_lora_beside_a_held_erasure(case: Case, folder: Path) -> None:
    """In a model of SPACE's own, a plain LoRA is refused; a second adapter without subspace does its work."""
    model = case.erased()
    erased = case.logits(model)
    with pytest.raises(ValueError, match="Cannot combine adapters with different peft types"):
        model.add_adapter("task", _task(case))
    model.add_adapter("task", SpaceConfig(r=2, target_modules=[case.leaf]))
    model.base_model.set_adapter(["default", "task"])
    train(model, case.batch(), steps=3)
    apart(case.logits(model), erased)
    model.set_adapter("default")
    assert case.leak(model) < ROUNDING
    assert not has_subspace(model, "task")


def erasure_on_a_task_lora(case: Case, folder: Path) -> None:
    """The LoRA that a model carries stays, active and frozen, and retained inputs keep the outputs it gives them."""
    task = get_peft_model(case.build(), _task(case), adapter_name="task")
    train(task, case.batch(), steps=3)
    carried = case.logits(task)
    before = {name: parameter.clone() for name, parameter in task.named_parameters() if "task" in name}
    held = get_peft_model(task.get_base_model(), SpaceConfig(r=4, concept="a thing"))
    attach_subspace(held, case.subspace())
    assert active_adapters(held) == ["task", "default"]
    close(case.logits(held), carried)
    train(held, case.batch(1, seed=3), steps=5)
    apart(case.logits(held), carried)
    assert all(parameter.equal(before[name]) for name, parameter in held.named_parameters() if name in before)
    only_task = get_peft_model(case.build(), _task(case), adapter_name="task")
    set_peft_model_state_dict(only_task, get_peft_model_state_dict(held, adapter_name="task"), "task")
    close(case.logits(only_task), carried)
    assert case.leak(held, base=base_of(only_task)) < ROUNDING
    save_erasure_adapter(held, folder / "erasure")
    both = load_erasure(only_task, folder / "erasure", "erasure")
    both.base_model.set_adapter(["task", "erasure"], inference_mode=True)
    close(case.logits(both), case.logits(held))


def erasure_around_a_peft_model(case: Case, folder: Path) -> None:
    """An adapter around a `PeftModel` would be saved under names that nothing finds again."""
    task = get_peft_model(case.build(), _task(case), adapter_name="task")
    with (
        pytest.raises(ValueError, match=r"`model` must be a transformers model; got a PeftModel.*get_base_model\(\)"),
        pytest.warns(UserWarning),
    ):
        get_peft_model(task, SpaceConfig())
    assert active_adapters(task) == ["task"]


def _task(case):
    return LoraConfig(r=2, target_modules=[case.leaf], fan_in_fan_out=case.leaf == "c_attn")
