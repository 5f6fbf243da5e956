import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model

from peft_space import SpaceConfig, attach_subspace, bake, has_subspace
from peft_space._peft import lora_layers
from peft_space.tuner.projection import NullSpaceProjection, RetainedBasis
from tests.adapters import RandomSubspace, leak, space, train
from tests.tiny import image_batch, tiny_llama, tiny_llava


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


def test_bases_that_stay_on_the_cpu_hold_as_well():
    peft_model, elsewhere = (space(tiny_llava(), subspace=False) for _ in range(2))
    attach_subspace(peft_model, RandomSubspace(peft_model), on_cpu=True)
    attach_subspace(elsewhere, RandomSubspace(elsewhere))
    for one, other in zip(factors(peft_model).values(), factors(elsewhere).values(), strict=True):
        assert one.weight.equal(other.weight)
    peft_model.to("meta"), elsewhere.to("meta")
    for model, device in ((peft_model, "cpu"), (elsewhere, "meta")):
        bases = {f.parametrizations["weight"][0].retained.U.device.type for f in factors(model).values()}
        assert bases == {device}


def test_optimisers_keep_their_parameters():
    peft_model = space(tiny_llama(), subspace=False)
    before = {name: factor.weight for name, factor in factors(peft_model).items()}
    attach_subspace(peft_model, RandomSubspace(peft_model))
    for name, factor in factors(peft_model).items():
        assert factor.parametrizations["weight"].original is before[name]
    bake(peft_model)
    assert all(factor.weight is before[name] for name, factor in factors(peft_model).items())


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
