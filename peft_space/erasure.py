"""The whole of SPACE on one page: a concept's name and public images in, an erasure adapter out."""

from __future__ import annotations

import copy
import math
import os
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from peft import PeftModel, PeftType, get_peft_model
from PIL import Image
from torch import nn
from transformers import set_seed

from ._peft import lora_layers, present_adapters
from .adapter import save_erasure_adapter, whole_folder
from .anchors import (
    Anchors,
    Company,
    Knowledge,
    Lesson,
    TooFewAnchors,
    YesNo,
    anchor_lessons,
    elicit,
    evenly_named,
    find_company,
    in_memory,
    index_images,
    names_given,
    naming_questions,
    neighbours,
    other_names,
    relatives,
    select_anchors,
    varied,
    yes_no_questions,
)
from .concepts import Concept, Retain, load_public_images
from .concepts.images import content_key
from .console import shows_progress
from .processes import agree, check_joined, check_whole, leads, place, together
from .progress import Listener, Stages
from .report import adapter_facts, anchor_images, skipped_images, write_json
from .subspace import LOW_MOMENT_BUDGET, MOMENT_BUDGET, RetainedSubspace, fit_retained_subspace, leak
from .training import (
    Gauge,
    Lessons,
    SpaceTrainer,
    SpaceTrainingArguments,
    anchor_entropy,
    build_gauges,
    concept_directions,
    lessons_at_a_time,
    tied_to_name,
)
from .training.retained import Retained, gather_about, gather_retained
from .tuner import SpaceConfig, attach_subspace, bake, targeted_modules
from .unfinished import workplace, writes_output
from .vlm import Prompt, check_multimodal, generate, image_features

_CANDIDATES = 4
"""For each picture that is wanted the model names so many public ones, of which the pictures are then taken."""


@dataclass
class ErasureResult:
    """What `erase` returns.

    Attributes:
        model: the model with the erasure adapter, active and baked into plain LoRA.
        anchors: the chosen anchors with all scores; of several concepts, a tuple.
        subspace: what was retained.
        report: what was done and reached; see docs/method.md.
        path: where the adapter was saved, if it was.
        adapter_name: which adapter of the model it is.
    """

    model: PeftModel
    anchors: Anchors | tuple[Anchors, ...]
    subspace: RetainedSubspace | None
    report: dict[str, Any] = field(default_factory=dict)
    path: Path | None = None
    adapter_name: str = "default"

    def save(self, output_dir: str | os.PathLike[str], report: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Writes the adapter, `report.json`, `anchors.png` and the anchors' scores, all of it or nothing.

        Args:
            output_dir: a folder that is empty or does not exist.
            report: what to write in the place of `self.report`; what the adapter weighs is added to it.

        Returns:
            The report as it was written.
        """
        output_dir = Path(output_dir)
        written = dict(self.report if report is None else report)
        with whole_folder(output_dir) as draft:
            save_erasure_adapter(self.model, draft, self.adapter_name)
            self.contact_sheet().save(draft / "anchors.png")
            joint = isinstance(self.anchors, tuple)
            for number, some in enumerate(self.anchors if isinstance(self.anchors, tuple) else [self.anchors], 1):
                some.write_scores(draft / (f"anchors-{number}.csv" if joint else "anchors.csv"))
            if report is not None:
                written["adapter"] = adapter_facts(draft) | {"path": str(output_dir)}
            write_json(draft / "report.json", written)
        self.path = output_dir
        return written

    def contact_sheet(self) -> Image.Image:
        """The anchors as one picture; those of several concepts one below the other."""
        sheets = [
            some.contact_sheet() for some in (self.anchors if isinstance(self.anchors, tuple) else [self.anchors])
        ]
        whole = Image.new("RGB", (sheets[0].width, sum(sheet.height for sheet in sheets)), "white")
        for number, sheet in enumerate(sheets):
            whole.paste(sheet, (0, sum(above.height for above in sheets[:number])))
        return whole


@together()
@writes_output
@shows_progress
def erase(
    model: nn.Module,
    processor: Any,
    concept: str | Concept | Sequence[str | Concept],
    public_images: Any,
    *,
    text_knowledge: Literal["keep", "erase"] = "keep",
    retain: Retain | None = None,
    config: SpaceConfig | None = None,
    args: SpaceTrainingArguments | None = None,
    output_dir: str | Path | None = None,
    seed: int = 0,
    energy: float | None = 0.999,
    anchors: Anchors | Sequence[Anchors] | None = None,
    previous: Sequence[Anchors] = (),
    leak_budget: float | None = None,
    adapter_name: str = "default",
    cache: str | os.PathLike[str] | None = None,
    batch_size: int = 64,
    low_memory: bool = False,
    progress: Listener | bool | None = True,
) -> ErasureResult:
    """Erases a concept from a vision-language model, given its name and any public images.

    Started by `accelerate launch` or torchrun, all processes call it alike and share the work; all get the same
    adapter, and the first writes the files. See docs/distributed.md.

    Args:
        model: what `AutoModelForImageTextToText.from_pretrained` gives. It is wrapped in place, as `get_peft_model`
            does; its own weights do not change. Or a `PeftModel`: what is active in it stays so, and the new erasure
            is made for the model as it answers with it.
        processor: the model's own.
        concept: the name, or a `Concept` that also says how the model is asked. Several are erased by one adapter.
        public_images: a list of PIL images, a folder of pictures or shards, a data set with an image column, a Hub
            data-set id, or what `index_images` returned. No image of the concept is needed.
        text_knowledge: "keep": the concept is no longer recognised in images, and text facts stay. "erase": asked in
            text about the name, the model no longer tells them either.
        retain: what must stay; by default drawn from the public images and built-in prompts.
        config: the adapter; by default rank 16 on the language model's attention and MLP.
        args: the training; the dose sets itself. By default several concepts may take more steps and leak more; see
            `SpaceTrainingArguments.of_several`.
        output_dir: where to save the adapter, its report and the contact sheet of the anchors. A call that was
            stopped while it trained goes on where the same call finds what it kept beside.
        seed: of everything that is drawn.
        energy: share of the retained inputs' energy whose outputs are held; `None` holds nothing (a control).
        anchors: chosen beforehand with `select_anchors`, where its defaults do not fit; for several concepts one
            each. They bring their own concept and public images.
        previous: the anchors of earlier erasures in `model`: what it answers about them now is retained.
        leak_budget: what all erasures in the model may leak together, as a sum of their recorded means. Training
            stops where it would be passed; an adapter that passes it all the same is weakened until it does not.
        adapter_name: name of the new adapter; a second erasure needs a name of its own.
        cache: folder for the public images' features, which another erasure then finds there; see `index_images`.
        batch_size: most images or prompts at a time outside of training; of pictures with many tokens fewer are taken.
        low_memory: take as little of the GPU's memory as possible, for more time: one image, prompt or lesson at a
            time, the retained bases on the CPU and fewer layers' statistics at a time. See docs/memory.md.
        progress: whether to show bars, on standard error; or whom to call instead, with a stage's name, what is being
            done in it, the units done and all its units.

    Returns:
        The erased model, its anchors, the retained subspace and the report. `report["reached"]` says whether the dose
        was reached; where it was not, what there is comes back all the same, marked so.

    Raises:
        ValueError: an argument is out of range, an image set yields too few anchors, the folder is not empty, the
            erasures that are in the model have spent `leak_budget`, or several processes were called with different
            things or hold a model in pieces.
        TypeError: the model cannot be asked about images.
        ProcessFailed: another process failed; with what it said.
    """
    if text_knowledge not in ("keep", "erase"):
        raise ValueError(f'`text_knowledge` must be "keep" or "erase"; got {text_knowledge!r}.')
    check_multimodal(model)
    check_whole(model, args)
    if adapter_name in present_adapters(model):
        raise ValueError(
            f"`model` must not hold an adapter named {adapter_name!r}; merge it, delete it, or pass another "
            "`adapter_name`."
        )
    joint = isinstance(concept, (list, tuple))
    wanted: Sequence[Any] = concept if isinstance(concept, (list, tuple)) else [concept]
    concepts = [Concept.of(one) for one in wanted]
    if not concepts or len({one.name.lower() for one in concepts}) < len(concepts):
        raise ValueError(f"`concept` must be one or several different ones; got {[one.name for one in concepts]}.")
    given = [anchors] if isinstance(anchors, Anchors) else list(anchors or ())
    if given and len(given) != len(concepts):
        raise ValueError(f"`anchors` must be given for each of {len(concepts)} concepts; got {len(given)}.")
    spent = _leaks_of_active(model)
    if leak_budget is not None and sum(spent.values()) >= leak_budget:
        raise ValueError(
            f"`leak_budget` (={leak_budget}) is spent: the erasures in the model leak {sum(spent.values()):.4f} "
            f"together ({', '.join(f'{name} {share:.4f}' for name, share in spent.items())}). Raise it, or take an "
            "erasure off."
        )
    left = math.inf if leak_budget is None else leak_budget - sum(spent.values())
    retain = retain or Retain()
    protected = [one if isinstance(one, Concept) else concepts[0].called(one) for one in retain.protect]
    if both := {name.lower() for one in concepts for name in one.names} & {
        name.lower() for one in protected for name in one.names
    }:
        raise ValueError(f"`retain.protect` must not hold what is to be erased; got {sorted(both)}.")
    name = ", ".join(one.name for one in concepts)
    config = config or SpaceConfig(r=16, lora_alpha=16, concept=name)
    args = copy.copy(args or SpaceTrainingArguments.of_several(len(concepts), seed=seed))
    check_joined(args)
    if low_memory:
        batch_size = args.per_device_eval_batch_size = 1
    args.leak_budget = min(args.leak_budget, left)
    scratch = None
    if args.save_strategy == "no":
        # the Trainer makes its folder even if it has nothing to write
        scratch = tempfile.TemporaryDirectory(prefix="peft-space-")
        args.output_dir = scratch.name
    stages = Stages(progress if callable(progress) else None)
    agree(concept=[one.names for one in concepts], seed=seed, text_knowledge=text_knowledge)
    set_seed(seed)

    with stages.stage("images"):
        # pictures that are not in memory stay where they are: only their features are gathered
        public, features = public_images, None
        if cache is None and in_memory(public_images):
            public = load_public_images(public_images)
            if not given or protected or retain.relatives:
                features = image_features(model, processor, public.images, batch_size=batch_size)
        elif not given or protected or retain.relatives:
            public = index_images(model, processor, public_images, cache, batch_size=batch_size)
    with stages.stage("anchors"):
        anchors_of = partial(
            select_anchors, model, processor, public_images=public, features=features, batch_size=batch_size
        )
        chosen = given or [anchors_of(one) for one in concepts]
        near = [_apart(anchors_of(one), chosen) for one in protected]
        agree(anchors=[[some.public.ids[index] for index in some.indices] for some in (*chosen, *near)])
    with stages.stage("knowledge"):
        shared = replace(retain, n_images=max(1, retain.n_images // len(chosen)))
        studies = [
            _study(model, processor, some, chosen, shared, text_knowledge, batch_size=batch_size, seed=seed)
            for some in chosen
        ]
        near += _anchors_of_relatives(processor, studies, protected, retain.relatives, anchors_of)
        agree(relatives=[[some.public.ids[index] for index in some.indices] for some in near])
    with stages.stage("retained subspace"):
        retained = Retained.of(
            *(
                gather_retained(
                    model,
                    processor,
                    study.anchors,
                    study.knowledge,
                    shared,
                    study.away,
                    study.yes_no,
                    study.company.questions,
                    text_knowledge=text_knowledge,
                    batch_size=batch_size,
                    seed=seed,
                )
                for study in studies
            ),
            *(
                gather_about(model, processor, some, batch_size=batch_size, seed=seed)
                for some in (*(_apart(earlier, chosen) for earlier in previous), *near)
            ),
        ).without([one.concept for one in chosen])
        kept, held_out = retained.split(max(1, min(96, len(retained) // 10)), seed)
        kept = kept.balanced(retain.texts, *(study.anchors.concept.asked_in_text for study in studies))
        lessons = [lesson for study in studies for lesson in study.lessons]
        lessons = [*varied(lessons, seed), *kept.lessons(len(lessons) // 4, seed)]
        peft_model = _with_adapter(model, config, adapter_name)
        subspace = None
        if energy is not None:
            subspace = fit_retained_subspace(
                peft_model,
                kept.batches(peft_model, processor, batch_size),
                targeted_modules(peft_model, adapter_name),
                energy=energy,
                adapters=isinstance(model, PeftModel),
                budget=LOW_MOMENT_BUDGET if low_memory else MOMENT_BUDGET,
            )
            attach_subspace(peft_model, subspace, adapter_name, on_cpu=low_memory)
        held_out_batches = list(held_out.batches(peft_model, processor, batch_size))
    with stages.stage("training"):
        gauges = [gauge for study in studies for gauge in study.gauges]
        phrases = [phrase for study in studies for phrase in study.phrases]
        at_a_time = 1
        if not low_memory:
            at_a_time = lessons_at_a_time(peft_model, processor, lessons, args.per_device_train_batch_size)
        trainer = SpaceTrainer(
            peft_model,
            args.in_small_batches(at_a_time * place()[1]),
            Lessons(lessons),
            processor,
            concept_directions(peft_model, processor, phrases),
            gauges=gauges,
            measure_leak=lambda: leak(peft_model, held_out_batches, adapter_name).mean,
            relearned=[lesson for study in studies for lesson in study.relearned] if args.relearning_radius else (),
            keep_in=None if (place_of_work := workplace()) is None else place_of_work / "training",
        )
        entropy = anchor_entropy(peft_model, processor, lessons, batch_size)
        try:
            trainer.train()
        except FloatingPointError as error:
            warnings.warn(f"training stopped, the last good adapter is kept: {error}", stacklevel=2)
        bake(peft_model, adapter_name)
        peft_model.eval()
        if scratch is not None:
            scratch.cleanup()
    with stages.stage("report"):
        measured = leak(peft_model, held_out_batches, adapter_name)
        strength = min(1.0, left / measured.mean) if measured.mean > 0 else 1.0
        if strength < 1:
            _weaken(peft_model, adapter_name, strength)
        report = {
            "concept": name,
            "aliases": [alias for one in concepts for alias in (one.names if joint else one.aliases)],
            "text_knowledge": text_knowledge,
            "seed": seed,
            "anchors": [some.diagnostics() for some in chosen] if joint else chosen[0].diagnostics(),
            "anchor_images": anchor_images(*chosen),
            "protected": {some.concept.name: len(some) for some in near},
            "skipped_images": skipped_images(chosen[0].public.skipped),
            **_dose(trainer, gauges, strength),
            "kept_rank": {key: basis.shape[1] for key, basis in subspace.bases.items()} if subspace else {},
            "spectrum": {key: record.outside() for key, record in subspace.records.items()} if subspace else {},
            "leak": {
                "mean": measured.mean * strength,
                "max": measured.max * strength,
                "per_module": {layer: share * strength for layer, share in measured.per_module.items()},
            },
            "strength": strength,
            "spectral_entropy": {
                "before": entropy,
                "after": anchor_entropy(peft_model, processor, lessons, batch_size),
            },
            "told_in_text": [row for study in studies for row in study.told_in_text(peft_model, processor)],
        }
        if spent:
            report["leak_composed"] = {
                "sum": sum(spent.values()) + report["leak"]["mean"],
                "measured": leak(peft_model, held_out_batches).mean,
            }
    report["seconds"] = stages.seconds
    # where `push_to_hub` finds it
    peft_model.peft_config[adapter_name].record |= report
    result = ErasureResult(
        peft_model, tuple(chosen) if joint else chosen[0], subspace, report, adapter_name=adapter_name
    )
    if output_dir is not None:
        result.path = Path(output_dir)
        if leads():
            result.save(output_dir)
    return result


def _apart(some: Anchors, chosen: Sequence[Anchors]) -> Anchors:
    """`some` without the images that the concepts to erase need."""
    taken = {content_key(one.public.images[place]) for one in chosen for place in (*one.indices, *one.monitor)}
    return replace(some, indices=tuple(i for i in some.indices if content_key(some.public.images[i]) not in taken))


def _anchors_of_relatives(
    processor: Any,
    studies: Sequence[_Study],
    protected: Sequence[Concept],
    most: int,
    anchors_of: Callable[[Concept], Anchors],
) -> list[Anchors]:
    """Anchors of the names that come close to a concept's, but for those that are protected anyway.

    `most` that are made of the same pieces, and those whose pictures look most like it.
    Where public images yield too few, that one goes without: nobody asked for it.
    """
    known = {name.lower() for one in protected for name in one.names}
    known |= {name.lower() for study in studies for name in study.anchors.concept.names}
    found = []
    for study in studies:
        concept = study.anchors.concept
        for name in (*relatives(processor, concept, study.names, most), *study.neighbours):
            if name.lower() not in known:
                known.add(name.lower())
                with suppress(TooFewAnchors):
                    found.append(_apart(anchors_of(concept.called(name)), [one.anchors for one in studies]))
    return found


@dataclass(frozen=True)
class _Study:
    """What the model as it is knows of one concept, and what is to be done about it."""

    anchors: Anchors
    knowledge: Knowledge
    called: Mapping[int, str]
    away: Sequence[tuple[Image.Image, str]]
    neighbours: Sequence[str]
    yes_no: Sequence[YesNo]
    company: Company
    gauges: Sequence[Gauge]
    lessons: Sequence[Lesson]

    @property
    def phrases(self) -> list[str]:
        """What the anchors' answers are repelled from."""
        return [*self.anchors.concept.names, *(word for words in self.knowledge.telling for word in words)]

    @property
    def names(self) -> list[str]:
        """Names that the model gives to more than one public image, most frequent first."""
        counts = Counter(self.called.values())
        return [name for name, count in counts.most_common() if count > 1 and name]

    @property
    def relearned(self) -> list[Lesson]:
        """What somebody would teach who wants the name back."""
        concept = self.anchors.concept
        asked = [Prompt(question, image) for image in self.anchors.images for question in concept.questions]
        return [Lesson(prompt, concept.name, "name") for prompt in asked]

    def told_in_text(self, model: nn.Module, processor: Any) -> list[dict[str, str]]:
        """The concept's text questions with the answers before and now."""
        questions = self.anchors.concept.asked_in_text
        told = generate(model, processor, [Prompt(question) for question in questions])
        return [
            {"question": question, "before": before, "after": after}
            for question, before, after in zip(questions, self.knowledge.answers, told, strict=True)
        ]


def _study(
    model: nn.Module,
    processor: Any,
    anchors: Anchors,
    among: Sequence[Anchors],
    retain: Retain,
    text_knowledge: Literal["keep", "erase"],
    *,
    batch_size: int,
    seed: int,
) -> _Study:
    """Asks the model about one concept; none of the others that go with it may stand in for it."""
    names = [name for some in among if some is not anchors for name in some.concept.names]
    unsaid = replace(anchors.concept, aliases=(*anchors.concept.aliases, *names))
    seen = anchors.public.take([*anchors.unrelated(128, seed), *anchors.indices]).images
    naming = naming_questions(model, processor, anchors, retain.questions, batch_size=batch_size)
    others = other_names(model, processor, unsaid, seen, naming, batch_size=batch_size)
    knowledge = elicit(model, processor, anchors.concept, others)
    yes_no = yes_no_questions(model, processor, anchors, seed=seed, batch_size=batch_size)
    n_images = _CANDIDATES * retain.n_images
    called: Mapping[int, str] = {}
    if retain.images is None or retain.relatives or yes_no:
        called = names_given(model, processor, anchors, n_images, batch_size=batch_size, seed=seed)
    drawn = evenly_named(anchors.concept, called, retain.n_images)
    away = [*zip(anchors.public.take([*drawn]).images, drawn.values(), strict=True)]
    nearby: Sequence[str] = ()
    if retain.relatives:
        # where a general word takes the place of their names, nothing else holds them
        general = anchors.concept.generic_question is not None
        most = retain.relatives if general else -(-retain.relatives // 2)
        nearby = neighbours(model, processor, anchors, others, called, batch_size=batch_size)[:most]
    company = find_company(model, processor, anchors, retain.questions, n_images, batch_size=batch_size, seed=seed)
    gauges = build_gauges(
        model,
        processor,
        anchors,
        knowledge,
        naming,
        retain.questions,
        text_knowledge,
        yes_no=yes_no,
        company=company,
        batch_size=batch_size,
        seed=seed,
    )
    lessons = anchor_lessons(
        model,
        processor,
        replace(anchors, concept=unsaid),
        knowledge,
        retain.questions,
        naming,
        yes_no,
        company,
        away,
        text_knowledge=text_knowledge,
        batch_size=batch_size,
        seed=seed,
    )
    return _Study(anchors, knowledge, called, away, nearby, yes_no, company, gauges, lessons)


def _with_adapter(model: nn.Module, config: SpaceConfig, adapter_name: str) -> PeftModel:
    """The model with one more adapter, the only one to be trained; those that were active stay so."""
    if not isinstance(model, PeftModel):
        return get_peft_model(model, config, adapter_name=adapter_name)
    if model.peft_type == PeftType.LORA:
        # the tuner of an ordinary LoRA can't hold a subspace: SPACE's own leaves what is active in the model active
        return get_peft_model(model.get_base_model(), config, adapter_name=adapter_name)
    active = list(model.base_model.active_adapters)
    model.add_adapter(adapter_name, config)
    model.base_model.set_adapter([*active, adapter_name])
    for earlier in active:
        model.set_requires_grad(earlier, requires_grad=False)
    return model


def _leaks_of_active(model: nn.Module) -> dict[str, float]:
    """What each of the erasures that are active in a model was measured to leak."""
    if not isinstance(model, PeftModel):
        return {}
    leaks = {}
    for name in model.base_model.active_adapters:
        config = model.peft_config[name]
        if not isinstance(config, SpaceConfig):
            continue
        if "leak" not in config.record:
            raise ValueError(
                f"`model` must hold erasures whose leak was measured; the adapter {name!r} has none in its record. "
                "Merge it first."
            )
        leaks[name] = float(config.record["leak"]["mean"])
    return leaks


def _weaken(model: PeftModel, adapter_name: str, strength: float) -> None:
    with torch.no_grad():
        for _, layer in lora_layers(model.get_base_model(), adapter_name):
            layer.lora_B[adapter_name].weight.mul_(strength)


def _dose(trainer: SpaceTrainer, gauges: Sequence[Gauge], strength: float) -> dict[str, Any]:
    """How far the training came. An adapter that was weakened afterwards has not kept its dose."""
    last = next((r for r in reversed(trainer.readings) if all(map(math.isfinite, r.levels))), None)
    tied = tied_to_name(gauges)
    return {
        "steps": trainer.state.global_step,
        "stopped": trainer.stopped,
        "reached": bool(last and last.reached and tied and strength == 1),
        "monitor_tied": tied,
        "gauges": [
            {"about": gauge.about, "before": gauge.base, "after": level, "reference": gauge.reference}
            for gauge, level in zip(gauges, last.levels if last else [], strict=False)
        ],
        "readings": [{"step": r.step, "leak": r.leak, "levels": list(r.levels)} for r in trainer.readings],
        "losses": [entry for entry in trainer.state.log_history if "loss" in entry],
    }
