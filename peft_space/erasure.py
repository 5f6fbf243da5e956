"""The whole of SPACE on one page: a concept's name and public images in, an erasure adapter out."""

from __future__ import annotations

import copy
import math
import tempfile
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from peft import PeftModel, get_peft_model
from torch import nn
from transformers import set_seed

from ._peft import present_adapters
from .adapter import save_erasure_adapter, whole_folder
from .anchors import Anchors, anchor_lessons, elicit, naming_questions, other_names, select_anchors, varied
from .concepts import Concept, Retain, load_public_images
from .console import shows_progress
from .progress import Listener, Stages
from .report import anchor_images, check_output
from .subspace import RetainedSubspace, fit_retained_subspace, leak
from .training import (
    Lessons,
    SpaceTrainer,
    SpaceTrainingArguments,
    anchor_entropy,
    build_gauges,
    concept_directions,
    tied_to_name,
)
from .training.retained import gather_retained
from .tuner import SpaceConfig, attach_subspace, bake, targeted_modules
from .vlm import Prompt, check_multimodal, generate


@dataclass
class ErasureResult:
    """What `erase` returns.

    Attributes:
        model: the model with the erasure adapter, active and baked into plain LoRA.
        anchors: the chosen anchors with all scores.
        subspace: what was retained.
        report: what was done and reached; see docs/method.md.
        path: where the adapter was saved, if it was.
    """

    model: PeftModel
    anchors: Anchors
    subspace: RetainedSubspace | None
    report: dict[str, Any] = field(default_factory=dict)
    path: Path | None = None


@shows_progress
def erase(
    model: nn.Module,
    processor: Any,
    concept: str | Concept,
    public_images: Any,
    *,
    text_knowledge: Literal["keep", "erase"] = "keep",
    retain: Retain | None = None,
    config: SpaceConfig | None = None,
    args: SpaceTrainingArguments | None = None,
    output_dir: str | Path | None = None,
    seed: int = 0,
    energy: float | None = 0.999,
    anchors: Anchors | None = None,
    batch_size: int = 64,
    progress: Listener | bool | None = True,
) -> ErasureResult:
    """Erases a concept from a vision-language model, given its name and any public images.

    Args:
        model: what `AutoModelForImageTextToText.from_pretrained` gives. It is wrapped in place, as `get_peft_model`
            does; its own weights do not change.
        processor: the model's own.
        concept: the name, or a `Concept` that also says how the model is asked.
        public_images: a list of PIL images, a folder, a data set with an image column or a Hub data-set id. No image
            of the concept is needed.
        text_knowledge: "keep": the concept is no longer recognised in images, and text facts stay. "erase": asked in
            text about the name, the model no longer tells them either.
        retain: what must stay; by default drawn from the public images and built-in prompts.
        config: the adapter; by default rank 16 on the language model's attention and MLP.
        args: the training; the dose sets itself.
        output_dir: where to save the adapter, its report and the contact sheet of the anchors.
        seed: of everything that is drawn.
        energy: share of the retained inputs' energy whose outputs are held; `None` holds nothing (a control).
        anchors: chosen beforehand with `select_anchors`, where its defaults do not fit. They bring their own concept
            and public images.
        batch_size: images or prompts at a time outside of training.
        progress: whether to show bars, on standard error; or whom to call instead, with a stage's name, what is being
            done in it, the units done and all its units.

    Returns:
        The erased model, its anchors, the retained subspace and the report. `report["reached"]` says whether the dose
        was reached; where it was not, what there is comes back all the same, marked so.

    Raises:
        ValueError: an argument is out of range, an image set yields too few anchors, or the folder is not empty.
        TypeError: the model cannot be asked about images.
    """
    if text_knowledge not in ("keep", "erase"):
        raise ValueError(f'`text_knowledge` must be "keep" or "erase"; got {text_knowledge!r}.')
    if output_dir is not None:
        check_output(output_dir)
    check_multimodal(model)
    if "default" in present_adapters(model):
        raise ValueError("`model` must not hold an adapter named 'default'; merge it or delete it first.")
    concept, retain = Concept.of(concept), retain or Retain()
    config = config or SpaceConfig(r=16, lora_alpha=16, concept=concept.name)
    args = args or SpaceTrainingArguments(seed=seed)
    scratch = None
    if args.save_strategy == "no":
        # the Trainer makes its folder even if it has nothing to write
        scratch, args = tempfile.TemporaryDirectory(), copy.copy(args)
        args.output_dir = scratch.name
    stages = Stages(progress if callable(progress) else None)
    set_seed(seed)

    with stages.stage("images"):
        public = load_public_images(public_images)
    with stages.stage("anchors"):
        anchors = anchors or select_anchors(model, processor, concept, public, batch_size=batch_size)
        concept, public = anchors.concept, anchors.public
    with stages.stage("knowledge"):
        seen = public.take([*anchors.unrelated(128, seed), *anchors.indices]).images
        naming = naming_questions(model, processor, anchors, retain.questions, batch_size=batch_size)
        others = other_names(model, processor, concept, seen, naming, batch_size=batch_size)
        knowledge = elicit(model, processor, concept, others)
        gauges = build_gauges(model, processor, anchors, knowledge, naming, retain.questions, text_knowledge)
        lessons = anchor_lessons(
            model,
            processor,
            anchors,
            knowledge,
            retain.questions,
            naming,
            text_knowledge=text_knowledge,
            batch_size=batch_size,
            seed=seed,
        )
    with stages.stage("retained subspace"):
        retained = gather_retained(
            model,
            processor,
            anchors,
            knowledge,
            retain,
            text_knowledge=text_knowledge,
            batch_size=batch_size,
            seed=seed,
        )
        kept, held_out = retained.split(max(1, min(96, len(retained) // 10)), seed)
        kept = kept.balanced(retain.texts, concept.asked_in_text)
        lessons = [*varied(lessons, seed), *kept.lessons(len(lessons) // 4, seed)]
        peft_model = get_peft_model(model, config)
        subspace = None
        if energy is not None:
            subspace = fit_retained_subspace(
                peft_model, kept.batches(processor, batch_size), targeted_modules(peft_model), energy=energy
            )
            attach_subspace(peft_model, subspace)
        held_out_batches = list(held_out.batches(processor, batch_size))
    with stages.stage("training"):
        phrases = [*concept.names, *(word for words in knowledge.telling for word in words)]
        trainer = SpaceTrainer(
            peft_model,
            args,
            Lessons(lessons),
            processor,
            concept_directions(peft_model, processor, phrases),
            gauges=gauges,
            measure_leak=lambda: leak(peft_model, held_out_batches).mean,
        )
        entropy = anchor_entropy(peft_model, processor, lessons)
        try:
            trainer.train()
        except FloatingPointError as error:
            warnings.warn(f"training stopped, the last good adapter is kept: {error}", stacklevel=2)
        bake(peft_model)
        peft_model.eval()
        if scratch is not None:
            scratch.cleanup()
    with stages.stage("report"):
        report = _report(concept, text_knowledge, seed, anchors, subspace, trainer, gauges)
        measured = leak(peft_model, held_out_batches)
        report["leak"] = {"mean": measured.mean, "max": measured.max}
        report["spectral_entropy"] = {"before": entropy, "after": anchor_entropy(peft_model, processor, lessons)}
        told = generate(peft_model, processor, [Prompt(question) for question in concept.asked_in_text])
        report["told_in_text"] = [
            {"question": question, "before": before, "after": after}
            for question, before, after in zip(concept.asked_in_text, knowledge.answers, told, strict=True)
        ]
    report["seconds"] = stages.seconds
    # where `push_to_hub` finds it
    config.record = config.record | report
    result = ErasureResult(peft_model, anchors, subspace, report)
    if output_dir is not None:
        result.path = Path(output_dir)
        with whole_folder(output_dir) as draft:
            save_erasure_adapter(peft_model, draft)
            anchors.contact_sheet().save(draft / "anchors.png")
            anchors.write_scores(draft / "anchors.csv")
    return result


def _report(concept, text_knowledge, seed, anchors, subspace, trainer, gauges) -> dict[str, Any]:
    last = next((r for r in reversed(trainer.readings) if all(map(math.isfinite, r.levels))), None)
    return {
        "concept": concept.name,
        "aliases": list(concept.aliases),
        "text_knowledge": text_knowledge,
        "seed": seed,
        "anchors": anchors.diagnostics(),
        "anchor_images": anchor_images(anchors),
        "steps": trainer.state.global_step,
        "stopped": trainer.stopped,
        "reached": bool(last and last.reached and tied_to_name(gauges)),
        "monitor_tied": tied_to_name(gauges),
        "gauges": [
            {"about": gauge.about, "before": gauge.base, "after": level, "reference": gauge.reference}
            for gauge, level in zip(gauges, last.levels if last else [], strict=False)
        ],
        "readings": [{"step": r.step, "leak": r.leak, "levels": list(r.levels)} for r in trainer.readings],
        "losses": [entry for entry in trainer.state.log_history if "loss" in entry],
        "kept_rank": {key: basis.shape[1] for key, basis in subspace.bases.items()} if subspace else {},
    }
