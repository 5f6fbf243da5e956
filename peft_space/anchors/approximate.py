"""The same search with `faiss`, for more images than are read through in the time that one waits."""

from __future__ import annotations

import hashlib
import math
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..processes import gathered, leads, together
from .index import FeatureIndex
from .search import Nearest, nearest, rescored, tally

_TRAINED_ON = 64
_CODE = 64
_AGAIN = 20
"""So many times as many candidates as are asked for are looked at closely."""


@together()
def approximately_nearest(index: FeatureIndex, concept: Tensor, k: int) -> Nearest:
    """As `search.nearest`, but that it may miss some; `recall` tells how many.

    Built at the first call and kept beside the features: an inverted file over the centred and normed features, each
    of at most 64 bytes. A quarter of its lists is looked through, and the best candidates' cosines are computed anew.

    Args:
        index: what `index_images` returned.
        concept: the concept's direction, `(d,)`.
        k: how many.

    Returns:
        The nearest; `counts` are those of a sample, scaled up.

    Raises:
        ImportError: `faiss` is not installed.
    """
    inverted = _inverted(index)
    inverted.nprobe = max(1, inverted.nlist // 4)
    concept = F.normalize(concept, dim=0)
    _, found = inverted.search(concept[None].numpy(), min(_AGAIN * k, len(index)))
    places = torch.from_numpy(found[0])
    return rescored(index, concept, places[places >= 0], k, _sampled_counts(index, concept))


def recall(index: FeatureIndex, concepts: Sequence[Tensor], k: int) -> float:
    """Share of the exact nearest `k` that `approximately_nearest` finds, over several concepts."""
    hits = [
        len({*approximately_nearest(index, concept, k).places} & {*nearest(index, concept, k).places})
        for concept in concepts
    ]
    return sum(hits) / (min(k, len(index)) * len(concepts))


def _inverted(index: FeatureIndex) -> Any:
    try:
        import faiss
    except ImportError as error:
        raise ImportError(
            "`search='faiss'` needs `faiss`. Install it with `pip install 'peft-space[faiss]'`, or search exactly."
        ) from error
    file = index.folder / f"faiss-{_content(index)}.index"
    # several processes would write the same file
    if leads() and not file.exists():
        _build(index, file, faiss)
        for other in set(index.folder.glob("faiss*.index")) - {file}:
            other.unlink()
    gathered(None)
    return faiss.read_index(str(file))


def _build(index: FeatureIndex, file: Path, faiss: Any) -> None:
    d, n = len(index.mean), len(index)
    n_lists = max(1, min(int(4 * math.sqrt(n)), n // _TRAINED_ON))
    code = max(size for size in range(1, min(_CODE, d // 2) + 1) if d % size == 0)
    # 2 to the power of the bits are the centroids of a code, and each wants some pictures to stand for
    bits = min(8, max(1, int(math.log2(max(2, n / 39)))))
    inverted = faiss.index_factory(d, f"IVF{n_lists},PQ{code}x{bits}", faiss.METRIC_INNER_PRODUCT)
    stride = max(1, n // (n_lists * _TRAINED_ON))
    sample = torch.cat([_unit(index, features[::stride]) for _, features, _ in index.chunks()])
    inverted.train(sample.numpy())
    for _, features, _ in index.chunks():
        inverted.add(_unit(index, features).numpy())
    beside = file.with_name(f".{file.name}.{uuid.uuid4().hex[:8]}")
    try:
        faiss.write_index(inverted, str(beside))
        beside.replace(file)
    finally:
        beside.unlink(missing_ok=True)


def _unit(index: FeatureIndex, features: Tensor) -> Tensor:
    return F.normalize(features - index.mean, dim=1)


def _content(index: FeatureIndex) -> str:
    """What tells the features of an index from others, whatever the clock says of their files."""
    with (index.folder / "whole.safetensors").open("rb") as whole:
        return hashlib.file_digest(whole, "sha256").hexdigest()[:16]


def _sampled_counts(index: FeatureIndex, concept: Tensor) -> Tensor:
    stride = max(1, len(index) // 100_000)
    cosine = torch.cat([_unit(index, features[::stride]) @ concept for _, features, _ in index.chunks()])
    return (tally(cosine) * (len(index) / len(cosine))).round().long()
