import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from peft_space._peft import quantised_modules
from peft_space.attacks import quantisation
from peft_space.attacks.quantisation import WAYS, missing, round_to_nearest, rounded
from peft_space.tuner.targets import language_model_targets


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 5), st.sampled_from([8, 48, 256]), st.integers(0, 99))
def test_rounding_to_nearest(rows, width, seed):
    weight = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))
    after = round_to_nearest(weight)
    group = 128 if width % 128 == 0 else width
    parts, before = after.view(rows, -1, group), weight.view(rows, -1, group)
    step = before.abs().amax(-1, keepdim=True) / 7
    assert ((parts - before).abs() <= step / 2 + 1e-6).all()
    assert all(len(part.unique()) <= 15 for row in parts for part in row)
    assert round_to_nearest(after).allclose(after, atol=1e-6)


def test_a_weight_of_nothing_stays_nothing():
    assert round_to_nearest(torch.zeros(2, 8, dtype=torch.bfloat16)).equal(torch.zeros(2, 8, dtype=torch.bfloat16))


def test_only_the_language_model_is_rounded(model, processor, base):
    before = dict(base.named_parameters())
    targets = {f"{name}.weight" for name in language_model_targets(model)}
    changed = {n for n, p in rounded(model, processor).named_parameters() if not p.equal(before[n])}
    assert changed == targets


@pytest.mark.parametrize("key", ["nf4", "int8"])
def test_the_merged_model_is_stored_by_bitsandbytes(base, processor, key):
    stored = WAYS[key][1](base, processor)
    assert set(quantised_modules(stored)) == set(language_model_targets(base)) and not quantised_modules(base)


def test_what_can_not_be_done_here_says_why(monkeypatch):
    monkeypatch.setattr(quantisation, "find_spec", lambda name: None)
    assert missing("int4") is None and "needs bitsandbytes" in missing("nf4")
