"""What several processes do together equals what one does. Each is a run of this module: `FOLDER`."""

from __future__ import annotations

import sys
from itertools import islice
from pathlib import Path

import pytest
import torch
from accelerate import PartialState

from peft_space import fit_retained_subspace, index_images, select_anchors, testbed
from peft_space.testbed import questions
from peft_space.vlm import Prompt, encode
from tests.launch import PROCESSES, launch, rank

SIZES = {"n_anchors": 8, "n_monitor": 3, "shortlist": 24}
OPTIONS = {"part_size": 16, "batch_size": 8}


def fitted(model, processor, public, share: slice):
    """The retained subspace of some of eight batches; only one of them is text alone."""
    question = questions.NAMING[0]
    prompts = [Prompt(question, image) for image in public.images[:28]]
    batches = [encode(processor, prompts[start : start + 4]) for start in range(0, 28, 4)]
    batches.append(encode(processor, [Prompt(asked.question) for asked in questions.general()[:8]]))
    return fit_retained_subspace(model, islice(batches, share.start, share.stop, share.step), energy=0.99)


def run(folder: Path, number: int, n_processes: int) -> dict:
    model, processor = testbed.load()
    public = testbed.public_images("narril", 80)
    concept = testbed.concept("narril")
    index = index_images(model, processor, folder / "pictures", folder / f"cache{n_processes}", **OPTIONS)
    anchors = select_anchors(model, processor, concept, index, **SIZES)
    subspace = fitted(model, processor, public, slice(number, None, n_processes))
    only_the_first_has_any = fitted(model, processor, public, slice(0, 1 if number == 0 else 0))
    return {
        "computed": index.computed,
        "features": index.rows(range(len(index))),
        "anchors": (anchors.indices, anchors.monitor),
        "bases": subspace.bases,
        "bases of one batch": only_the_first_has_any.bases,
        "counts": {key: dict(sorted(record.counts.items())) for key, record in subspace.records.items()},
    }


@pytest.mark.slow
def test_two_processes_find_what_one_finds(tmp_path):
    (tmp_path / "pictures").mkdir()
    for number, image in enumerate(testbed.public_images("narril", 80).images):
        image.save(tmp_path / "pictures" / f"{number:02d}.png")
    launched = launch(__name__, tmp_path)
    assert not launched.returncode, launched.stderr[-6000:]
    alone = run(tmp_path, 0, 1)
    found = [torch.load(tmp_path / f"found{rank}") for rank in range(PROCESSES)]
    assert sum(one["computed"] for one in found) == alone["computed"] == 80
    assert all(one["computed"] for one in found)
    for one in found:
        torch.testing.assert_close(one["features"], alone["features"], rtol=0, atol=1e-5)
        assert one["anchors"] == alone["anchors"]
        assert one["counts"] == alone["counts"]
        for key, basis in alone["bases of one batch"].items():
            found_by_it = one["bases of one batch"][key]
            torch.testing.assert_close(found_by_it @ found_by_it.T, basis @ basis.T, rtol=0, atol=1e-2)
        for key, basis in alone["bases"].items():
            assert one["bases"][key].shape == basis.shape
            # the same columns, up to their sign; weak ones turn into each other by rounding
            torch.testing.assert_close((one["bases"][key] * basis).sum(0)[:8].abs(), torch.ones(8), rtol=0, atol=1e-3)
            torch.testing.assert_close(one["bases"][key] @ one["bases"][key].T, basis @ basis.T, rtol=0, atol=1e-2)


if __name__ == "__main__":
    PartialState(cpu=True)
    place = Path(sys.argv[1])
    torch.save(run(place, rank(), PROCESSES), place / f"found{rank()}")
    PartialState().destroy_process_group()
