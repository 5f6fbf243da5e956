"""Peak GPU memory of an erasure, stage by stage, on the real architectures with random weights.

    python -m tests.benchmarks.memory [--model llava-1.5-7b | qwen2.5-vl-7b] [--low-memory] [--rank 16]
    python -m tests.benchmarks.memory --model testbed

Without a GPU the tensors that the stages allocate are counted (`counter.py`): the real code runs with the weights on
the meta device and the language model in NF4. The test bed is run both ways, counted and measured. Each stage is the
package's own, on as few pictures as fill its batches; its peak does not grow with their number.
"""

from __future__ import annotations

import argparse
import copy
import os
import resource
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from peft import get_peft_model
from PIL import Image
from torch import nn
from torch.nn.utils import parametrize
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.utils import logging
from transformers.utils.quantization_config import QuantizationMethod

from peft_space import testbed
from peft_space._peft import lora_layers
from peft_space.anchors.lessons import Lesson
from peft_space.anchors.scores import concept_embedding, name_likelihood, projector_cosine
from peft_space.concepts import Concept
from peft_space.concepts.retain import DEFAULT_QUESTIONS, DEFAULT_TEXTS
from peft_space.subspace import LOW_MOMENT_BUDGET, MOMENT_BUDGET, RetainedSubspace, fit_retained_subspace, leak
from peft_space.testbed.architecture import CHAT_TEMPLATE, IMAGE, build_tokenizer
from peft_space.training import (
    Gauge,
    Lessons,
    SpaceTrainer,
    SpaceTrainingArguments,
    anchor_entropy,
    concept_directions,
    lessons_at_a_time,
)
from peft_space.training.retained import Retained
from peft_space.tuner import SpaceConfig, attach_subspace, bake, language_model_targets, targeted_modules
from peft_space.tuner.projection import NullSpaceProjection, RetainedBasis
from peft_space.vlm import Prompt, base_of, generate, image_features, log_likelihoods, rows_at_a_time
from tests.benchmarks.counter import ALLOCATION, counting, nf4

ANSWER = "a small red creature that sits on a stone beside the water and looks at the moon while it rains"
NAMES = tuple(f"creature {n}" for n in range(24))
STAGES = ("weights", "anchors", "knowledge", "retained subspace", "training")


class QwenProcessor:
    """What is asked of Qwen2.5-VL's processor; the real one needs torchvision for its videos."""

    chat_template = CHAT_TEMPLATE

    def __init__(self, tokenizer: Any, side: int) -> None:
        self.tokenizer = tokenizer
        self.image_processor = Qwen2VLImageProcessorPil(min_pixels=side**2, max_pixels=side**2)

    def apply_chat_template(self, *args: Any, **kwargs: Any) -> str:
        return self.tokenizer.apply_chat_template(*args, **kwargs)

    def __call__(self, text: Sequence[str], images: Sequence[Sequence[Image.Image]], **options: Any) -> dict[str, Any]:
        seen = self.image_processor([image for row in images for image in row], return_tensors="pt")
        counts = (seen["image_grid_thw"].prod(1) // 4).tolist()
        texts = [row.replace(IMAGE, IMAGE * count) for row, count in zip(text, counts, strict=True)]
        batch = dict(self.tokenizer(texts, **options)) | dict(seen)
        image_token = self.tokenizer.convert_tokens_to_ids(IMAGE)
        return batch | {"mm_token_type_ids": (batch["input_ids"] == image_token).int()}


def llava(tokenizer: Any) -> tuple[LlavaConfig, Any]:
    """LLaVA-1.5-7B: 576 tokens an image."""
    vision = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
        projection_dim=768,
    )
    text = LlamaConfig(
        vocab_size=32064,
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        max_position_embeddings=4096,
        pad_token_id=0,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        image_seq_length=576,
        tie_word_embeddings=False,
    )
    images = CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336})
    return config, LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def qwen(tokenizer: Any) -> tuple[Qwen2_5_VLConfig, Any]:
    """Qwen2.5-VL-7B: 1024 tokens an image of 896 x 896."""
    text = {
        "vocab_size": 152064,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "tie_word_embeddings": False,
        "rope_parameters": {"rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1e6},
        "pad_token_id": 0,
    }
    vision = {
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "out_hidden_size": 3584,
        "fullatt_block_indexes": [7, 15, 23, 31],
        "window_size": 112,
    }
    config = Qwen2_5_VLConfig(
        text_config=text, vision_config=vision, image_token_id=tokenizer.convert_tokens_to_ids(IMAGE)
    )
    return config, QwenProcessor(tokenizer, 896)


MODELS = {
    "llava-1.5-7b": (llava, LlavaForConditionalGeneration, 336),
    "qwen2.5-vl-7b": (qwen, Qwen2_5_VLForConditionalGeneration, 896),
}


def build(name: str, device: str) -> tuple[PreTrainedModel, Any, int]:
    """A real architecture, random weights in bfloat16, its language model in NF4; its processor; a picture's side."""
    configure, kind, side = MODELS[name]
    config, processor = configure(build_tokenizer([*DEFAULT_QUESTIONS, *DEFAULT_TEXTS, ANSWER, *NAMES]))
    with torch.device(device):
        model = kind._from_config(config, dtype=torch.bfloat16).eval()
    model.requires_grad_(False)
    nf4(model, language_model_targets(model), device)
    if name.startswith("qwen"):
        model.register_forward_pre_hook(with_positions, with_kwargs=True)
    return (model if device == "meta" else model.to(device)), processor, side


def with_positions(model: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Where Qwen2.5-VL goes on from a cache it must be told the positions, or it takes those of the whole mask."""
    if (
        kwargs.get("past_key_values") is not None
        and kwargs.get("position_ids") is None
        and "pixel_values" not in kwargs
    ):
        rows, length = kwargs["input_ids"].shape
        end = kwargs["attention_mask"].shape[1]
        kwargs["position_ids"] = torch.arange(end - length, end).expand(3, rows, length)
    return args, kwargs


class Meter:
    """The peak of each stage, in bytes, and what is alive after it."""

    def __init__(self, peak: Callable[[], int], reset: Callable[[], None]) -> None:
        self.peaks: dict[str, int] = {}
        self._peak, self._reset = peak, reset

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self._reset()
        yield
        self.peaks[name] = self._peak()


@contextmanager
def counted(model: nn.Module, device: str, allocation: int = ALLOCATION) -> Iterator[Meter]:
    """Counts; a basis without content can't be checked."""
    with patch("peft_space.subspace.retained._check_basis"), counting(model, device, allocation) as counter:
        yield Meter(lambda: counter.peak, counter.reset)


class OnCuda(Meter):
    """What the allocator handed out, and what it held of the GPU to do so, which is whole blocks."""

    def __init__(self) -> None:
        super().__init__(torch.cuda.max_memory_allocated, self.reset)
        self.reserved: dict[str, int] = {}
        self.seconds: dict[str, float] = {}

    @staticmethod
    def reset() -> None:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        with super().stage(name):
            began = time.perf_counter()
            yield
            torch.cuda.synchronize()
            self.seconds[name] = time.perf_counter() - began
            self.reserved[name] = torch.cuda.max_memory_reserved()


class Profiled(Meter):
    """The same from the allocator's own events, as torch's profiler writes them down."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(lambda: 0, lambda: None)
        tensors = [*model.parameters(), *model.buffers()]
        self._alive = sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            yield
        events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
        change = np.cumsum([0, *(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns()))])
        self.peaks[name] = self._alive + int(change.max())
        self._alive += int(change[-1])


def attach_on_meta(model: nn.Module, subspace: RetainedSubspace, on_cpu: bool) -> None:
    """`attach_subspace` without its checks, which an adapter on the meta device would not pass."""
    shared: dict[int, RetainedBasis] = {}
    for name, layer in lora_layers(base_of(model), "default"):
        basis = subspace.basis(name)
        if id(basis) not in shared:
            shared[id(basis)] = RetainedBasis(basis, torch.device("cpu" if on_cpu else "meta"), on_cpu)
        projection = NullSpaceProjection(shared[id(basis)])
        parametrize.register_parametrization(layer.lora_A["default"], "weight", projection)


def run_stages(
    model: nn.Module,
    processor: Any,
    side: int,
    meter: Meter,
    *,
    low_memory: bool = False,
    rank: int = 16,
    batch_size: int = 64,
    images: int = 16,
    new_tokens: int = 24,
    meta: bool = False,
) -> None:
    """The stages of `erase`, with the settings that it gives them."""
    batch_size = 1 if low_memory else batch_size
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)) for _ in range(images)]
    concept = Concept("narril", text_questions=("Where does the {name} live?",))
    prompts = [Prompt(question, picture) for picture in pictures for question in DEFAULT_QUESTIONS[:2]]
    texts = [Prompt(text) for text in DEFAULT_TEXTS]
    # one full batch of each kind
    rows = rows_at_a_time(model, processor, prompts, batch_size)
    few = [*prompts[:rows], *texts[: 2 * rows]]
    with meter.stage("weights"):
        pass
    with meter.stage("anchors"):
        features = image_features(model, processor, pictures[:rows], batch_size=batch_size)
        projector_cosine(features, concept_embedding(model, processor, concept))
        name_likelihood(model, processor, concept, pictures[: -(-rows // 3)], batch_size=batch_size)
    with meter.stage("knowledge"):
        generate(model, processor, prompts[:rows], max_new_tokens=new_tokens, batch_size=batch_size)
        log_likelihoods(model, processor, prompts[:rows], [NAMES[:2]] * rows, batch_size)
    with meter.stage("retained subspace"):
        peft_model = get_peft_model(model, SpaceConfig(r=rank, lora_alpha=rank, concept=concept.name))
        retained = Retained(tuple(few), (ANSWER,) * len(few))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="`sketch_size` is too small")
            subspace = fit_retained_subspace(
                peft_model,
                retained.batches(peft_model, processor, batch_size),
                targeted_modules(peft_model),
                energy=0.999,
                budget=LOW_MOMENT_BUDGET if low_memory else MOMENT_BUDGET,
            )
        (attach_on_meta if meta else attach_subspace)(peft_model, subspace, on_cpu=low_memory)
        held_out = list(retained.batches(peft_model, processor, batch_size))
    with meter.stage("training"), tempfile.TemporaryDirectory() as folder:
        # those in text alone are shorter
        lessons = [Lesson(prompt, ANSWER, "name") for prompt in prompts[: max(2, rows)]]
        args = SpaceTrainingArguments(
            output_dir=folder, max_steps=2, dose_every=0, use_cpu=not torch.cuda.is_available()
        )
        if low_memory:
            args.per_device_eval_batch_size = 1
        most = args.per_device_train_batch_size
        args = args.in_small_batches(1 if low_memory else lessons_at_a_time(peft_model, processor, lessons, most))
        # two parts of a step stand for all
        args.gradient_accumulation_steps = min(2, args.gradient_accumulation_steps)
        if meta:
            # the fused optimiser makes no temporary tensors, and the plain one but small ones
            args.optim = "adamw_torch"
        asked = prompts[:rows]
        gauge = Gauge("name", tuple(asked), (concept.name,) * len(asked), 0.0, -1.0, 1.0)
        trainer = SpaceTrainer(
            peft_model,
            args,
            Lessons(lessons),
            processor,
            concept_directions(peft_model, processor, [concept.name]),
            gauges=[gauge],
            measure_leak=lambda: leak(peft_model, held_out, "default").mean,
        )
        trainer.accelerator.device_placement = not meta
        anchor_entropy(peft_model, processor, lessons, batch_size)
        trainer.train()
        bake(peft_model)


def gib(size: float) -> str:
    return f"{size / 2**30:.2f}"


def check_on_testbed() -> None:
    """The count against what the allocator hands out, on the test bed."""
    real, processor = testbed.load()
    ways: dict[str, dict[str, int]] = {}
    for way in ("counted", "measured"):
        model = copy.deepcopy(real)
        options: dict[str, Any] = {"images": 64}
        if way == "counted":
            model = model.to("meta")
            # such a model stays where it is
            model.quantization_method = QuantizationMethod.BITS_AND_BYTES
            with counted(model, "meta", 1) as meter:
                run_stages(model, processor, 48, meter, meta=True, **options)
        else:
            meter = Profiled(model)
            run_stages(model, processor, 48, meter, **options)
        ways[way] = meter.peaks
    print("| stage | counted, MiB | measured, MiB | ratio |\n|---|---|---|---|")
    for stage in STAGES:
        count, found = (ways[way][stage] / 2**20 for way in ("counted", "measured"))
        print(f"| {stage} | {count:.1f} | {found:.1f} | {count / found:.3f} |")
    print(f"\nresident in all: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10:.0f} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=[*MODELS, "testbed"], action="append")
    parser.add_argument("--low-memory", action="store_true")
    parser.add_argument("--rank", type=int, default=16, help="Rank of the adapters.")
    parser.add_argument(
        "--device", choices=["count", "cuda"], default="cuda" if torch.cuda.is_available() else "count"
    )
    parser.add_argument("--new-tokens", type=int, default=24, help="Length of generated answers.")
    options = parser.parse_args()
    logging.set_verbosity_error()
    for name in options.model or MODELS:
        if name == "testbed":
            check_on_testbed()
            continue
        device = "meta" if options.device == "count" else "cuda"
        model, processor, side = build(name, device)
        settings = f"{name}, rank {options.rank}{', low memory' if options.low_memory else ''}"
        how_to = {key: getattr(options, key) for key in ("low_memory", "rank", "new_tokens")}
        with counted(model, device) if device == "meta" else nullcontext(OnCuda()) as meter:
            run_stages(model, processor, side, meter, meta=device == "meta", **how_to)
        print(f"{settings}, {'counted' if device == 'meta' else 'measured'}, GiB:")
        for stage, peak in meter.peaks.items():
            more = f", reserved {gib(meter.reserved[stage])}, {meter.seconds[stage]:.1f} s" if device == "cuda" else ""
            print(f"  {stage}: {gib(peak)}{more}", flush=True)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
