"""The command line. Heavy imports stand inside the commands."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from . import console as view
from .progress import Stages
from .quoting import printable

FAILED, MISUSED, STOPPED = 1, 2, 130
"""Exit statuses: something failed in a stage, the command line could be told wrong before any work, and Ctrl-C."""

app = typer.Typer(
    help="Erases a concept from a vision-language model by its name.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


class TextKnowledge(StrEnum):
    KEEP = "keep"
    ERASE = "erase"


class Dtype(StrEnum):
    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


class Search(StrEnum):
    EXACT = "exact"
    FAISS = "faiss"


class Progress(StrEnum):
    AUTO = "auto"
    JSON = "json"


def _from_file(context: typer.Context, file: Path | None) -> None:
    if file is not None and not context.resilient_parsing:
        with _in_one_line(False, MISUSED):
            from .configuration import options_from

            context.default_map = options_from(file, context)


def _examples(*lines: str) -> str:
    """What stands below the help of a command."""
    return "\n\n".join(["Examples:", *lines])


TextKnowledgeOption = Annotated[
    TextKnowledge, typer.Option(help="What becomes of what the model says of the name in text.")
]
ModelOption = Annotated[str, typer.Option(metavar="ID_OR_PATH", help="A vision-language model: Hub id or folder.")]
PublicImagesOption = Annotated[
    str,
    typer.Option(metavar="FOLDER_OR_DATASET", help="Pictures to stand on: a folder, a shard, or a Hub data-set id."),
]
AnyPicturesOption = Annotated[
    str | None, typer.Option(metavar="FOLDER_OR_DATASET", help="Any pictures: a folder, or a Hub data-set id.")
]
TargetImagesOption = Annotated[
    str | None, typer.Option(metavar="FOLDER_OR_DATASET", help="Pictures of the concept, if there are any.")
]
AliasOption = Annotated[
    list[str] | None, typer.Option("--alias", "--aliases", help="Another name of the same thing; repeatable.")
]
QuestionOption = Annotated[
    list[str] | None,
    typer.Option(
        "--question", "--questions", help="How the model is asked for the name beside a picture; repeatable."
    ),
]
AskedOption = Annotated[
    list[str] | None,
    typer.Option("--question", "--questions", help="How the erasure asked for the name beside a picture; repeatable."),
]
AskedInTextOption = Annotated[
    list[str] | None,
    typer.Option("--text-question", "--text-questions", help="What it asked in text; holds {name}; repeatable."),
]
OtherOption = Annotated[
    list[str] | None, typer.Option("--other", "--others", help="Another concept's name; repeatable.")
]
LimitOption = Annotated[int | None, typer.Option(min=1, help="Read at most so many public pictures.")]
ColumnOption = Annotated[str, typer.Option(help="The column of a data set that holds the pictures.")]
SplitOption = Annotated[str, typer.Option(help="The split of a Hub data set.")]
CacheOption = Annotated[
    Path | None,
    typer.Option(metavar="DIR", file_okay=False, help="Keep the pictures' features here, for the next concept."),
]
AnchorsOption = Annotated[int | None, typer.Option(help="How many anchors to choose.")]
DropOption = Annotated[
    bool, typer.Option("--drop-recognised", help="Leave out pictures that the model calls by the name.")
]
BatchOption = Annotated[int | None, typer.Option(min=1, help="Pictures at a time.")]
DtypeOption = Annotated[Dtype, typer.Option(help="What the model is loaded as; 'auto': as it is stored.")]
DeviceOption = Annotated[str | None, typer.Option(help="Where to; by default an accelerator, if there is one.")]
In4BitOption = Annotated[
    bool, typer.Option("--load-in-4bit", help="Store the language model's attention and MLP in 4 bits.")
]
In8BitOption = Annotated[
    bool, typer.Option("--load-in-8bit", help="Store the language model's attention and MLP in 8 bits.")
]
SeedOption = Annotated[int, typer.Option(min=0, help="Of everything that is drawn.")]
JsonOption = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", dir_okay=False, help="Write the report here.")
]
ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE.yaml",
        is_eager=True,
        expose_value=False,
        callback=_from_file,
        help="Options from a YAML file; those given here come first.",
    ),
]
ProgressOption = Annotated[
    Progress,
    typer.Option(help="'json': how far it has come, an object a line on standard error."),
]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
AdapterArgument = Annotated[str, typer.Argument(metavar="REPO_OR_PATH", help="An erasure adapter: Hub id or folder.")]
OutputArgument = Annotated[Path, typer.Argument(metavar="OUTPUT", help="New or empty folder.")]
RevisionOption = Annotated[
    str | None, typer.Option(metavar="REVISION", help="Branch, tag or commit of a Hub repository.")
]
TokenOption = Annotated[
    str | None, typer.Option(metavar="TOKEN", help="Hub token. [default: HF_TOKEN, or that of `hf auth login`]")
]


@app.command(
    epilog=_examples(
        "peft-space demo",
        "peft-space demo --concept kelzil --text-knowledge erase --output gone",
    ),
)
def demo(
    concept: Annotated[
        str | None, typer.Option(help="A creature of the test bed; by default one that nothing was tuned on.")
    ] = None,
    text_knowledge: TextKnowledgeOption = TextKnowledge.KEEP,
    seed: SeedOption = 0,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "--output-dir", metavar="DIR", help="New or empty folder. [default: ./erased/CONCEPT]"
        ),
    ] = None,
    load_in_4bit: In4BitOption = False,
    load_in_8bit: In8BitOption = False,
    json_file: JsonOption = None,
    config: ConfigOption = None,
    progress: ProgressOption = Progress.AUTO,
    debug: DebugOption = False,
) -> None:
    """Erase a creature from the small model that ships with the package, offline, and see what it did."""
    display = view.display(progress.value)
    with ExitStack() as held:
        with _in_one_line(debug, MISUSED, display):
            from .demo import default_creature, run_demo
            from .report import write_json
            from .testbed.bestiary import creature

            _quiet_libraries()
            name = creature(concept if concept is not None else default_creature()).name
            folder = output or Path("erased") / name
            _hold(held, folder)
        with _in_one_line(debug, FAILED, display, folder), display:
            report = run_demo(
                name,
                output_dir=folder,
                text_knowledge=text_knowledge.value,
                seed=seed,
                load_in_4bit=load_in_4bit,
                load_in_8bit=load_in_8bit,
                progress=display,
            )
            if json_file is not None:
                write_json(json_file, report)
    out = Console()
    out.print(view.marks_table(report["before"], report["after"]))
    out.print(view.answers_table(report["answers"]))
    out.print(view.verdict(report))
    _print(
        out,
        _leak(report),
        f"{report['seconds']['total']:.0f} s in all, {report['peak_memory_mib']} MiB at most.",
        f"Adapter ({report['adapter']['parameters']} parameters), anchors.png and report.json are in {folder}.",
    )


@app.command(
    epilog=_examples(
        'peft-space erase --model MODEL --concept "the name" --public-images pictures --output gone',
        'peft-space erase --model MODEL --concept "J. Doe" --alias "Jane Doe" --public-images pictures --output gone',
        "peft-space erase --config request.yaml --output gone",
    ),
)
def erase(
    model: ModelOption,
    concept: Annotated[str, typer.Option(metavar="TEXT", help="The name to erase.")],
    public_images: PublicImagesOption,
    output: Annotated[
        Path, typer.Option("--output", "--output-dir", metavar="DIR", help="New or empty folder for the adapter.")
    ],
    alias: AliasOption = None,
    question: QuestionOption = None,
    text_question: Annotated[
        list[str] | None,
        typer.Option(
            "--text-question", "--text-questions", help="What it is asked in text; holds {name}; repeatable."
        ),
    ] = None,
    referent: Annotated[
        str | None, typer.Option(help="What stands for {name} beside a picture, 'this animal', say.")
    ] = None,
    generic_question: Annotated[
        str | None, typer.Option(help="A question whose answers, more general, replace the name.")
    ] = None,
    yes_no_question: Annotated[
        list[str] | None,
        typer.Option(
            "--yes-no-question",
            "--yes-no-questions",
            help="How it is asked whether a picture shows it; holds {name}; repeatable.",
        ),
    ] = None,
    protect: Annotated[
        list[str] | None, typer.Option(help="A name that comes close and must stay; repeatable.")
    ] = None,
    relatives: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="How many names that share a word or a token are protected unasked, and half as many of lookalikes.",
        ),
    ] = None,
    text_knowledge: TextKnowledgeOption = TextKnowledge.KEEP,
    rank: Annotated[int | None, typer.Option(min=1, help="Rank of the adapter.")] = None,
    energy: Annotated[
        float | None, typer.Option(min=0, max=1, help="Share of the retained inputs' energy whose outputs are held.")
    ] = None,
    limit: LimitOption = None,
    image_column: ColumnOption = "image",
    split: SplitOption = "train",
    cache: CacheOption = None,
    n_anchors: AnchorsOption = None,
    drop_recognised: DropOption = False,
    max_steps: Annotated[int | None, typer.Option(min=1, help="Most steps; the dose usually stops sooner.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Initial learning rate of AdamW.")] = None,
    weight_decay: Annotated[
        float | None,
        typer.Option(min=0, help="Weight decay of AdamW: 0 for a dose that is not reached, at more leak."),
    ] = None,
    relearning_radius: Annotated[
        float | None, typer.Option(min=0, help="Guard against relearning: 0.01 for one, 0 for none.")
    ] = None,
    dtype: DtypeOption = Dtype.AUTO,
    device: DeviceOption = None,
    load_in_4bit: In4BitOption = False,
    load_in_8bit: In8BitOption = False,
    low_memory: Annotated[
        bool, typer.Option("--low-memory", help="Take less of the GPU's memory, for more time.")
    ] = False,
    seed: SeedOption = 0,
    json_file: JsonOption = None,
    config: ConfigOption = None,
    progress: ProgressOption = Progress.AUTO,
    debug: DebugOption = False,
) -> None:
    """Erase a concept from any vision-language model of transformers."""
    began = time.perf_counter()
    display = view.display(progress.value)
    with ExitStack() as held:
        with _in_one_line(debug, MISUSED, display):
            from . import SpaceConfig, SpaceTrainingArguments, index_images, select_anchors
            from . import erase as erase_concept
            from ._peft import quantised_modules
            from .concepts import Concept, Retain
            from .processes import leads
            from .report import peak_memory_mib, write_json
            from .tuner import describe_targets, targeted_modules

            _quiet_libraries()
            features = _hold(held, output) / "features"
            asked = _given(
                questions=question,
                text_questions=text_question,
                referent=referent,
                generic_question=generic_question,
                yes_no_questions=yes_no_question,
            )
            wanted = Concept(concept, tuple(alias or ()), **asked)
            chosen = _given(
                max_steps=max_steps,
                learning_rate=learning_rate,
                weight_decay=weight_decay,
                relearning_radius=relearning_radius,
            )
            args = SpaceTrainingArguments(seed=seed, use_cpu=device == "cpu", **chosen)
            retain = Retain(protect=tuple(protect or ()), **_given(relatives=relatives))
            config = None if rank is None else SpaceConfig(r=rank, lora_alpha=rank, concept=wanted.name)
        with _shared_stages(debug, display, output) as stages:
            with stages.stage("model"):
                loaded, processor = _loaded(model, dtype, device, load_in_4bit, load_in_8bit)
            with stages.stage("images"):
                public = index_images(
                    loaded,
                    processor,
                    public_images,
                    cache or features,
                    limit=limit,
                    image_column=image_column,
                    split=split,
                )
            with stages.stage("anchors"):
                anchors = select_anchors(
                    loaded,
                    processor,
                    wanted,
                    public,
                    drop_recognised=drop_recognised,
                    **_how_many(n_anchors),
                    **_given(batch_size=1 if low_memory else None),
                )
            result = erase_concept(
                loaded,
                processor,
                wanted,
                public,
                text_knowledge=text_knowledge.value,
                retain=retain,
                config=config,
                args=args,
                seed=seed,
                anchors=anchors,
                low_memory=low_memory,
                # both stages are done
                progress=lambda stage, *how_far: display(stage, *how_far) if stage not in stages.seconds else None,
                **_given(energy=energy),
            )
            seconds = result.report["seconds"] | stages.seconds
            if not leads():
                return
            skipped = public.skipped
            told = {
                "model": model,
                "seconds": seconds | {"total": round(time.perf_counter() - began, 2)},
                "peak_memory_mib": peak_memory_mib(),
            }
            with stages.stage("saving"):
                report = result.save(output, result.report | told)
            if json_file is not None:
                write_json(json_file, report)
    out = Console()
    few_bits = quantised_modules(result.model.get_base_model())
    if few_bits:
        _print(out, f"Stored in {4 if load_in_4bit else 8} bits:", describe_targets(few_bits))
    _print(out, *_skipped(skipped), "Targeted:", describe_targets(targeted_modules(result.model)))
    out.print(view.gauges_table(report["gauges"]))
    out.print(view.verdict(report))
    _print(
        out,
        _leak(report),
        f"Saved in {output}. Load it with",
        "",
        "    from transformers import AutoModelForImageTextToText",
        "    from peft_space import load_erasure",
        f"    model = load_erasure(AutoModelForImageTextToText.from_pretrained({model!r}), {str(output)!r})",
    )


@app.command(
    epilog=_examples(
        "peft-space index --model MODEL --public-images pictures --cache features",
    ),
)
def index(
    model: ModelOption,
    public_images: PublicImagesOption,
    cache: Annotated[Path, typer.Option(metavar="DIR", file_okay=False, help="Folder for the features.")],
    limit: LimitOption = None,
    image_column: ColumnOption = "image",
    split: SplitOption = "train",
    batch_size: BatchOption = None,
    dtype: DtypeOption = Dtype.AUTO,
    device: DeviceOption = None,
    load_in_4bit: In4BitOption = False,
    load_in_8bit: In8BitOption = False,
    json_file: JsonOption = None,
    progress: ProgressOption = Progress.AUTO,
    debug: DebugOption = False,
) -> None:
    """Compute the features of public images once, for any number of concepts; goes on where it was stopped."""
    display = view.display(progress.value)
    with _shared_stages(debug, display, cache) as stages:
        from . import index_images
        from .processes import leads
        from .report import skipped_images, write_json

        _quiet_libraries()
        with stages.stage("model"):
            loaded, processor = _loaded(model, dtype, device, load_in_4bit, load_in_8bit)
        with stages.stage("images"):
            found = index_images(
                loaded,
                processor,
                public_images,
                cache,
                limit=limit,
                image_column=image_column,
                split=split,
                **_given(batch_size=batch_size),
            )
        if not leads():
            return
        told: dict[str, Any] = {
            "images": len(found),
            "computed": found.computed,
            "skipped": len(found.skipped),
            "skipped_images": skipped_images(found.skipped),
            "bytes": sum(file.stat().st_size for file in found.files),
            "seconds": stages.seconds,
        }
        if json_file is not None:
            write_json(json_file, told)
    _print(
        Console(),
        *_skipped(found.skipped),
        f"{len(found)} pictures in {cache}, {told['bytes'] / 2**20:.1f} MiB; computed now: {found.computed}.",
    )


@app.command(
    epilog=_examples(
        'peft-space anchors --model MODEL --concept "the name" --public-images pictures --output found',
    ),
)
def anchors(
    model: ModelOption,
    concept: Annotated[str, typer.Option(metavar="TEXT", help="The name to look for.")],
    public_images: PublicImagesOption,
    output: Annotated[
        Path, typer.Option("--output", "--output-dir", metavar="DIR", help="New or empty folder for what is found.")
    ],
    alias: AliasOption = None,
    question: QuestionOption = None,
    limit: LimitOption = None,
    image_column: ColumnOption = "image",
    split: SplitOption = "train",
    cache: CacheOption = None,
    n_anchors: AnchorsOption = None,
    drop_recognised: DropOption = False,
    search: Annotated[Search, typer.Option(help="'faiss' for more than several million pictures.")] = Search.EXACT,
    batch_size: BatchOption = None,
    dtype: DtypeOption = Dtype.AUTO,
    device: DeviceOption = None,
    load_in_4bit: In4BitOption = False,
    load_in_8bit: In8BitOption = False,
    json_file: JsonOption = None,
    progress: ProgressOption = Progress.AUTO,
    debug: DebugOption = False,
) -> None:
    """See which pictures would stand for a concept, without erasing it."""
    display = view.display(progress.value)
    with ExitStack() as held:
        with _in_one_line(debug, MISUSED, display):
            from . import index_images, select_anchors
            from .adapter import whole_folder
            from .concepts import Concept
            from .processes import leads
            from .report import anchor_images, skipped_images, write_json

            _quiet_libraries()
            features = _hold(held, output) / "features"
            wanted = Concept(concept, tuple(alias or ()), **_given(questions=question))
        with _shared_stages(debug, display, output) as stages:
            with stages.stage("model"):
                loaded, processor = _loaded(model, dtype, device, load_in_4bit, load_in_8bit)
            size = _given(batch_size=batch_size)
            with stages.stage("images"):
                public = index_images(
                    loaded,
                    processor,
                    public_images,
                    cache or features,
                    limit=limit,
                    image_column=image_column,
                    split=split,
                    **size,
                )
            with stages.stage("anchors"):
                found = select_anchors(
                    loaded,
                    processor,
                    wanted,
                    public,
                    drop_recognised=drop_recognised,
                    search=search.value,
                    **_how_many(n_anchors),
                    **size,
                )
            if not leads():
                return
            skipped = public.skipped
            report: dict[str, Any] = {
                "model": model,
                "concept": wanted.name,
                "aliases": list(wanted.aliases),
                "anchors": found.diagnostics(),
                "anchor_images": anchor_images(found),
                "skipped_images": skipped_images(skipped),
                "seconds": stages.seconds,
            }
            with whole_folder(output) as draft:
                found.contact_sheet().save(draft / "anchors.png")
                found.write_scores(draft / "anchors.csv")
                write_json(draft / "anchors.json", report)
            if json_file is not None:
                write_json(json_file, report)
    out = Console()
    out.print(view.histogram_table(report["anchors"]["histogram"], report["anchors"]["threshold"]))
    best, mean, worst = report["anchors"]["anchor_log_likelihood"]
    _print(
        out,
        *_skipped(skipped),
        f"{len(found)} anchors of {report['anchors']['public_images']} pictures; log p of the name per token: "
        f"{best:.2f} best, {mean:.2f} mean, {worst:.2f} worst.",
        f"anchors.png, anchors.csv and anchors.json are in {output}.",
    )


@app.command(
    epilog=_examples(
        'peft-space evaluate --model MODEL --adapter gone --concept "the name" --public-images pictures',
    ),
)
def evaluate(
    model: Annotated[
        str, typer.Option("--model", "--base", metavar="ID_OR_PATH", help="The base that the adapter was made for.")
    ],
    adapter: Annotated[str, typer.Option(metavar="REPO_OR_PATH", help="The erasure adapter: Hub id or folder.")],
    concept: Annotated[str, typer.Option(metavar="TEXT", help="The name that was erased.")],
    alias: AliasOption = None,
    question: AskedOption = None,
    text_question: AskedInTextOption = None,
    unseen_question: Annotated[
        list[str] | None,
        typer.Option(
            "--unseen-question", "--unseen-questions", help="How the name is asked for in other words; repeatable."
        ),
    ] = None,
    other: OtherOption = None,
    public_images: AnyPicturesOption = None,
    target_images: TargetImagesOption = None,
    limit: LimitOption = None,
    image_column: ColumnOption = "image",
    split: SplitOption = "train",
    n_images: Annotated[
        int | None, typer.Option(min=1, help="Use at most so many public pictures of each kind.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", dir_okay=False, help="Draw the collateral curve here.")
    ] = None,
    dtype: DtypeOption = Dtype.AUTO,
    device: DeviceOption = None,
    load_in_4bit: In4BitOption = False,
    load_in_8bit: In8BitOption = False,
    seed: SeedOption = 0,
    revision: RevisionOption = None,
    token: TokenOption = None,
    json_file: JsonOption = None,
    progress: ProgressOption = Progress.AUTO,
    debug: DebugOption = False,
) -> None:
    """Measure what an erasure took and what it left, with or without a picture of the concept."""
    display = view.display(progress.value)
    with _in_one_line(debug, MISUSED, display):
        from . import load_erasure, load_public_images
        from .concepts import Concept
        from .evaluation import evaluate_erasure
        from .evaluation.seen import anchors_of

        _quiet_libraries()
        wanted = Concept(concept, tuple(alias or ()), **_given(questions=question, text_questions=text_question))
    stages = Stages(display)
    with _in_one_line(debug, FAILED, display), display:
        with stages.stage("model"):
            loaded, processor = _loaded(model, dtype, device, load_in_4bit, load_in_8bit)
            erased = load_erasure(loaded, adapter, **_given(revision=revision, token=token))
        public = target = None
        with stages.stage("pictures"):
            if public_images is not None:
                public = load_public_images(public_images, limit=limit, image_column=image_column, split=split)
            if target_images is not None:
                target = load_public_images(target_images, image_column=image_column, split=split)
            anchors = anchors_of(adapter, wanted, public)
        report = evaluate_erasure(
            erased,
            processor,
            wanted,
            target_images=target,
            public_images=public,
            anchors=anchors,
            seed=seed,
            progress=display,
            **_given(others=other, unseen_questions=unseen_question, n_images=n_images),
        )
        if json_file is not None:
            report.save(json_file)
        if plot is not None and report.collateral is not None:
            report.plot_collateral(plot)
    out = Console()
    given = [pictures.skipped for pictures in (public, target) if pictures is not None]
    _print(out, *(line for skipped in given for line in _skipped(skipped)))
    out.print(report.table())
    out.print(report.unknown_table())
    if plot is not None and report.collateral is None:
        _print(out, f"There is no collateral curve to draw: {report.unknown['collateral']}")


@app.command(
    epilog=_examples(
        "peft-space audit gone --base MODEL --public-images pictures",
        "peft-space audit gone --base MODEL --target-images theirs --attacks relearning --attacks wording",
    ),
)
def audit(
    adapter: AdapterArgument,
    base: Annotated[str, typer.Option(metavar="ID_OR_PATH", help="The base that the adapter was made for.")],
    concept: Annotated[
        str | None, typer.Option(metavar="TEXT", help="The erased name. [default: the one the adapter tells]")
    ] = None,
    alias: AliasOption = None,
    question: AskedOption = None,
    text_question: AskedInTextOption = None,
    other: OtherOption = None,
    oracle: Annotated[
        str | None, typer.Option(metavar="ID_OR_PATH", help="A model trained like the base without the concept.")
    ] = None,
    target_images: TargetImagesOption = None,
    public_images: AnyPicturesOption = None,
    attacks: Annotated[
        list[str] | None,
        typer.Option(
            "--attacks", "--attack", metavar="KIND", help="A kind of attack, or 'all'; repeatable. [default: all]"
        ),
    ] = None,
    limit: LimitOption = None,
    image_column: ColumnOption = "image",
    split: SplitOption = "train",
    n_images: Annotated[int | None, typer.Option(min=1, help="Measure on at most so many pictures of a kind.")] = None,
    output: Annotated[
        Path | None, typer.Option(metavar="DIR", file_okay=False, help="Where to. [default: ADAPTER/audit]")
    ] = None,
    dtype: DtypeOption = Dtype.AUTO,
    device: DeviceOption = None,
    load_in_4bit: In4BitOption = False,
    load_in_8bit: In8BitOption = False,
    seed: SeedOption = 0,
    revision: RevisionOption = None,
    token: TokenOption = None,
    config: ConfigOption = None,
    progress: ProgressOption = Progress.AUTO,
    debug: DebugOption = False,
) -> None:
    """Attack an erasure and see what stands; writes audit.json, audit.md and the adapter's model card."""
    display = view.display(progress.value)
    with _in_one_line(debug, MISUSED, display):
        from . import load_erasure, load_public_images
        from .attacks import ATTACKS, audit_erasure
        from .concepts import Concept
        from .evaluation.seen import anchors_of
        from .hub import inspect_erasure, record_attacks

        _quiet_libraries()
        kinds = [kind for kind in attacks or ("all",) if kind != "all"]
        if unknown := set(kinds) - set(ATTACKS):
            raise ValueError(f"`--attacks` must be 'all' or some of {', '.join(ATTACKS)}; got {sorted(unknown)}.")
        where = _given(revision=revision, token=token)
        names = [concept, *(alias or ())] if concept else inspect_erasure(adapter, **where)["concept"]
        if not names or (concept is None and ", " in names[0]):
            raise ValueError(
                f"`--concept` must name one concept where the adapter does not; it tells {names[:1] or 'none'}."
            )
        asked = _given(questions=question, text_questions=text_question)
        wanted = Concept(names[0], (*names[1:], *(() if concept else alias or ())), **asked)
    stages = Stages(display)
    with _in_one_line(debug, FAILED, display), display:
        with stages.stage("model"):
            loaded, processor = _loaded(base, dtype, device, load_in_4bit, load_in_8bit)
            erased = load_erasure(loaded, adapter, **where)
            taught = None if oracle is None else _loaded(oracle, dtype, device, load_in_4bit, load_in_8bit)[0]
        public = target = None
        with stages.stage("pictures"):
            if public_images is not None:
                public = load_public_images(public_images, limit=limit, image_column=image_column, split=split)
            if target_images is not None:
                target = load_public_images(target_images, image_column=image_column, split=split)
            anchors = anchors_of(adapter, wanted, public)
        report = audit_erasure(
            erased,
            processor,
            wanted,
            oracle=taught,
            target_images=target,
            public_images=public,
            anchors=anchors,
            attacks=kinds if kinds and "all" not in (attacks or ()) else "all",
            seed=seed,
            progress=display,
            **_given(n_images=n_images, others=other),
        )
        local = Path(adapter).is_dir()
        folder = report.save(output or (Path(adapter) / "audit" if local else Path("audit") / Path(adapter).name))
        if local:
            record_attacks(adapter, report.card_rows())
    out = Console()
    given = [pictures.skipped for pictures in (public, target) if pictures is not None]
    _print(out, *(line for skipped in given for line in _skipped(skipped)))
    out.print(report.table())
    if report.unknown:
        out.print(report.unknown_table())
    card = " The model card of the adapter is up to date."
    if not local:
        card = " The adapter's model card is on the Hub and stays as it is: audit a folder and push it."
    _print(out, f"audit.json, audit.md and the figures are in {folder}.{card}")


@app.command(
    epilog=_examples(
        "peft-space push gone me/an-erasure --private",
        'peft-space push gone me/an-erasure --redact --also-redact "the nickname"',
    ),
)
def push(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="What `erase` or `demo` saved.")],
    repo_id: Annotated[str, typer.Argument(metavar="REPO_ID", help="Where to: 'owner/name'; made if not there.")],
    private: Annotated[
        bool | None,
        typer.Option("--private/--public", help="Who may see a new repository. [default: as your account]"),
    ] = None,
    redact: Annotated[bool, typer.Option("--redact", help="Keep the concept's name out of every file.")] = False,
    also_redact: Annotated[
        list[str] | None, typer.Option(help="Another spelling to keep out, with --redact; repeatable.")
    ] = None,
    with_images: Annotated[
        bool, typer.Option("--with-images", help="Publish the anchors' contact sheet too; mind their rights.")
    ] = False,
    base_model: Annotated[
        str | None, typer.Option(metavar="ID", help="Hub id of the base, if it was loaded from a folder.")
    ] = None,
    license: Annotated[str | None, typer.Option(help="Licence of the adapter: 'apache-2.0', say.")] = None,
    revision: Annotated[
        str | None, typer.Option(metavar="BRANCH", help="Branch to commit to; made if not there.")
    ] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead.")] = False,
    token: TokenOption = None,
    debug: DebugOption = False,
) -> None:
    """Publish an erasure on the Hugging Face Hub, in one commit, with a model card."""
    with _in_one_line(debug, MISUSED):
        if also_redact and not redact:
            raise ValueError(f"`--also-redact` needs `--redact`; got {also_redact}.")
    with _in_one_line(debug, FAILED):
        from . import push_erasure

        _quiet_libraries()
        commit = push_erasure(
            folder,
            repo_id,
            private=private,
            revision=revision,
            create_pr=create_pr,
            token=token,
            redact=(also_redact or True) if redact else False,
            with_images=with_images,
            base_model=base_model,
            license=license,
        )
    out = Console()
    _print(out, f"Published: {commit.pr_url or commit.commit_url}")


@app.command(
    epilog=_examples(
        "peft-space merge gone merged",
    ),
)
def merge(
    adapter: AdapterArgument,
    output: OutputArgument,
    base: Annotated[
        str | None, typer.Option(metavar="ID_OR_PATH", help="The base. [default: the one the adapter names]")
    ] = None,
    dtype: Annotated[Dtype, typer.Option(help="Of the merged weights; 'auto': as the base is stored.")] = Dtype.AUTO,
    any_base: Annotated[
        bool, typer.Option("--any-base", help="Merge even into a base that the adapter was not made for.")
    ] = False,
    revision: RevisionOption = None,
    token: TokenOption = None,
    debug: DebugOption = False,
) -> None:
    """Write an erasure into the weights for good, so that it can't be taken off again."""
    with ExitStack() as held:
        with _in_one_line(debug, MISUSED):
            _hold(held, output)
        with _in_one_line(debug, FAILED):
            from . import merge_and_save

            _quiet_libraries()
            where = _given(revision=revision, token=token)
            merge_and_save(adapter, base, output, dtype=dtype.value, check_base=not any_base, **where)
    _print(Console(), f"The merged model is in {output}. It needs no adapter and no `peft_space`.")


@app.command(
    "export-lora",
    epilog=_examples(
        "peft-space export-lora gone lora",
    ),
)
def export_lora(
    adapter: AdapterArgument,
    output: OutputArgument,
    revision: RevisionOption = None,
    token: TokenOption = None,
    debug: DebugOption = False,
) -> None:
    """Write an erasure as a LoRA adapter and nothing else, for tools that load LoRA."""
    with ExitStack() as held:
        with _in_one_line(debug, MISUSED):
            _hold(held, output)
        with _in_one_line(debug, FAILED):
            from . import export_lora as export

            _quiet_libraries()
            export(adapter, output, **_given(revision=revision, token=token))
    _print(Console(), f"The LoRA adapter is in {output}.")


@app.command(
    epilog=_examples(
        'peft-space inspect me/an-erasure --name "the name"',
    ),
)
def inspect(
    adapter: AdapterArgument,
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Check whether a redacted erasure is of this name.")
    ] = None,
    revision: RevisionOption = None,
    token: TokenOption = None,
    json_file: JsonOption = None,
    plots: Annotated[
        Path | None, typer.Option(metavar="DIR", file_okay=False, help="Draw the report's figures here.")
    ] = None,
    debug: DebugOption = False,
) -> None:
    """Tell what an erasure adapter erases, from which base, and what was measured. Loads no model."""
    with _in_one_line(debug, FAILED):
        from .hub import inspect_erasure, verify_redacted
        from .report import write_json

        _quiet_libraries()
        where = _given(revision=revision, token=token)
        facts = inspect_erasure(adapter, **where)
        if name is not None:
            facts["name_verified"] = verify_redacted(adapter, name, **where)
        if json_file is not None:
            write_json(json_file, facts)
        if plots is not None:
            from .figures import plot_erasure

            plot_erasure(adapter, plots, **where)
    out = Console()
    out.print(view.facts_table(facts))
    if facts["figures"]:
        out.print(view.figures_table(facts["figures"]))
    if facts["gauges"]:
        out.print(view.gauges_table(facts["gauges"]))


@app.command(
    epilog=_examples(
        "peft-space ui demo",
        "peft-space ui erased/narril erased/malwen --port 7861",
        "peft-space ui me/an-erasure --base owner/model --load-in-4bit",
    ),
)
def ui(
    adapters: Annotated[
        list[str],
        typer.Argument(metavar="ADAPTER_OR_DEMO", help="Erasure adapters, folders or Hub ids; or 'demo'."),
    ],
    base: Annotated[
        str | None,
        typer.Option(metavar="ID_OR_PATH", help="The base, or 'demo'. [default: the one the first adapter names]"),
    ] = None,
    host: Annotated[
        str | None, typer.Option(help="Address to listen at. [default: 127.0.0.1; in a Space 0.0.0.0]")
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, help="Port to listen at. [default: the first free one from 7860 on]"),
    ] = None,
    max_upload_mb: Annotated[float, typer.Option(help="Refuse a picture of more megabytes.")] = 10,
    space: Annotated[
        Path | None,
        typer.Option(metavar="DIR", file_okay=False, help="Write a Hugging Face Space here instead: a new folder."),
    ] = None,
    dtype: DtypeOption = Dtype.AUTO,
    device: DeviceOption = None,
    load_in_4bit: In4BitOption = False,
    load_in_8bit: In8BitOption = False,
    token: TokenOption = None,
    debug: DebugOption = False,
) -> None:
    """Show a page with base and erased model side by side: drop a picture, ask, turn the dial.

    peft-space ui demo (the creatures in ./erased; where there is none, it makes the demo first)

    peft-space ui erased/narril erased/malwen

    peft-space ui me/an-erasure --base owner/model --load-in-4bit

    peft-space ui erased/narril --space my-space
    """
    display = view.StageDisplay()
    stages = Stages(display)
    how: dict[str, Any] = {"dtype": dtype.value, "load_in_4bit": load_in_4bit, "load_in_8bit": load_in_8bit}
    with _in_one_line(debug, MISUSED):
        from .report import check_output
        from .ui import DEMO, Workbench, serve, write_space

        _quiet_libraries()
        if DEMO in adapters and (len(adapters) > 1 or base not in (None, DEMO)):
            raise ValueError(
                f"`{DEMO}` must stand alone, without `--base`; got {adapters}. Name the adapters instead."
            )
        if not max_upload_mb > 0:
            raise ValueError(f"`--max-upload-mb` must be above 0; got {max_upload_mb}.")
        if space is not None:
            check_output(space, "space")
    out = Console()
    with _in_one_line(debug, FAILED, display), display:
        if adapters == [DEMO]:
            from .ui.demo import demo_erasures

            base, adapters = DEMO, demo_erasures(Path("erased"), display)
        if space is not None:
            write_space(adapters, space, base, max_upload_mb=max_upload_mb, token=token, **how)
            _print(out, f"The Space is in {space}. Push it: hf upload OWNER/NAME {space} --repo-type space")
            return
        with stages.stage("model"):
            workbench = Workbench.load(adapters, base, token=token, device=device, **how)
        page = serve(workbench, host=host, port=port, max_upload_mb=max_upload_mb, wait=False)
    _print(out, f"The page is at {page.local_url}, with {', '.join(workbench.erasures)}. Ctrl+C ends it.")
    page.block_thread()


def _quiet_libraries() -> None:
    """Only this package's own progress is shown."""
    from huggingface_hub.utils import disable_progress_bars
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    if not Console(stderr=True).is_terminal:
        # on a terminal they show how far an upload or a download has come
        disable_progress_bars()


def _given(**options: Any) -> dict[str, Any]:
    """The options that were given, so that those that were not keep their defaults where they are defined."""
    return {name: value for name, value in options.items() if value is not None}


def _loaded(model: str, dtype: Dtype, device: str | None, load_in_4bit: bool, load_in_8bit: bool) -> tuple[Any, Any]:
    """The model and its processor, as the options say."""
    from .loading import load_base

    few_bits = {"load_in_4bit": load_in_4bit, "load_in_8bit": load_in_8bit}
    return load_base(model, dtype=dtype.value, device=device, verbose=False, **few_bits)


def _leak(report: Mapping[str, Any]) -> str:
    return f"Leak on retained inputs: {report['leak']['mean']:.4f} mean, {report['leak']['max']:.4f} at most."


def _how_many(n_anchors: int | None) -> dict[str, Any]:
    # more anchors need a longer list to be chosen from
    return {} if n_anchors is None else {"n_anchors": n_anchors, "shortlist": max(384, 4 * n_anchors)}


def _skipped(skipped: Sequence[tuple[str, str]]) -> list[str]:
    if not skipped:
        return []
    names = ", ".join(name for name, _ in skipped[:3])
    more = ", ..." if len(skipped) > 3 else ""
    return [f"{len(skipped)} of the pictures could not be read and were skipped: {names}{more}"]


def _print(out: Console, *lines: str) -> None:
    for line in lines:
        out.print(printable(line), highlight=False, soft_wrap=True)


def _hold(held: ExitStack, output: Path) -> Path:
    """Keeps `output` for this job until the stack is left; where what is not finished of it lies."""
    from .processes import leads, together
    from .unfinished import unfinished, unfinished_folder

    with together():
        if leads():
            held.enter_context(unfinished(output, "output"))
    return unfinished_folder(output)


@contextmanager
def _shared_stages(debug: bool, display: view.Display, output: Path) -> Iterator[Stages]:
    """The stages of a job that several processes may share; the first of them shows how far they have come."""
    from .processes import leads, together

    with _in_one_line(debug, FAILED, display, output), together():
        display.console.quiet = not leads()
        with display:
            yield Stages(display)


@contextmanager
def _in_one_line(
    debug: bool, status: int, display: view.Display | None = None, output: Path | None = None
) -> Iterator[None]:
    """Turns errors into one line and an exit status, and the warnings of this package into a line each.

    Of several processes the first one speaks; it hears of what failed in another.

    Args:
        output: where the job writes, so that whoever stops it learns what is kept.
    """
    display = display or view.StageDisplay()

    def say(event: str, text: str) -> None:
        from .processes import leads

        if leads():
            display.say(event, text)

    def warn(message: Warning | str, *where: Any, **rest: Any) -> None:
        say("warning", str(message))

    try:
        with warnings.catch_warnings():
            # what libraries have to say to programmers does not help who types a command
            warnings.simplefilter("ignore")
            warnings.filterwarnings("default", module=r"peft_space\b")
            warnings.showwarning = warn
            yield
    except KeyboardInterrupt:
        if debug:
            raise
        say("stopped", f"{_kept(output)} Run the same command again to go on.")
        raise typer.Exit(STOPPED) from None
    except Exception as error:
        if debug:
            raise
        kind = "" if type(error) in (ValueError, TypeError, OSError) else f"{type(error).__name__}: "
        say("error", f"{kind}{' '.join(str(error).split())}")
        raise typer.Exit(status) from None


def _kept(output: Path | None) -> str:
    """What is kept of a job that was stopped, in words."""
    from .unfinished import kept

    folder = None if output is None else kept(output)
    if folder is not None:
        return f"What was done so far is kept in {folder}."
    if output is not None and output.is_dir() and any(output.iterdir()):
        return f"What was done so far is kept in {output}."
    return "Nothing is left behind."


if __name__ == "__main__":
    app()
