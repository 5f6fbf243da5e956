"""Measures what becomes of a model that must forget one creature after another.

    python -m tests.benchmarks.erasure_sequence OUTPUT.json [--method space graddiff] [--creatures ...] [--seed 0]

After each of the erasures, each an adapter of its own beside the earlier ones: how many held-out renders of every
erased creature are still called by its name, and how many of the retained ones are named rightly. After the last one,
of each of them, what else its exam asks about it, and the audit's wordings; and whether one comes back while the
others' names alone are trained on. `graddiff` is plain LoRA of the same rank on the same anchors, trained by gradient
difference (ascent on the name, descent on what must stay). The curves are drawn beside the output.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from peft_space import Anchors, erase, leak, select_anchors, testbed
from peft_space.attacks.aims import LABELS, Aims, Shown
from peft_space.attacks.relearning import Budget, relearn
from peft_space.attacks.sides import ERASED, Sides
from peft_space.testbed import Exam, questions
from peft_space.testbed.bestiary import CREATURES, creature
from peft_space.testbed.measure import Sheet, pictures
from peft_space.tuner import default_targets
from peft_space.vlm import Prompt, answer_log_probability, encode, generate, log_likelihood, prompt_batches, to_device

from .audit import audited, subjects, summary
from .runs import read, write

# two of each family that nothing was tuned on
SEQUENCE = ("narril", "zormok", "tevora", "nartus", "sebgup", "malwen", "lumril", "sebvex")

_OWN_MARKS = (
    "forget_accuracy",
    "forget_accuracy_paraphrase",
    "forget_accuracy_description",
    "target_attributes",
    "indirect_knowledge",
    "text_facts_target",
    "general",
)
"""Of `Marks`: those about the target, which hold no name of another creature, and other text knowledge."""

GRADDIFF_LEARNING_RATE = 3e-4
"""At 1e-3 half of the names that should have stayed were gone after four erasures."""


def sheet_of(seed: int, n_images: int = 12) -> Sheet:
    """Held-out renders of every creature, each asked for its name in a trained and in a held-out phrasing."""
    sheet = Sheet()
    for known in CREATURES:
        for number, (scene, picture) in enumerate(pictures(known, n_images, seed)):
            naming = [asked for asked in questions.about_picture(scene) if asked.about == "name"]
            for held_out in (False, True):
                pool = [asked for asked in naming if asked.held_out is held_out]
                asked = pool[number % len(pool)]
                sheet.ask(Prompt(asked.question, picture), asked.answer, known.name)
    return sheet


def mark(model: nn.Module, processor: Any, sheet: Sheet, erased: Sequence[str]) -> dict[str, Any]:
    """Forget accuracy of each erased creature, and the share of right names over all others."""
    rates = sheet.rates(generate(model, processor, sheet.prompts, max_new_tokens=14, batch_size=128))
    kept = [rate for (name,), rate in rates.items() if name not in erased]
    return {"forget": {name: rates[(name,)] for name in erased}, "retain": sum(kept) / len(kept), "worst": min(kept)}


def what_is_left(model: nn.Module, processor: Any, name: str, erased: Sequence[str], seed: int) -> dict[str, Any]:
    """What the exam of an erased creature asks about itself, and what the audit's wordings draw out.

    Other erased creatures are among nobody's foils or controls.
    """
    marks, _ = Exam(name, seed=seed).sit(model, processor)
    report = audited(model, processor, name, seed, without=erased, attacks=["wording"])
    return {
        "exam": {key: getattr(marks, key) for key in _OWN_MARKS},
        "wordings": [summary(report, outcome.key) for outcome in report.outcomes],
        "unknown": dict(report.unknown),
    }


def others_alone(
    model: nn.Module, processor: Any, sheet: Sheet, erased: Sequence[str], seed: int
) -> list[dict[str, Any]]:
    """What comes back of each erased name while the others' pictures are trained on, once for all of them.

    Returns:
        For each method and learning rate, the area under the curve of forget accuracy over steps, by name, and the
        least of the others' right names on the way.
    """
    budget, sides = Budget(), Sides(model, processor)
    _, others = subjects(erased[0], seed, without=erased)
    held = tuple(Shown(one.image, (one.answer,), place) for place, one in enumerate(others.examples))
    aims = Aims(testbed.concept(erased[0]), (), (), (), held, whose="", truth=LABELS, data="")
    rows = []
    for method, rates in budget.learning_rates:
        for rate in rates:
            curve = relearn(
                sides.copied(ERASED),
                processor,
                aims,
                lambda attacked: mark(attacked, processor, sheet, erased),
                method=method,
                n_images=0,
                learning_rate=rate,
                budget=budget,
                seed=seed,
            )
            told = {name: [marks["forget"][name] for marks in curve.scores] for name in erased}
            area = {name: float(np.trapezoid(y, curve.steps)) / curve.steps[-1] for name, y in told.items()}
            kept = min(marks["retain"] for marks in curve.scores)
            rows.append({"attack": method, "learning_rate": rate, "area": area, "retain": kept})
    return rows


def run(method: str, sequence: Sequence[str], seed: int, save: Callable[[list[dict[str, Any]]], None]) -> None:
    """Erases one creature after the other; the marks after each, and what is left at the end, are handed to `save`."""
    model, processor = testbed.load()
    public = testbed.public_images(sequence, seed=seed)
    sheet = sheet_of(seed)
    steps = [{"method": method, "erased": [], **mark(model, processor, sheet, [])}]
    save(steps)
    previous: list[Anchors] = []
    for place, name in enumerate(sequence):
        began = time.perf_counter()
        adapter = "default" if not place else f"erasure-{place + 1}"
        facts = {"space": _space, "graddiff": _graddiff}[method](
            model, processor, name, public, previous, adapter, seed
        )
        model = facts.pop("model")
        seconds = round(time.perf_counter() - began, 1)
        marks = mark(model, processor, sheet, sequence[: place + 1])
        steps.append({"method": method, "erased": list(sequence[: place + 1]), **marks, **facts, "seconds": seconds})
        save(steps)
        forget = steps[-1]["forget"].values()
        print(
            f"{method} {place + 1} {name}: FA {sum(forget) / len(forget):.3f} mean, {max(forget):.2f} worst; retained "
            f"{marks['retain']:.3f}, worst {marks['worst']:.2f}; {facts}, {seconds} s",
            flush=True,
        )
    for name in sequence:
        left = what_is_left(model, processor, name, sequence, seed)
        steps[-1].setdefault("left", {})[name] = left
        save(steps)
        told = max(left["wordings"], key=lambda row: row["told"]["erased"])
        print(f"{method} {name}: {left['exam']}; told most: {told['key']} {told['told']['erased']:.2f}", flush=True)
    steps[-1]["others_alone"] = others_alone(model, processor, sheet, sequence, seed)
    save(steps)
    print(f"{method}, trained on others alone: {steps[-1]['others_alone']}", flush=True)


def _space(model, processor, name, public, previous, adapter, seed) -> dict[str, Any]:
    result = erase(
        model,
        processor,
        testbed.concept(name),
        public,
        retain=testbed.retain(),
        seed=seed,
        previous=previous,
        adapter_name=adapter,
        progress=None,
    )
    previous.append(result.anchors)
    report = result.report
    kept = {key: report[key] for key in ("steps", "reached", "leak")} | {"composed": report.get("leak_composed")}
    return {"model": result.model, **kept}


def _graddiff(model, processor, name, public, previous, adapter, seed, most: int = 120) -> dict[str, Any]:
    """Ascent on the name, descent on what must stay, until the name is as unlikely as SPACE's dose asks for."""
    concept = testbed.concept(name)
    anchors = select_anchors(model, processor, concept, public)
    retain = testbed.retain()
    asked = [*concept.questions, *concept.asked_through_image, *retain.questions]
    images = public.take(anchors.unrelated(256, seed)).images
    stay = [Prompt(asked[place % len(asked)], image) for place, image in enumerate(images)]
    stay += [Prompt(text) for text in (*retain.texts, *concept.asked_in_text)]
    told = generate(model, processor, stay)
    forget = [Prompt(question, image) for image in anchors.images for question in concept.questions]
    monitor = [Prompt(concept.questions[0], image) for image in public.take(anchors.monitor).images]
    config = LoraConfig(r=16, lora_alpha=16, target_modules=default_targets(model))
    if isinstance(model, PeftModel):
        active = list(model.base_model.active_adapters)
        model.add_adapter(adapter, config)
        model.base_model.set_adapter([*active, adapter])
        for earlier in active:
            model.set_requires_grad(earlier, requires_grad=False)
    else:
        model = get_peft_model(model, config, adapter_name=adapter)
    parameters = [p for p in model.parameters() if p.requires_grad]
    adam = torch.optim.AdamW(parameters, lr=GRADDIFF_LEARNING_RATE)
    generator = torch.Generator().manual_seed(seed)

    def likelihood(prompts: Sequence[Prompt], answers: Sequence[str]) -> torch.Tensor:
        total = torch.zeros(())
        for indices in prompt_batches(model, processor, prompts, len(prompts)):
            batch = encode(processor, [prompts[i] for i in indices], [answers[i] for i in indices])
            total = total + answer_log_probability(model, to_device(model, batch)).sum()
        return total / len(prompts)

    step = 0
    for step in range(1, most + 1):
        some = [forget[i] for i in torch.randperm(len(forget), generator=generator)[:16].tolist()]
        rest = torch.randperm(len(stay), generator=generator)[:16].tolist()
        loss = likelihood(some, [name] * len(some)) - likelihood([stay[i] for i in rest], [told[i] for i in rest])
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        adam.step()
        if step % 5 == 0:
            levels = log_likelihood(model, processor, monitor, [name] * len(monitor), per_token=False)
            if float(levels.topk(-(-len(levels) // 4)).values.mean()) < -4:
                break
    held_out = [encode(processor, [prompt]) for prompt in stay[:64]]
    return {"model": model.eval(), "steps": step, "leak": {"mean": leak(model, held_out, adapter).mean}}


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """The worst forget accuracy and the retained naming over the sequence, a line of each kind for each method."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3.4), layout="constrained")
    for number, method in enumerate(dict.fromkeys(row["method"] for row in rows)):
        some = [row for row in rows if row["method"] == method]
        erased = [len(row["erased"]) for row in some]
        axes.plot(erased, [row["retain"] for row in some], color=f"C{number}", marker="o", label=f"{method}: retained")
        worst = [max(row["forget"].values(), default=float("nan")) for row in some]
        axes.plot(erased, worst, color=f"C{number}", marker="x", linestyle="--", label=f"{method}: worst forgotten")
    axes.set(xlabel="concepts erased", ylabel="share called by their names", ylim=(-0.03, 1.03))
    axes.legend(fontsize="small")
    figure.savefig(path)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--method", nargs="+", default=["space", "graddiff"], choices=["space", "graddiff"])
    parser.add_argument("--creatures", nargs="+", default=list(SEQUENCE))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    sequence = [creature(name).name for name in arguments.creatures]
    rows = read(arguments.output)
    for method in arguments.method:
        others = [row for row in rows if row["method"] != method]

        def save(steps: list[dict[str, Any]], others: list[dict[str, Any]] = others) -> None:
            nonlocal rows
            rows = others + steps
            write(arguments.output, rows)

        run(method, sequence, arguments.seed, save)
    draw(rows, arguments.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
