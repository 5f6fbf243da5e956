from __future__ import annotations

import os
import sys

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from peft_space.anchors import FeatureIndex, approximate, projector_cosine
from peft_space.anchors.approximate import approximately_nearest, recall
from peft_space.anchors.index import _write_whole
from peft_space.anchors.search import nearest
from peft_space.concepts import image_source


def index_of(features: Tensor, folder, part_size: int = 256) -> FeatureIndex:
    """An index over made-up features."""
    files = []
    for number, part in enumerate(features.split(part_size)):
        file = folder / f"part-{number:08d}.safetensors"
        position = torch.arange(len(part), dtype=torch.int32)
        save_file({"features": part.contiguous(), "sum": part.sum(0, dtype=torch.float64), "position": position}, file)
        files.append(file)
    _write_whole(folder, files)
    return FeatureIndex(image_source([]), folder, tuple(files))


@pytest.fixture
def features() -> Tensor:
    """Clusters around a common part that is much longer than what tells them apart."""
    draw = torch.Generator().manual_seed(0)
    centres = torch.randn(40, 32, generator=draw)
    rows = centres[torch.randint(40, (3000,), generator=draw)] + 0.3 * torch.randn(3000, 32, generator=draw)
    return rows + 30 * F.normalize(torch.randn(32, generator=draw), dim=0)


@pytest.mark.parametrize("k", [1, 50, 3000, 5000])
def test_the_search_is_exact(features, tmp_path, k):
    index = index_of(features, tmp_path)
    concept = torch.randn(32, generator=torch.Generator().manual_seed(1))
    expected = projector_cosine(features, concept)
    found = nearest(index, concept, k)
    order = expected.topk(min(k, 3000))
    torch.testing.assert_close(found.cosine, order.values, rtol=0, atol=1e-5)
    assert len(set(found.places) ^ set(order.indices.tolist())) <= 2
    assert found.counts.sum() == 3000
    torch.testing.assert_close(found.counts.float(), torch.histc(expected, 4096, min=-1, max=1), rtol=0, atol=3)


@pytest.mark.slow
def test_faiss_finds_nearly_the_same(features, tmp_path):
    pytest.importorskip("faiss")
    index = index_of(features, tmp_path)
    concepts = [torch.randn(32, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]
    assert recall(index, concepts, 50) >= 0.9
    (built,) = tmp_path.glob("faiss-*.index")
    written = built.stat().st_mtime_ns
    found, exact = approximately_nearest(index, concepts[0], 50), nearest(index, concepts[0], 50)
    assert built.stat().st_mtime_ns == written
    shared = set(found.places) & set(exact.places)
    cosine = dict(zip(exact.places, exact.cosine.tolist(), strict=True))
    for place, value in zip(found.places, found.cosine.tolist(), strict=True):
        assert place not in shared or value == pytest.approx(cosine[place], abs=1e-6)
    assert found.counts.sum() == pytest.approx(3000, rel=0.01)


def test_what_was_built_of_other_features_is_not_used_whatever_the_clock_says(features, tmp_path):
    of_these = approximate._content(index_of(features, tmp_path))
    whole = tmp_path / "whole.safetensors"
    whole.unlink()
    assert approximate._content(index_of(features, tmp_path)) == of_these
    whole.unlink()
    others = index_of(features.flip(0), tmp_path)
    os.utime(whole, (0, 0))
    assert approximate._content(others) != of_these


def test_without_faiss_the_extra_is_named(features, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ImportError, match=r"`search='faiss'` needs `faiss`. Install .*peft-space\[faiss\]"):
        approximately_nearest(index_of(features, tmp_path), torch.ones(32), 5)
