import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel

from peft_space.subspace import fit_retained_subspace
from peft_space.vlm import IMAGE, PADDING, TEXT, TEXT_ONLY, token_kinds

BLOCK = "model.language_model.layers.0"
ATTENTION = [f"{BLOCK}.self_attn.{name}_proj" for name in "qkv"]
TOWER = "model.vision_tower.encoder.layers.0.self_attn.q_proj"


def inputs_ref(model, name, batches):
    """All tokens that one layer reads, `(n, d)`, with their kinds `(n,)`."""
    rows, kinds = [], []
    hook = model.get_submodule(name).register_forward_pre_hook(lambda module, args: rows.append(args[0].flatten(0, 1)))
    model.eval()
    with torch.no_grad():
        for batch in batches:
            model(**batch)
            kinds.append(token_kinds(model, batch).flatten())
    hook.remove()
    return torch.cat(rows), torch.cat(kinds)


def shares(basis, x):
    return float((x @ basis).square().sum() / x.square().sum())


@pytest.mark.parametrize("method", ["dense", "sketch"])
def test_basis_is_the_leading_subspace_of_balanced_moments(llava, batches, method):
    name = f"{BLOCK}.mlp.down_proj"
    subspace = fit_retained_subspace(llava, batches, [name], energy=0.9, method=method)
    x, kinds = inputs_ref(llava, name, batches)
    groups = [x[kinds == kind] for kind in (IMAGE, TEXT, TEXT_ONLY)]
    moment = sum(group.T @ group / group.square().sum() for group in groups) / 3
    values, vectors = torch.linalg.eigh(moment)
    rank = subspace.basis(name).shape[1]
    expected = vectors.flip(1)[:, :rank]
    assert rank == int((values.flip(0).cumsum(0) < 0.9).sum()) + 1
    torch.testing.assert_close(subspace.basis(name) @ subspace.basis(name).T, expected @ expected.T, rtol=0, atol=1e-3)
    record = subspace.records[name]
    assert record.counts == {
        kind: len(group) for kind, group in zip(("image", "text", "text_only"), groups, strict=True)
    }
    assert record.energy == pytest.approx(float(values.flip(0).cumsum(0)[rank - 1]), abs=1e-4)
    assert record.method == method


def test_default_targets_are_the_language_blocks_and_inputs_are_shared(llava, batches):
    subspace = fit_retained_subspace(llava, batches)
    assert len(subspace.module_names) == 14
    assert all(name.startswith("model.language_model.layers.") for name in subspace.module_names)
    assert len(subspace.bases) == 8
    assert len({id(subspace.basis(name)) for name in ATTENTION}) == 1
    assert subspace.basis(f"{BLOCK}.mlp.gate_proj") is subspace.basis(f"{BLOCK}.mlp.up_proj")
    assert subspace.basis(f"{BLOCK}.self_attn.o_proj") is not subspace.basis(ATTENTION[0])
    assert {record.method for record in subspace.records.values()} == {"dense"}


def test_split_and_order_of_batches_do_not_matter(llava, make_batch):
    batch = make_batch(size=4)
    halves = [{key: value[rows] for key, value in batch.items()} for rows in (slice(2, 4), slice(0, 2))]
    whole, split = (fit_retained_subspace(llava, part, ATTENTION, energy=0.9) for part in ([batch], halves))
    torch.testing.assert_close(projector(whole), projector(split), rtol=0, atol=1e-3)


def projector(subspace):
    basis = subspace.basis(ATTENTION[0])
    return basis @ basis.T


def test_contents_of_padding_do_not_matter(llava, make_batch):
    one, other = make_batch(), make_batch()
    other["input_ids"][other["attention_mask"] == 0] = 11
    results = [fit_retained_subspace(llava, [batch], energy=0.9) for batch in (one, other)]
    for name in results[0].module_names:
        assert torch.equal(results[0].basis(name), results[1].basis(name))
    kinds = token_kinds(llava, one)
    assert sum(results[0].records[ATTENTION[0]].counts.values()) == int((kinds != PADDING).sum())


def test_few_text_tokens_are_kept_beside_many_image_tokens(llava, make_batch):
    # 51 images of 16 tokens against 17 tokens of text.
    batches = [make_batch(seed, size=17, length=17, padding=False) for seed in range(3)]
    for batch in batches:
        batch["attention_mask"][:, 0] = 0
    batches.append(make_batch(9, size=1, length=17, image=False, padding=False))
    names = [ATTENTION[0]]
    balanced, pooled = (
        fit_retained_subspace(llava, batches, names, max_rank=12, groups=groups) for groups in ("balanced", "pooled")
    )
    x, kinds = inputs_ref(llava, names[0], batches)
    text, image = x[kinds == TEXT_ONLY], x[kinds == IMAGE]
    assert len(image) > 45 * len(text)
    assert shares(balanced.basis(names[0]), text) > shares(pooled.basis(names[0]), text) + 0.1
    full = fit_retained_subspace(llava, batches, names, energy=0.99)
    assert shares(full.basis(names[0]), text) > 0.97


def test_sketch_keeps_nearly_the_energy_of_dense(llava, batches):
    dense = fit_retained_subspace(llava, batches, energy=0.9, method="dense")
    sketch = fit_retained_subspace(llava, batches, energy=0.9, method="sketch", sketch_size=40)
    for name in dense.module_names:
        x, kinds = inputs_ref(llava, name, batches)
        x = x[kinds != PADDING]
        assert shares(sketch.basis(name), x) > shares(dense.basis(name), x) - 0.02


def test_a_sketch_too_small_says_so(llava, batches):
    with pytest.warns(UserWarning, match="`sketch_size` is too small"):
        subspace = fit_retained_subspace(llava, batches, ATTENTION, method="sketch", sketch_size=4)
    assert subspace.records[ATTENTION[0]].energy < 0.99


def test_vision_tower_is_one_group_of_its_own(llava, make_batch):
    # As many positions as the tower has: only the place in the model tells them apart.
    batch = make_batch(length=17, padding=False)
    subspace = fit_retained_subspace(llava, [batch], [TOWER, ATTENTION[0]], energy=0.9)
    assert subspace.records[TOWER].counts == {"other": 3 * 17}
    assert "image" in subspace.records[ATTENTION[0]].counts


def test_tower_first_reached_by_a_later_batch(llava, make_batch):
    subspace = fit_retained_subspace(llava, [make_batch(image=False), make_batch()], [TOWER, ATTENTION[0]])
    assert subspace.records[TOWER].counts == {"other": 3 * 17}
    with pytest.raises(ValueError, match=r"saw no input, such as 'model.vision_tower"):
        fit_retained_subspace(llava, [make_batch(image=False)], [TOWER])


def test_adapters_are_off_and_everything_is_put_back(llava, batches):
    plain = fit_retained_subspace(llava, batches, ATTENTION)
    peft_model = get_peft_model(llava, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    peft_model.train()
    llava.model.vision_tower.eval()
    flags = [(module, module.training) for module in peft_model.modules()]
    trainable = [(parameter, parameter.requires_grad) for parameter in peft_model.parameters()]
    done = []
    subspace = fit_retained_subspace(peft_model, batches, ATTENTION, progress=done.append)
    assert torch.equal(subspace.basis(ATTENTION[0]), plain.basis(ATTENTION[0]))
    assert done == [1, 2, 3]
    assert all(module.training == flag for module, flag in flags)
    assert all(parameter.requires_grad == flag for parameter, flag in trainable)
    assert not any(module._forward_pre_hooks for module in peft_model.modules())
    adapted = fit_retained_subspace(peft_model, batches)
    # Short names also match the vision tower, and it reads an input of its own.
    assert {name.rsplit(".", 1)[-1] for name in adapted.module_names} == {"q_proj", "v_proj"}
    assert adapted.basis(ATTENTION[0]) is adapted.basis(ATTENTION[2])
    peft_model.merge_adapter()
    with pytest.raises(ValueError, match="unmerged"):
        fit_retained_subspace(peft_model, batches)


def test_a_failing_progress_call_leaves_the_model_as_it_was(llava, batches):
    llava.train()

    def stop(number):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_retained_subspace(llava, batches, progress=stop)
    assert llava.training
    assert not any(module._forward_pre_hooks for module in llava.modules())


def test_passes_over_some_layers_each_find_the_same(llava, batches):
    heard = []
    whole = fit_retained_subspace(llava, batches, energy=0.9)
    parts = fit_retained_subspace(llava, batches, energy=0.9, budget=1, progress=heard.append)
    assert heard == list(range(1, 2 * len(batches) + 1))
    assert parts.members == whole.members and parts.records.keys() == whole.records.keys()
    assert all(parts.bases[key].equal(basis) for key, basis in whole.bases.items())


def test_several_passes_need_batches_that_can_be_gone_over_again(llava, batches):
    assert fit_retained_subspace(llava, iter(batches), energy=0.9).bases
    with pytest.raises(TypeError, match=r"`batches` must be a list, or .* gone over 2 times; got list_iterator"):
        fit_retained_subspace(llava, iter(batches), budget=1)


def test_conv1d(make_batch):
    model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=16, n_layer=1, n_head=2, n_positions=32))
    batch = make_batch(image=False)
    subspace = fit_retained_subspace(model, [batch], energy=0.9)
    assert subspace.module_names == [
        f"transformer.h.0.{n}" for n in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    ]
    x, kinds = inputs_ref(model, "transformer.h.0.attn.c_attn", [batch])
    assert subspace.basis("transformer.h.0.mlp.c_proj").shape[0] == 64
    assert shares(subspace.basis("transformer.h.0.attn.c_attn"), x[kinds != PADDING]) >= 0.9 - 1e-4
    assert subspace.records["transformer.h.0.attn.c_attn"].counts == {"text_only": 68}


def test_layers_that_stop_sharing_their_input_are_refused(llava, batches):
    block = llava.model.language_model.layers[0].self_attn

    def own_copy(module, args, kwargs):
        return (args[0] * 2,), kwargs

    def then_part(number):
        block.v_proj.register_forward_pre_hook(own_copy, with_kwargs=True, prepend=True)

    with pytest.raises(ValueError, match="same way through the model"):
        fit_retained_subspace(llava, batches, ATTENTION, progress=then_part)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"energy": 1.0}, "`energy` must"),
        ({"max_rank": 0}, "`max_rank` must"),
        ({"method": "exact"}, "`method` must"),
        ({"groups": "none"}, "`groups` must"),
        ({"sketch_size": 1}, "`sketch_size` must"),
        ({"target_modules": ["q_proj"]}, "`target_modules` must hold full names"),
        ({"target_modules": []}, "`target_modules` must name at least one"),
        ({"batches": []}, "at least one batch"),
        ({"batches": [{"pixel_values": torch.zeros(1)}]}, "`input_ids`"),
    ],
)
def test_bad_arguments(llava, batches, arguments, message):
    with pytest.raises(ValueError, match=message):
        fit_retained_subspace(**{"model": llava, "batches": batches, **arguments})


def test_wrong_types(llava, batches):
    with pytest.raises(TypeError, match="mappings"):
        fit_retained_subspace(llava, [torch.zeros(1)])
    with pytest.raises(TypeError, match="must be a list"):
        fit_retained_subspace(llava, batches, "q_proj")


def test_inputs_that_are_not_finite(llava, batches):
    llava.get_submodule(BLOCK).input_layernorm.weight.data[0] = float("nan")
    with pytest.raises(ValueError, match="finite"):
        fit_retained_subspace(llava, batches, ATTENTION)
