"""Measures erasure on a test bed: every creature of the families that nothing was tuned on, and the controls.

    python -m tests.benchmarks.erasure_table OUTPUT.json [--creatures ...] [--seeds 0 1] [--variants keep erase ...]
    python -m tests.benchmarks.erasure_table OUTPUT.json --bed {digits,persons} [--public {close,far}] [--folder DIR]

Nothing was tuned on the beds of `tests.beds`, so that every name of theirs is measured; a model that is not in DIR yet
is trained first, which takes about an hour. `--public far` erases on photographs, textures, objects and letters.
Runs that are in OUTPUT.json already are not repeated; `--show` only prints the table of what is there, as Markdown.
`--oracles FOLDER` adds the retrain oracles in FOLDER, each in a folder called after the creature it never saw:
`python -m peft_space.testbed.recipe FOLDER/narril --without narril`, or `python -m tests.beds` for another bed.
"""

from __future__ import annotations

import argparse
import dataclasses
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from peft import PeftModel

from peft_space import Retain, SpaceConfig, load_erasure, testbed
from peft_space.adapter import merge_and_save, save_erasure_adapter
from peft_space.anchors import Anchors, select_anchors
from peft_space.erasure import erase
from peft_space.subspace import leak, leak_between
from peft_space.testbed.bestiary import CREATURES
from peft_space.training import SpaceTrainingArguments
from peft_space.vlm import encode, prompt_batches

from ..beds import far
from ..beds.worlds import BEDS, add_bed, model_folder, world
from .runs import gather, read, write

HELD_OUT = tuple(creature.name for creature in CREATURES if creature.family not in testbed.TUNING_FAMILIES)
RETAINED = ("retained", "text, others", "general")
"""Topics of the exam that an erasure must leave as they are."""

ON_DISK = ("keep", "no null space")
"""Variants whose leak is measured after saving and merging too."""
SHOWN = {
    "retain_near": "names of the target's family members (near)",
    "retain_far": "names of all other creatures (far)",
    "retain_compare": "all other creatures, by yes or no and of two names",
    "target_attributes": "what can be seen of target images",
    "indirect_knowledge": "the target's facts told from its image alone",
    "text_facts_retained": "text facts of all other creatures",
    "text_facts_target": "text facts of the target",
    "general": "other text knowledge",
    "misidentified": "target images given another creature's name",
}
"""The exam's marks that are shown as means."""
IN_GROUPS = {
    "group_forget_accuracy": "target still named in pictures of two",
    "group_other": "... where the other one is named rightly",
    "group_without": "names in pictures of two others",
}
"""Those of a bed that has pictures of two."""
LEAKS = {
    "mean": "leak on held-out retained inputs, mean over layers",
    "loaded": "... on the exam's retained questions, after save and load",
    "merged": "... and after the merge",
}


def _random_anchors(anchors: Anchors, seed: int) -> Anchors:
    """As many images as before, drawn from the whole public set."""
    order = np.random.default_rng([seed, 9]).permutation(len(anchors.public)).tolist()
    free = [index for index in order if index not in anchors.monitor]
    return dataclasses.replace(anchors, indices=tuple(free[: len(anchors)]))


def _protecting(world: Any, near: tuple[str, ...]) -> Retain:
    """What the test bed retains, and every member of the target's family by name."""
    return dataclasses.replace(world.retain(), protect=tuple(map(world.concept, near)))


# What differs from the defaults: settings of `erase`, of the training, of what stays, and what is done to the anchors.
VARIANTS: dict[str, dict[str, Any]] = {
    "keep": {},
    "erase": {"erase": {"text_knowledge": "erase"}},
    "generic": {"generic": True},
    "drop recognised": {"drop_recognised": True},
    "no L_orth": {"args": {"lambda_anchor": 0.0}},
    "no L_div": {"args": {"lambda_diversity": 0.0}},
    "no null space": {"erase": {"energy": None}, "args": {"leak_budget": 1e9}},
    "random anchors": {"anchors": _random_anchors},
    "one anchor": {"anchors": lambda anchors, seed: dataclasses.replace(anchors, indices=anchors.indices[:1])},
    "built-in retain": {"retain": lambda world, near: Retain()},
    "64 pictures": {"retain": lambda world, near: dataclasses.replace(world.retain(), n_images=64)},
    "no texts": {"retain": lambda world, near: dataclasses.replace(world.retain(), texts=())},
    "protect family": {"retain": _protecting},
    "no relatives": {"retain": lambda world, near: dataclasses.replace(world.retain(), relatives=0)},
    "guard": {"args": {"relearning_radius": 0.01}},
    "rank 8": {"erase": {"config": SpaceConfig(r=8, lora_alpha=8)}},
}


def run(
    target: str,
    seed: int,
    variant: str,
    before: dict[str, Any] | None = None,
    bed: str = "bestiary",
    public_set: str = "close",
    folder: str | None = None,
) -> dict[str, Any]:
    """Erases `target` and lets the model sit the exam with the adapter off and on.

    Args:
        before: the base model's marks, where another run has them already.
        bed: key of `BEDS`.
        public_set: `"close"` for the bed's own, `"far"` for pictures of another kind.
        folder: where the bed's trained model lies.
    """
    change = VARIANTS[variant]
    there = world(bed, folder)
    model, processor = there.load()
    exam = there.Exam(target, seed=seed)
    before = before or dataclasses.asdict(exam.sit(model, processor)[0])
    began = time.perf_counter()
    concept = there.concept(target, generic=change.get("generic", False))
    public = there.public_images(target, seed=seed) if public_set == "close" else far.public_images(seed=seed)
    alter: Callable[[Anchors, int], Anchors] | None = change.get("anchors")
    anchors = None
    if alter or change.get("drop_recognised"):
        anchors = select_anchors(
            model, processor, concept, public, drop_recognised=change.get("drop_recognised", False)
        )
        anchors = alter(anchors, seed) if alter else anchors
    settings = {"seed": seed} | change.get("args", {})
    result = erase(
        model,
        processor,
        concept,
        public,
        retain=change.get("retain", lambda world, near: world.retain())(there, BEDS[bed].near(target)),
        args=SpaceTrainingArguments(**settings),
        seed=seed,
        anchors=anchors,
        progress=None,
        **change.get("erase", {}),
    )
    seconds = time.perf_counter() - began
    after, _ = exam.sit(result.model, processor)
    report = result.report
    return {
        "bed": bed,
        "public": public_set,
        "target": target,
        "seed": seed,
        "variant": variant,
        "before": before,
        "after": dataclasses.asdict(after),
        "leak": report["leak"] | (_leak_on_disk(result.model, processor, exam, there) if variant in ON_DISK else {}),
        "steps": report["steps"],
        "stopped": report["stopped"],
        "reached": report["reached"],
        "gauges": report["gauges"],
        "stages": report["seconds"],
        "seconds": round(seconds, 1),
        "peak_memory_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def _leak_on_disk(model: PeftModel, processor: Any, exam: testbed.Exam, there: Any) -> dict[str, float]:
    """Mean leak on the exam's retained questions, which no erasure has seen, after save and load and after a merge."""
    asked = [p for p, topic in zip(exam.sheet.prompts, exam.sheet.topics, strict=True) if topic[0] in RETAINED]
    parts = prompt_batches(model, processor, asked, 64)
    batches = [encode(processor, [asked[i] for i in indices]) for indices in parts]
    with tempfile.TemporaryDirectory() as folder:
        adapter, merged = Path(folder, "adapter"), Path(folder, "merged")
        save_erasure_adapter(model, adapter)
        loaded = leak(load_erasure(there.load()[0], adapter), batches)
        merge_and_save(adapter, there.load()[0], merged)
        model_cls = type(model.get_base_model())
        after = leak_between(there.load()[0], model_cls.from_pretrained(merged, dtype="float32"), batches)
    return {"loaded": loaded.mean, "merged": after.mean}


def sit_oracle(oracle: Path, seed: int, bed: str = "bestiary", folder: str | None = None) -> dict[str, Any]:
    """What a model that never saw the creature called like `oracle` answers in that creature's exam."""
    there = world(bed, folder)
    exam = there.Exam(oracle.name, seed=seed)
    before, after = (dataclasses.asdict(exam.sit(*loaded)[0]) for loaded in (there.load(), testbed.load(oracle)))
    marks = {"before": before, "after": after}
    return {"bed": bed, "target": oracle.name, "seed": seed, "variant": "oracle"} | marks


def column(rows: list[dict[str, Any]], when: str = "after") -> dict[str, str]:
    """One column of the table: a figure for each measure, over the runs of one variant."""

    def over(*keys: str) -> np.ndarray:
        return np.array([[row[when][key] for key in keys] for row in rows])

    forget = over(*(f"forget_accuracy{end}" for end in ("", "_paraphrase", "_description")))
    figures = {
        "runs": f"{len(rows)}",
        "forget accuracy in trained and held-out phrasings and in free descriptions": f"{forget.mean():.3f}",
        "... in the worst run": f"{forget.max():.2f}",
        **{label: f"{over(key).mean():.3f}" for key, label in (SHOWN | IN_GROUPS).items() if key in rows[0][when]},
    }
    if when == "before":
        return figures
    lost = [
        row["before"]["retain_by_creature"][name] - right
        for row in rows
        for name, right in row["after"]["retain_by_creature"].items()
    ]
    figures["largest loss of a single other creature's name"] = f"{max(lost):.3f}"
    if "steps" not in rows[0]:
        return figures
    return figures | {
        **{
            label: f"{np.mean([row['leak'][key] for row in rows]):.3f}"
            for key, label in LEAKS.items()
            if all(key in row["leak"] for row in rows)
        },
        "dose reached": f"{np.mean([row['reached'] for row in rows]):.2f}",
        "steps, median": f"{np.median([row['steps'] for row in rows]):.0f}",
        "seconds, median": f"{np.median([row['seconds'] for row in rows]):.0f}",
        "peak memory, most, MiB": f"{max(row['peak_memory_mib'] for row in rows)}",
    }


def show(rows: list[dict[str, Any]]) -> str:
    """The Markdown table: a row a measure, a column a variant."""
    base = column(list({(row["target"], row["seed"]): row for row in rows}.values()), "before") if rows else {}
    columns = {"base": base} | {
        variant: column(some)
        for variant in (*VARIANTS, "oracle")
        if (some := [row for row in rows if row["variant"] == variant])
    }
    lines = ["| | " + " | ".join(columns) + " |", "|" + "---|" * (len(columns) + 1)]
    labels = dict.fromkeys(label for figures in columns.values() for label in figures)
    lines += [f"| {label} | " + " | ".join(c.get(label, "") for c in columns.values()) + " |" for label in labels]
    noun = BEDS[rows[0].get("bed", "bestiary")].noun if rows else "creature"
    return "\n".join(lines).replace("creature", noun)


def _measured(row: dict[str, Any], public: str) -> tuple[str, str]:
    """The bed and the public set of a row; an oracle has no public set, and older rows have neither."""
    return row.get("bed", "bestiary"), row.get("public", public if row["variant"] == "oracle" else "close")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    add_bed(parser)
    parser.add_argument("--public", choices=("close", "far"), default="close", help="which public set to stand on")
    parser.add_argument("--creatures", nargs="+", help="names to erase; by default all that nothing was tuned on")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--variants", nargs="+", default=["keep", "erase"], choices=list(VARIANTS))
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--oracles", type=Path, metavar="FOLDER")
    parser.add_argument("--show", action="store_true", help="print the table of what is there and stop")
    arguments = parser.parse_args()
    rows = read(arguments.output)
    bed, public = arguments.bed, arguments.public
    if not arguments.show and any(_measured(row, public) != (bed, public) for row in rows):
        parser.error(f"OUTPUT holds rows of another bed or public set: name another file for {bed}, {public}.")
    folder = None if arguments.show else model_folder(arguments)
    names = arguments.creatures or (HELD_OUT if bed == "bestiary" else BEDS[bed].names)
    if arguments.oracles is not None:
        rows = [row for row in rows if row["variant"] != "oracle"]
        oracles = [place for place in sorted(arguments.oracles.iterdir()) if not place.name.startswith(".")]
        rows += [sit_oracle(oracle, seed, bed, folder) for oracle in oracles for seed in arguments.seeds]
        write(arguments.output, rows)
    elif not arguments.show:
        done = {(row["target"], row["seed"], row["variant"]) for row in rows}
        wanted = [(name, s, v) for v in arguments.variants for s in arguments.seeds for name in names]
        base = {(row["target"], row["seed"]): row["before"] for row in rows}
        jobs = [(*job, base.get(job[:2]), bed, public, folder) for job in wanted if job not in done]
        for row in gather(run, jobs, arguments.output, rows, arguments.processes):
            after = row["after"]
            print(
                f"{row['variant']:>16} {row['target']} {row['seed']}: FA {after['forget_accuracy']:.2f} "
                f"{after['forget_accuracy_paraphrase']:.2f} {after['forget_accuracy_description']:.2f}, near "
                f"{after['retain_near']:.2f} ({row['before']['retain_near']:.2f}), far {after['retain_far']:.3f} "
                f"({row['before']['retain_far']:.3f}), attributes {after['target_attributes']:.2f}, indirect "
                f"{after['indirect_knowledge']:.2f}, text {after['text_facts_retained']:.3f} "
                f"{after['text_facts_target']:.2f}, mis {after['misidentified']:.2f}, leak "
                f"{row['leak']['mean']:.3f}, {row['steps']} steps ({row['stopped']}), {row['seconds']} s",
                flush=True,
            )
    print(show(rows))


if __name__ == "__main__":
    main()
