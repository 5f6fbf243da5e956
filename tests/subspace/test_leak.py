import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel

from peft_space.subspace import fit_retained_subspace, leak, leak_between
from peft_space.vlm import PADDING, token_kinds

TARGETS = r"model\.language_model\.layers\.\d\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"


def leak_ref(model, name, old, new, batches):
    """`||(new - old) x|| / ||old x||` of one layer, the mean over the kinds of token, from all inputs at once."""
    rows, kinds = [], []
    hook = model.get_submodule(name).register_forward_pre_hook(lambda module, args: rows.append(args[0].flatten(0, 1)))
    with torch.no_grad():
        for batch in batches:
            model(**batch)
            kinds.append(token_kinds(model, batch).flatten())
    hook.remove()
    x, kinds = torch.cat(rows), torch.cat(kinds)
    groups = [x[kinds == kind] for kind in kinds.unique() if kind != PADDING]
    return sum(float((g @ (new - old).T).norm() / (g @ old.T).norm()) for g in groups) / len(groups)


@pytest.fixture
def adapted(llava):
    base = copy.deepcopy(llava).eval()
    config = LoraConfig(r=2, lora_alpha=6, lora_dropout=0.5, target_modules=TARGETS, init_lora_weights=False)
    return base, get_peft_model(llava, config)


def test_leak_equals_the_explicit_computation(adapted, batches):
    base, peft_model = adapted
    report = leak(peft_model, batches)
    assert len(report.per_module) == 14
    assert set(report.per_kind) == {"image", "text", "text_only"}
    merged = copy.deepcopy(peft_model).merge_and_unload()
    for name in report.per_module:
        weights = [model.get_submodule(name).weight.data for model in (base, merged)]
        assert report.per_module[name] == pytest.approx(leak_ref(base, name, *weights, batches), rel=1e-3)
    assert report.max == max(report.per_module.values())
    assert report.mean == pytest.approx(sum(report.per_module.values()) / 14)
    assert peft_model.training
    between = leak_between(base, merged, batches)
    assert between.per_module == pytest.approx(report.per_module, rel=1e-3)


def test_no_leak_when_a_lies_in_the_null_space(adapted, batches, make_batch):
    _, peft_model = adapted
    subspace = fit_retained_subspace(peft_model, batches, energy=0.9)
    before = leak(peft_model, [make_batch(7), make_batch(8, image=False)])
    for name in subspace.module_names:
        a, basis = peft_model.get_base_model().get_submodule(name).lora_A["default"].weight, subspace.basis(name)
        a.data -= a.data @ basis @ basis.T
    after = leak(peft_model, [make_batch(7), make_batch(8, image=False)])
    assert after.mean < before.mean
    for name in subspace.module_names:
        basis = subspace.basis(name)
        layer = peft_model.get_base_model().get_submodule(name)
        layer.register_forward_pre_hook(lambda module, args, basis=basis: (args[0] @ basis @ basis.T, *args[1:]))
    assert leak(peft_model, batches).max < 1e-5


def test_bias_of_the_base_is_not_part_of_its_output(make_batch):
    model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=16, n_layer=1, n_head=2, n_positions=32)).eval()
    model.transformer.h[0].attn.c_attn.bias.data.fill_(5)
    base = copy.deepcopy(model)
    config = LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True, init_lora_weights=False)
    peft_model = get_peft_model(model, config)
    batches = [make_batch(image=False)]
    report = leak(peft_model, batches)
    merged = peft_model.merge_and_unload()
    name = "transformer.h.0.attn.c_attn"
    weights = [one.get_submodule(name).weight.data.T for one in (base, merged)]
    assert report.per_module == {name: pytest.approx(leak_ref(base, name, *weights, batches), rel=1e-3)}
    assert leak_between(base, merged, batches).per_module == pytest.approx(report.per_module, rel=1e-3)


def test_one_adapter_or_the_sum_of_the_active_ones(adapted, batches):
    _, peft_model = adapted
    peft_model.add_adapter("second", LoraConfig(r=2, target_modules=TARGETS, init_lora_weights=False))
    first, second = leak(peft_model, batches, "default"), leak(peft_model, batches, "second")
    assert leak(peft_model, batches).mean == first.mean != second.mean
    peft_model.base_model.set_adapter(["default", "second"])
    assert leak(peft_model, batches).mean not in (first.mean, second.mean)
    with pytest.raises(ValueError, match="`adapter_name` must be a LoRA adapter"):
        leak(peft_model, batches, "third")


def test_equal_models_do_not_leak(llava, batches):
    report = leak_between(llava, copy.deepcopy(llava), batches)
    assert (report.mean, report.max, report.per_module) == (0, 0, {})


def test_models_that_do_not_compare(adapted, batches, make_batch):
    base, peft_model = adapted
    other = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=16, n_layer=1, n_head=2))
    with pytest.raises(ValueError, match="must have the linear layers"):
        leak_between(base, other, batches)
    peft_model.merge_adapter()
    with pytest.raises(ValueError, match="unmerged"):
        leak(peft_model, batches)


def test_dora_is_refused(llava, batches):
    peft_model = get_peft_model(llava, LoraConfig(r=2, target_modules=TARGETS, use_dora=True))
    with pytest.raises(ValueError, match="DoRA"):
        leak(peft_model, batches)
