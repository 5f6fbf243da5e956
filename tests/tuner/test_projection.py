import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model

from peft_space import SpaceConfig, attach_subspace, bake, has_subspace
from peft_space._peft import lora_layers
from peft_space.tuner.projection import NullSpaceProjection, RetainedBasis
from tests.adapters import RandomSubspace, leak, shake, space, train
from tests.tiny import image_batch, logits, text_batch, tiny_llama, tiny_llava


def factors(model, adapter_name="default"):
    return {name: layer.lora_A[adapter_name] for name, layer in lora_layers(model.get_base_model(), adapter_name)}


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 24), st.data(), st.integers(0, 2**16))
def test_projection_is_idempotent_and_kills_the_subspace(d, data, seed):
    k = data.draw(st.integers(0, d))
    torch.manual_seed(seed)
    U, _ = torch.linalg.qr(torch.randn(d, d))
    project = NullSpaceProjection(RetainedBasis(U[:, :k]))
    A = torch.randn(3, d)
    projected = project(A)
    assert (projected @ U[:, :k]).abs().max().item() < 1e-5 if k else projected.equal(A)
    assert project(projected).allclose(projected, atol=1e-5)
    assert (projected @ U[:, k:]).allclose(A @ U[:, k:], atol=1e-5)


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_the_constraint_is_exact_under_adamw(weight_decay):
    model = tiny_llava()
    peft_model = space(model)
    subspace = RandomSubspace(peft_model)
    batch = image_batch()
    before = logits(peft_model, batch)
    kept = {name: layer(subspace.basis(name).T) for name, layer in lora_layers(model, "default")}
    losses = train(peft_model, batch, steps=50, weight_decay=weight_decay)
    assert losses[-1] < losses[0]
    assert not logits(peft_model, batch).allclose(before, atol=1e-2)
    for name, layer in lora_layers(model, "default"):
        assert layer(subspace.basis(name).T).allclose(kept[name], atol=1e-6), name
    assert leak(peft_model, subspace) < 1e-6


def test_without_it_the_outputs_move():
    peft_model = space(tiny_llava(), subspace=False)
    subspace = RandomSubspace(peft_model)
    train(peft_model, image_batch(), steps=50)
    assert leak(peft_model, subspace) > 0.1


def test_layers_with_one_input_share_one_module():
    peft_model = space(tiny_llava())
    held = {name: factor.parametrizations["weight"][0].retained for name, factor in factors(peft_model).items()}
    layer = "model.language_model.layers.0."
    attention = [held[f"{layer}self_attn.{x}"] for x in ("q_proj", "k_proj", "v_proj")]
    assert attention[0] is attention[1] is attention[2]
    assert held[f"{layer}mlp.gate_proj"] is held[f"{layer}mlp.up_proj"] is not held[f"{layer}mlp.down_proj"]
    assert len({id(basis) for basis in held.values()}) == 2 * 4
    assert not any(key.endswith(".U") for key in peft_model.state_dict())


def test_optimisers_keep_their_parameters():
    peft_model = space(tiny_llama(), subspace=False)
    before = {name: factor.weight for name, factor in factors(peft_model).items()}
    attach_subspace(peft_model, RandomSubspace(peft_model))
    for name, factor in factors(peft_model).items():
        assert factor.parametrizations["weight"].original is before[name]
    bake(peft_model)
    assert all(factor.weight is before[name] for name, factor in factors(peft_model).items())


def test_baking_changes_nothing_and_makes_it_plain():
    peft_model = shake(space(tiny_llava()))
    batch = image_batch()
    before = logits(peft_model, batch)
    assert has_subspace(peft_model)
    bake(peft_model)
    assert not has_subspace(peft_model)
    assert (logits(peft_model, batch) - before).abs().max() == 0.0
    for factor in factors(peft_model).values():
        assert pickle.loads(pickle.dumps(factor)).weight.equal(factor.weight)
    assert all(p.requires_grad for f in factors(peft_model).values() for p in f.parameters())
    bake(peft_model)


def test_a_copy_shares_inside_and_not_outside():
    peft_model = shake(space(tiny_llama()))
    twin = copy.deepcopy(peft_model)
    bases = [f.parametrizations["weight"][0].retained for f in factors(twin).values()]
    assert len({id(basis) for basis in bases}) == 2 * 4
    bake(twin)
    assert has_subspace(peft_model)


def test_half_precision_can_not_round_the_basis():
    peft_model = space(tiny_llama())
    U = next(iter(factors(peft_model).values())).parametrizations["weight"][0].retained.U.clone()
    peft_model.half()
    kept = next(iter(factors(peft_model).values())).parametrizations["weight"][0].retained.U
    assert kept.dtype == torch.float32 and kept.equal(U)
    assert next(iter(factors(peft_model).values())).weight.dtype == torch.float16
    assert not peft_model.float().state_dict()["base_model.model.lm_head.weight"].isnan().any()


def test_autocast_can_not_round_the_projection():
    peft_model = space(tiny_llama())
    subspace = RandomSubspace(peft_model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        weights = {name: factor.weight for name, factor in factors(peft_model).items()}
    for name, weight in weights.items():
        assert (weight @ subspace.basis(name)).abs().max() < 1e-6
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert train(peft_model, text_batch(), steps=2)[-1] > 0
    assert leak(peft_model, subspace) < 1e-5


def test_gradient_checkpointing_trains_the_same():
    losses = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        peft_model = space(tiny_llama())
        if checkpointing:
            peft_model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        losses.append(train(peft_model, text_batch(), steps=3))
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_the_adapter_must_be_there_free_and_ours():
    peft_model = space(tiny_llama())
    subspace = RandomSubspace(peft_model)
    with pytest.raises(ValueError, match="must be one of"):
        attach_subspace(peft_model, subspace, "nobody")
    with pytest.raises(ValueError, match="must not be held"):
        attach_subspace(peft_model, subspace)
    peft_model.merge_adapter()
    bake(peft_model)
    with pytest.raises(ValueError, match="must not be merged"):
        attach_subspace(peft_model, subspace)
    lora = get_peft_model(tiny_llama(), LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(ValueError, match="must name a SPACE adapter"):
        attach_subspace(lora, subspace)


def test_a_bad_basis_leaves_the_model_as_it_was():
    peft_model = space(tiny_llama(), subspace=False)
    last = "model.layers.1.mlp.down_proj"
    for wrong, error, words in [
        (torch.ones(48, 2), ValueError, "orthonormal"),
        (torch.full((48, 1), torch.nan), ValueError, "orthonormal"),
        (torch.eye(32)[:, :2], ValueError, "must have 48 rows"),
        (torch.ones(48), ValueError, "must be a matrix"),
        (None, KeyError, last),
    ]:
        subspace = RandomSubspace(peft_model)
        if wrong is None:
            del subspace.bases[last]
        else:
            subspace.bases[last] = wrong
        with pytest.raises(error, match=words):
            attach_subspace(peft_model, subspace)
        assert not has_subspace(peft_model)


def test_only_linear_layers_can_be_held():
    peft_model = get_peft_model(tiny_llama(), SpaceConfig(target_modules=["embed_tokens"]))
    with pytest.raises(ValueError, match="must be linear layers"):
        attach_subspace(peft_model, RandomSubspace(space(tiny_llama())))
