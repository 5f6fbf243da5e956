"""Measures indexing, search and subspace statistics beside the bare loops that they cannot be faster than.

    python -m tests.benchmarks.throughput OUTPUT.json [--pictures 512] [--vectors 1000000] [--repeats 3]
        [--scratch DIR] [--tower testbed|b16]

Both of a pair run in one process, in turns; the medians of their wall times are compared. For the search `--vectors`
made-up vectors of 4096 float32 are written to `--scratch` (16 GB for a million) and deleted afterwards. `--tower b16`
measures indexing alone, of photograph-sized JPEGs, by a tower of CLIP ViT-B/16's size with random weights.
"""

from __future__ import annotations

import argparse
import copy
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPVisionConfig, LlavaForConditionalGeneration

from peft_space import FeatureIndex, SpaceConfig, fit_retained_subspace, index_images, targeted_modules, testbed
from peft_space.anchors import concept_embedding
from peft_space.anchors.index import PART, _write_whole
from peft_space.anchors.search import nearest
from peft_space.concepts import image_source
from peft_space.report import write_json
from peft_space.subspace.inputs import _inputs, as_base
from peft_space.vlm import Prompt, encode, image_inputs, projected

WIDTH, NEAREST, BATCH = 4096, 384, 64


def seconds(job: Callable[[], Any]) -> float:
    began = time.perf_counter()
    job()
    return time.perf_counter() - began


def in_turns(repeats: int, **jobs: Callable[[], Any]) -> dict[str, float]:
    """Median seconds of each job; one round before the first counts is left out."""
    taken: dict[str, list[float]] = {name: [] for name in jobs}
    for round_number in range(repeats + 1):
        for name, job in jobs.items():
            value = seconds(job)
            if round_number:
                taken[name].append(value)
    return {name: statistics.median(values) for name, values in taken.items()}


@torch.no_grad()
def indexing(
    model: nn.Module,
    processor: Any,
    n_pictures: int,
    repeats: int,
    scratch: Path,
    size: tuple[int, int] | None = None,
) -> dict[str, float]:
    """Indexing a folder into an empty cache, beside bare loops over the same pictures at the same batch size.

    Args:
        size: width and height that the pictures are brought to, as JPEGs; by default they stay as they are.
    """
    pictures = list(testbed.public_images("zorvex", n_pictures).images)
    ending, batch_size = "png", BATCH
    if size is not None:
        pictures, ending, batch_size = [picture.resize(size) for picture in pictures], "jpg", 16
    folder = scratch / "pictures"
    folder.mkdir()
    for number, picture in enumerate(pictures):
        picture.save(folder / f"{number:06d}.{ending}")
    batches = [pictures[start : start + batch_size] for start in range(0, n_pictures, batch_size)]
    inputs = [image_inputs(processor, batch) for batch in batches]
    caches = iter(range(10**6))

    def index(where: Path | None = None) -> None:
        index_images(model, processor, folder, where or scratch / f"cache{next(caches)}", batch_size=batch_size)

    taken = in_turns(
        repeats,
        index=index,
        tower=lambda: [projected(model, batch) for batch in inputs],
        tower_and_processor=lambda: [projected(model, image_inputs(processor, batch)) for batch in batches],
    )
    warm = scratch / "cache0"
    concepts = [concept_embedding(model, processor, testbed.concept(name)) for name in ("zorvex", "narril")]

    def second_concept() -> None:
        nearest(index_images(model, processor, folder, warm, batch_size=batch_size), concepts[1], NEAREST)

    taken |= in_turns(repeats, second_concept=second_concept)
    return taken | {
        "indexing_of_tower": taken["tower"] / taken["index"],
        "indexing_of_tower_and_processor": taken["tower_and_processor"] / taken["index"],
        "second_concept_of_first": taken["second_concept"] / taken["index"],
    }


def real_size() -> tuple[nn.Module, Any]:
    """A LLaVA with a tower of CLIP ViT-B/16's size and random weights, and its processor."""
    small, processor = testbed.load()
    config = copy.deepcopy(small.config)
    config.vision_config = CLIPVisionConfig(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, patch_size=16
    )
    side = config.vision_config.image_size
    config.image_seq_length = (side // 16) ** 2
    processor.patch_size = 16
    processor.image_processor.size = {"shortest_edge": side}
    processor.image_processor.crop_size = {"height": side, "width": side}
    return LlavaForConditionalGeneration(config).eval(), processor


@torch.no_grad()
def statistics_pass(model: nn.Module, processor: Any, n_pictures: int, repeats: int) -> dict[str, float]:
    """Fitting the retained subspace, and its pass alone, beside a bare forward pass over the same batches."""
    question = testbed.retain().questions[0]
    prompts = [Prompt(question, picture) for picture in testbed.public_images("zorvex", n_pictures).images]
    batches = [encode(processor, prompts[start : start + BATCH]) for start in range(0, n_pictures, BATCH)]
    peft_model = get_peft_model(model, SpaceConfig(r=16, lora_alpha=16, concept="zorvex"))
    targets = targeted_modules(peft_model)
    base = peft_model.get_base_model()

    def bare() -> None:
        with as_base(peft_model):
            for batch in batches:
                base(**_inputs(batch, base.device), logits_to_keep=1)

    taken = in_turns(
        repeats, forward=bare, statistics=lambda: fit_retained_subspace(peft_model, batches, targets, energy=0.999)
    )
    peft_model.unload()
    return taken | {"statistics_of_forward": taken["statistics"] / taken["forward"]}


def make_up(n_vectors: int, folder: Path) -> None:
    """Vectors on disk as an index has them."""
    files: list[Path] = []
    draw = torch.Generator().manual_seed(0)
    common = torch.randn(WIDTH, generator=draw)
    block = torch.randn(PART, WIDTH, generator=draw)
    for start in range(0, n_vectors, PART):
        # another mixture of the same rows: random numbers take longer than all that is measured
        part = (block.roll(len(files) + 1, 1) + common)[: n_vectors - start]
        files.append(folder / f"part-{len(files):08d}.safetensors")
        position = torch.arange(len(part), dtype=torch.int32)
        total = part.sum(0, dtype=torch.float64)
        save_file({"features": part.contiguous(), "sum": total, "position": position}, files[-1])
    _write_whole(folder, files)


def resident_mib() -> float:
    """What this process holds in memory now, pages of mapped files included."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def searching(n_vectors: int, repeats: int, scratch: Path) -> dict[str, float]:
    """The search, beside a matrix product and `topk` over the same mapped vectors."""
    # by a process of its own, that what it held does not count
    writer = multiprocessing.get_context("spawn").Process(target=make_up, args=(n_vectors, scratch))
    writer.start()
    writer.join()
    index = FeatureIndex(image_source([]), scratch, tuple(sorted(scratch.glob("part-*"))))
    concept = torch.randn(WIDTH, generator=torch.Generator().manual_seed(1))
    most = [0.0]

    def bare() -> None:
        scores = []
        for file in index.files:
            with safe_open(file, framework="pt") as part:
                scores.append(torch.matmul(part.get_tensor("features"), concept))
        torch.cat(scores).topk(NEAREST)

    def search() -> None:
        chunks = FeatureIndex.chunks

        def watched(self: FeatureIndex) -> Any:
            for chunk in chunks(self):
                yield chunk
                most[0] = max(most[0], resident_mib())

        FeatureIndex.chunks = watched  # type: ignore[method-assign]
        try:
            nearest(index, concept, NEAREST)
        finally:
            FeatureIndex.chunks = chunks  # type: ignore[method-assign]

    taken = in_turns(repeats, matmul=bare, search=search)
    return taken | {"search_of_matmul": taken["search"] / taken["matmul"], "resident_mib": most[0]}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--pictures", type=int, default=512)
    parser.add_argument("--vectors", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--scratch", type=Path, default=None)
    parser.add_argument("--tower", choices=("testbed", "b16"), default="testbed")
    options = parser.parse_args(arguments)
    told: dict[str, Any] = {"arguments": {"pictures": options.pictures, "vectors": options.vectors}}
    if options.tower == "b16":
        with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
            told["indexing"] = indexing(
                *real_size(), options.pictures, options.repeats, Path(scratch), size=(640, 480)
            )
    else:
        # first, so that nothing else is in memory yet
        with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
            told["search"] = searching(options.vectors, options.repeats, Path(scratch))
        model, processor = testbed.load()
        with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
            told["indexing"] = indexing(model, processor, options.pictures, options.repeats, Path(scratch))
        told["statistics"] = statistics_pass(model, processor, options.pictures, options.repeats)
    write_json(options.output, told)
    print(json.dumps(told, indent=2))


if __name__ == "__main__":
    main()
