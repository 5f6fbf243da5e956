import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from peft_space.subspace import InputRecord, RetainedSubspace
from peft_space.subspace import retained as retained_file


def orthonormal(seed, d, k):
    return torch.linalg.qr(torch.randn(d, k, generator=torch.Generator().manual_seed(seed))).Q.contiguous()


def subspace_of(seed=0, d=12, ranks=(3, 4), members=None):
    keys = [f"layers.{i}.q" for i in range(len(ranks))]
    return RetainedSubspace(
        bases={key: orthonormal(seed + i, d, k) for i, (key, k) in enumerate(zip(keys, ranks, strict=True))},
        members=members or {name: key for key in keys for name in (key, key[:-1] + "k")},
        records={key: InputRecord(0.99, "dense", {"image": 7, "text": 2}, torch.tensor([0.9, 0.1])) for key in keys},
    )


def test_layers_share_one_tensor_and_unknown_ones_are_named():
    subspace = subspace_of()
    assert subspace.basis("layers.0.q") is subspace.basis("layers.0.k")
    assert subspace.module_names == ["layers.0.q", "layers.0.k", "layers.1.q", "layers.1.k"]
    assert "layers.0.q, k: rank 3/12, energy 0.9900, dense" in subspace.summary()
    with pytest.raises(KeyError, match="`module_name` must be one of the 4 layers"):
        subspace.basis("layers.9.q")


def test_save_and_load(tmp_path):
    subspace = subspace_of()
    (tmp_path / "adapter_config.json").write_text("{}")
    subspace.save(tmp_path)
    subspace.save(tmp_path)
    loaded = RetainedSubspace.load(tmp_path)
    assert loaded.members == subspace.members
    for key, basis in subspace.bases.items():
        assert torch.equal(loaded.bases[key], basis)
        assert torch.equal(loaded.records[key].spectrum, subspace.records[key].spectrum)
        assert loaded.records[key].counts == {"image": 7, "text": 2}
        assert (loaded.records[key].energy, loaded.records[key].method) == (0.99, "dense")
    assert loaded.basis("layers.0.q") is loaded.basis("layers.0.k")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "adapter_config.json",
        "retained_subspace.json",
        "retained_subspace.safetensors",
    ]


def test_a_failing_save_leaves_the_old_files(tmp_path, monkeypatch):
    subspace_of().save(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full_disk(tensors, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(retained_file, "save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        subspace_of(seed=5).save(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def edit_record(change):
    def edit(folder):
        path = folder / retained_file.RECORD_NAME
        record = json.loads(path.read_text())
        change(record)
        path.write_text(json.dumps(record))

    return edit


def edit_tensors(change):
    def edit(folder):
        path = folder / retained_file.TENSORS_NAME
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path)
        digest = retained_file._digest(path)
        edit_record(lambda record: record.update(sha256=digest))(folder)

    return edit


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / retained_file.RECORD_NAME).write_text("{"), "Expecting"),
        (lambda f: (f / retained_file.RECORD_NAME).write_bytes(b"\xff"), "codec"),
        (lambda f: (f / retained_file.RECORD_NAME).write_text("[]"), "JSON object; got a list"),
        (lambda f: (f / retained_file.TENSORS_NAME).write_bytes(b"cut"), "belong together"),
        (edit_record(lambda r: r.update(format=2)), "format 1"),
        (edit_record(lambda r: r.update(code="x")), "entries"),
        (edit_record(lambda r: r.update(members=[])), "names to names"),
        (edit_record(lambda r: r["members"].update(x="nowhere")), "same inputs"),
        (edit_record(lambda r: r["inputs"].update(more={})), "does not hold"),
        (edit_record(lambda r: r["inputs"].pop("layers.0.q")), "missing or unknown"),
        (edit_record(lambda r: r["inputs"]["layers.0.q"].update(energy="all")), "energy in"),
        (edit_record(lambda r: r["inputs"]["layers.0.q"].update(energy=2)), "energy in"),
        (edit_record(lambda r: r["inputs"]["layers.0.q"].update(method="guess")), "a method of"),
        (edit_record(lambda r: r["inputs"]["layers.0.q"].update(counts={"text": -1})), "counts"),
        (edit_tensors(lambda t: t.update(more=torch.zeros(1))), "missing or unknown"),
        (edit_tensors(lambda t: t["basis.layers.0.q"].mul_(1.1)), "orthonormal"),
        (edit_tensors(lambda t: t["basis.layers.0.q"].fill_(float("nan"))), "orthonormal"),
        (edit_tensors(lambda t: t.update({"basis.layers.0.q": torch.zeros(3)})), "shape"),
        (edit_tensors(lambda t: t.update({"basis.layers.0.q": torch.eye(4)})), "0 < k < d"),
        (edit_tensors(lambda t: t.update({"basis.layers.0.q": torch.eye(4)[:, :2].half().contiguous()})), "float32"),
        (edit_tensors(lambda t: t["spectrum.layers.0.q"].fill_(-1)), "spectrum"),
    ],
)
def test_damaged_files_are_refused(tmp_path, damage, message):
    subspace_of().save(tmp_path)
    damage(tmp_path)
    with pytest.raises(ValueError, match=message) as error:
        RetainedSubspace.load(tmp_path)
    assert "`path` must be a folder with a retained subspace" in str(error.value)


def test_missing_files(tmp_path):
    with pytest.raises(FileNotFoundError):
        RetainedSubspace.load(tmp_path)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 5), st.integers(1, 5))
def test_union_holds_both(seed, a, b):
    one, two = subspace_of(seed, ranks=(a,)), subspace_of(seed + 50, ranks=(b,))
    both = one.union(two).basis("layers.0.q")
    torch.testing.assert_close(both.T @ both, torch.eye(a + b), rtol=0, atol=1e-5)
    for part in (one, two):
        basis = part.basis("layers.0.q")
        torch.testing.assert_close(both @ (both.T @ basis), basis, rtol=0, atol=1e-4)


def test_union_with_itself_adds_nothing_and_other_layers_are_taken_over():
    one = subspace_of()
    again = one.union(one)
    assert again.basis("layers.0.q").shape == (12, 3)
    assert again.basis("layers.0.q") is again.basis("layers.0.k")
    assert again.records["layers.0.q"].counts == {"image": 14, "text": 4}
    wider = one.union(subspace_of(ranks=(3, 4, 2)))
    assert wider.basis("layers.2.k").shape == (12, 2)


def test_union_splits_layers_that_share_their_input_in_one_only():
    apart = subspace_of(9, ranks=(1, 1), members={"layers.0.q": "layers.0.q", "layers.0.k": "layers.1.q"})
    both = subspace_of(ranks=(3,)).union(apart)
    assert both.basis("layers.0.q").shape == both.basis("layers.0.k").shape == (12, 4)
    assert both.basis("layers.0.q") is not both.basis("layers.0.k")


def test_union_that_leaves_nothing_or_does_not_fit():
    with pytest.raises(ValueError, match="leave a direction to train"):
        subspace_of(ranks=(8,)).union(subspace_of(1, ranks=(8,)))
    with pytest.raises(ValueError, match="same model"):
        subspace_of(d=12).union(subspace_of(d=13))


def test_parts_that_do_not_fit():
    with pytest.raises(ValueError, match="same inputs"):
        RetainedSubspace({}, {}, {})
