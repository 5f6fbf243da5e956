import copy
import functools
import itertools
import json
import re
import resource
import shlex
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
from transformers.utils import logging
from typer.main import get_command
from typer.testing import CliRunner

import peft_space
from peft_space import ErasureResult, Retain, SpaceTrainer, SpaceTrainingArguments, cli, concepts, erasure, testbed
from peft_space import console as view
from peft_space.anchors import other_names
from peft_space.cli import app
from peft_space.testbed import recipe
from tests.tiny import tiny_llama


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs a command in an empty folder of its own."""
    monkeypatch.chdir(tmp_path)
    level = logging.get_verbosity()
    yield lambda *words: CliRunner().invoke(app, [str(word) for word in words])
    logging.set_verbosity(level)
    logging.enable_progress_bar()


@pytest.fixture(scope="module")
def checkpoint(base, processor, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    recipe.save(copy.deepcopy(base), processor, folder)
    return folder


@pytest.fixture(scope="module")
def pictures(public, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for number, image in enumerate(public.images[:24]):
        image.save(folder / f"{number:02d}.png")
    for number in range(4):
        (folder / f"broken{number}.png").write_bytes(b"no picture")
    return folder


@pytest.fixture
def erase(run, checkpoint, pictures, monkeypatch):
    """`peft-space erase` on the checkpoint, with what a test changes; `None` takes an option away."""
    texts = ("Name a fruit.",) * 8
    few = functools.partial(Retain, questions=("What colour is it?",), texts=texts, n_images=8, relatives=0)
    monkeypatch.setattr(concepts, "Retain", few)
    monkeypatch.setattr(erasure, "other_names", functools.partial(other_names, most=4))

    def erase(*flags, **options):
        given = {
            "model": checkpoint,
            "concept": "narril",
            "public_images": pictures,
            "output": "out",
            "question": "What is this creature called?",
            "text_question": "Where does the {name} live?",
            "referent": "this creature",
            "rank": 4,
            "n_anchors": 4,
            "max_steps": 2,
            "dtype": "float32",
            "device": "cpu",
        } | options
        words = [
            word
            for name, value in given.items()
            if value is not None
            for word in (f"--{name.replace('_', '-')}", value)
        ]
        return run("erase", *words, *flags)

    return erase


def one_line(result, status, word="error"):
    """The line that a failure is told in."""
    assert result.exit_code == status, result.output
    assert "Traceback" not in result.output
    lines = [line for line in result.stderr.splitlines() if not re.fullmatch(r"[a-z ]+: [\d.]+ s", line)]
    assert len(lines) == 1 and lines[0].startswith(word), result.stderr
    return lines[0]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--help"], ["demo", "erase"]),
        (["demo", "--help"], ["--concept", "--text-knowledge", "--seed", "--output", "--json"]),
        (["erase", "--help"], ["--model", "--concept", "--public-images", "--output", "--alias", "--drop-recognised"]),
    ],
    ids=["peft-space", "demo", "erase"],
)
def test_help(run, words, told, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")
    result = run(*words)
    assert result.exit_code == 0
    assert all(text in result.stdout for text in told)


COMMANDS = get_command(app).commands
EXAMPLES = [
    line for command in COMMANDS.values() for line in command.epilog.split("\n\n") if line.startswith("peft-space ")
]


def test_every_command_has_examples():
    assert {shlex.split(line)[1] for line in EXAMPLES} == set(COMMANDS)


@pytest.mark.parametrize("line", EXAMPLES)
def test_examples_can_be_read(line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "request.yaml").write_text("model: MODEL\nconcept: the name\npublic_images: pictures\n")
    program, command, *words = shlex.split(line)
    context = COMMANDS[command].make_context(command, words)
    assert program == "peft-space" and all(
        context.params[parameter.name] is not None for parameter in COMMANDS[command].params if parameter.required
    )


@pytest.mark.parametrize(
    ("line", "offered"), [("peft-space exp", "export-lora"), ("peft-space erase --text-k", "--text-knowledge")]
)
def test_the_shell_completes(line, offered):
    words = {"_PEFT_SPACE_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
    assert offered in CliRunner().invoke(app, [], env=words, prog_name="peft-space").stdout.split()


@pytest.mark.parametrize("command", ["demo", "erase", "audit"])
def test_what_trains_takes_options_from_a_file(run, command):
    Path("job.yaml").write_text("no_such_option: 1")
    line = one_line(run(command, *(["gone"] if command == "audit" else []), "--config", "job.yaml"), 2)
    assert f"`no_such_option` in job.yaml must be an option of `{command}`: " in line


def test_no_command(run):
    result = run()
    assert result.exit_code == 2 and "Usage" in result.output


@pytest.mark.parametrize(
    "words", [["erase"], ["demo", "--text-knowledge", "forget"], ["demo", "--seed", "x"], ["forget"]]
)
def test_a_line_that_cannot_be_read(run, words):
    result = run(*words)
    assert result.exit_code == 2 and "Traceback" not in result.output


def test_demo(run, small_world, tmp_path):
    result = run("demo", "--seed", 2, "--json", "told/demo.json")
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "told" / "demo.json").read_text())
    assert report["concept"] == "narril" and report["seed"] == 2
    assert report["adapter"]["path"] == "erased/narril"
    assert report == json.loads((tmp_path / "erased" / "narril" / "report.json").read_text())
    for text in (
        "before",
        "after",
        "names of its family members",
        "some answers",
        "erased/narril",
        "Leak on retained",
    ):
        assert text in result.stdout
    assert {path.name for path in tmp_path.iterdir()} == {"erased", "told"}


def test_demo_in_few_bits(run, small_world, monkeypatch, tmp_path):
    pytest.importorskip("bitsandbytes")
    loaded = []
    load = testbed.load
    monkeypatch.setattr(testbed, "load", lambda **bits: loaded.append(bits) or load(**bits))
    result = run("demo", "--load-in-4bit", "--output", "out")
    assert result.exit_code == 0, result.output
    assert loaded == [{"load_in_4bit": True, "load_in_8bit": False}]
    result = run("demo", "--load-in-4bit", "--load-in-8bit", "--output", "both")
    assert result.exit_code == 1 and "must not be given together" in result.output
    assert not (tmp_path / "both").exists()


def test_demo_off_a_terminal_is_quiet_and_says_plainly_that_the_dose_was_not_reached(run, small_world, tmp_path):
    small_world.dose_share = 50.0
    result = run("demo", "--output", "out", "--json", "demo.json")
    assert result.exit_code == 0
    lines = result.stderr.splitlines()
    assert all(re.fullmatch(r"[a-z ]+: [\d.]+ s", line) for line in lines)
    assert [line.split(":")[0] for line in lines][:2] == ["model", "exam before"]
    assert "{'" not in result.stdout and "\x1b" not in result.output
    assert "The dose was NOT reached (max_steps, after 2 steps)" in result.stdout
    assert json.loads((tmp_path / "demo.json").read_text())["reached"] is False


def test_demo_of_an_unknown_concept(run, tmp_path):
    line = one_line(run("demo", "--concept", "hippo"), 2)
    assert "zorvex, malphon" in line and "kelzil" in line and "'hippo'" in line
    assert list(tmp_path.iterdir()) == []


def test_demo_into_a_folder_that_is_not_empty(run, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").touch()
    assert "`output` must be a new or empty folder; got 'out'" in one_line(run("demo", "--output", "out"), 2)


def test_demo_into_a_file(run, tmp_path):
    (tmp_path / "out").touch()
    assert "`output` must be a new or empty folder" in one_line(run("demo", "--output", "out"), 2)


def test_demo_where_a_stage_fails(run, small_world, monkeypatch, tmp_path):
    def fails(*args, **options):
        raise RuntimeError("the tower\nfell")

    monkeypatch.setattr(erasure, "select_anchors", fails)
    result = run("demo", "--output", "out")
    assert one_line(result, 1) == "error in the stage 'anchors': RuntimeError: the tower fell"
    result = run("demo", "--output", "out", "--debug")
    assert result.exit_code == 1 and isinstance(result.exception, RuntimeError)


def test_demo_on_a_full_disk(run, small_world, monkeypatch):
    def full(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(erasure, "write_json", full)
    assert "No space left on device" in one_line(run("demo", "--output", "out"), 1)


def test_warnings_of_the_package_are_a_line_each(capsys):
    with cli._in_one_line(False, cli.FAILED):
        warnings.warn_explicit("training stopped", UserWarning, "peft_space/demo.py", 1, module="peft_space.demo")
        warnings.warn_explicit("deprecated", FutureWarning, "transformers/x.py", 1, module="transformers.x")
    assert capsys.readouterr().err == "warning: training stopped\n"


def test_what_is_asked_of_the_training_reaches_it(erase, monkeypatch):
    asked = []

    def had(*given, args, **options):
        asked.append(args)
        raise ValueError("enough")

    monkeypatch.setattr(peft_space, "erase", had)
    wanted = {"max_steps": 7, "learning_rate": 1e-3, "weight_decay": 0.0, "relearning_radius": 0.5}
    assert one_line(erase(**{name: str(value) for name, value in wanted.items()}), 1).endswith("enough")
    assert {name: getattr(asked[0], name) for name in wanted} == wanted


def test_erase(erase, tmp_path):
    result = erase("--json", "told.json", alias="nrl", text_knowledge="erase", generic_question="What kind is it?")
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "told.json").read_text())
    assert report["concept"] == "narril" and report["text_knowledge"] == "erase" and report["steps"] <= 2
    assert report["anchors"]["public_images"] == 24 and report["anchors"]["skipped"] == 4
    assert report["anchors"]["anchors"] == 4
    assert {"model", "images", "anchors", "training", "total"} <= set(report["seconds"])
    assert report["seconds"]["anchors"] > 0 and report["peak_memory_mib"] > 50
    assert report["adapter"]["path"] == "out" and report["adapter"]["parameters"] > 0
    assert [gauge["about"] for gauge in report["gauges"]][:2] == ["name", "name"]
    assert (tmp_path / "out" / "anchors.png").exists() and (tmp_path / "out" / "report.json").exists()
    told = result.stdout
    assert "4 of the pictures could not be read and were skipped: broken0.png, broken1.png, broken2.png, ..." in told
    assert "model.language_model.layers.{0-1}.self_attn.q_proj  x2" in told
    assert "reference" in told and "The dose was" in told and "load_erasure(" in told
    assert [line.split(":")[0] for line in result.stderr.splitlines()].count("anchors") == 1


def test_erase_tells_programs_of_an_error(erase):
    result = erase(progress="json", limit=2)
    assert result.exit_code == 1
    told = json.loads(result.stderr.splitlines()[-1])
    assert (told["event"], told["stage"]) == ("error", "anchors") and "usable anchors" in told["text"]


def saved(folder):
    files = ("adapter_model.safetensors", "adapter_config.json", "anchors.csv")
    return [(folder / file).read_bytes() for file in files]


def test_an_erasure_goes_on_after_a_stop_and_a_full_disk_whatever_the_clock_says(erase, monkeypatch, tmp_path):
    often = {"dose_every": 1, "dose_readings": 99}
    monkeypatch.setattr(peft_space, "SpaceTrainingArguments", functools.partial(SpaceTrainingArguments, **often))
    monkeypatch.setattr(view.StageLines, "EVERY", 0.0)
    result = erase(output="whole", max_steps=3, progress="json")
    assert result.exit_code == 0, result.output
    told = [json.loads(line) for line in result.stderr.splitlines()]
    begun = [row["stage"] for row in told if row["event"] == "begin"]
    assert begun == [row["stage"] for row in told if row["event"] == "end" and row["seconds"] >= 0]
    assert begun == ["model", "images", "anchors", "knowledge", "retained subspace", "training", "report", "saving"]
    progress = [row for row in told if row["event"] == "progress"]
    assert {row["stage"] for row in progress} >= {*begun[1:6]}
    assert {row["doing"] for row in progress} >= {"image features", "likelihood", "statistics", "bases"}
    steps = [row for row in progress if row["doing"] == "steps"]
    assert [(row["stage"], row["done"], row["total"]) for row in steps] == [("training", n, 3) for n in (1, 2, 3)]
    assert steps[0]["left"] is None and steps[1]["left"] > 0 and steps[2]["left"] == 0

    trained, compute, save = [], SpaceTrainer.compute_loss, ErasureResult.save

    def stops_once(trainer, *args, **kwargs):
        trained.append(trainer.state.global_step)
        if trained == [0, 1, 2]:
            raise KeyboardInterrupt
        return compute(trainer, *args, **kwargs)

    def with_little_room(*args):
        least, most = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, most))
        try:
            return save(*args)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (least, most))

    backwards = itertools.count(2e9, -100)
    monkeypatch.setattr(time, "time", lambda: next(backwards))
    monkeypatch.setattr(SpaceTrainer, "compute_loss", stops_once)
    assert one_line(erase(max_steps=3), 130, "stopped") == (
        "stopped in the stage 'training': What was done so far is kept in .out.unfinished. "
        "Run the same command again to go on."
    )
    monkeypatch.setattr(ErasureResult, "save", with_little_room)
    assert "error in the stage 'saving': " in one_line(erase(max_steps=3), 1)
    assert {path.name for path in tmp_path.iterdir()} == {".out.unfinished", "whole"}
    assert not (tmp_path / ".out.unfinished" / "draft").exists()
    monkeypatch.setattr(ErasureResult, "save", save)
    result = erase("--json", "told.json", max_steps=3)
    assert result.exit_code == 0, result.output
    # the step that was stopped, and the two runs after it
    assert trained == [0, 1, 2, 2, 2]
    assert saved(tmp_path / "out") == saved(tmp_path / "whole")
    assert {path.name for path in tmp_path.iterdir()} == {"out", "whole", "told.json"}
    report, undisturbed = (json.loads((tmp_path / name / "report.json").read_text()) for name in ("out", "whole"))
    assert report == json.loads((tmp_path / "told.json").read_text())
    assert all(report[key] == undisturbed[key] for key in ("readings", "gauges", "leak", "stopped", "steps"))


def test_erase_stopped_before_anything_was_kept(erase, monkeypatch, tmp_path):
    def stopped(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("peft_space.loading.load_base", stopped)
    told = one_line(erase(), 130, "stopped")
    assert told == "stopped in the stage 'model': Nothing is left behind. Run the same command again to go on."
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_another_process_writes(erase, tmp_path):
    program = "import sys\nfrom peft_space.unfinished import unfinished\n"
    program += "with unfinished('out'): print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=tmp_path, text=True
    ) as first:
        assert first.stdout.readline() == "held\n"
        told = one_line(erase(), 2)
        first.stdin.close()
    assert told.startswith("error: `output` must be a folder that no other process writes; got 'out'")


def test_erase_from_a_base_in_4_bits(erase, tmp_path):
    pytest.importorskip("bitsandbytes")
    result = erase("--load-in-4bit", "--low-memory")
    assert result.exit_code == 0, result.output
    assert "Stored in 4 bits:" in result.stdout and (tmp_path / "out" / "adapter_model.safetensors").exists()


def test_erase_in_few_bits_of_two_kinds(erase):
    assert "must not be given together" in one_line(erase("--load-in-4bit", "--load-in-8bit"), 1)


def test_erase_limits_what_it_reads(erase, tmp_path):
    protected = ("--protect", "sebgup", "--relatives", "0")
    result = erase("--drop-recognised", *protected, "--json", "told.json", limit=16, seed=1)
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "told.json").read_text())
    assert report["anchors"]["public_images"] == 16 and report["anchors"]["skipped"] == 0 and report["seed"] == 1
    assert list(report["protected"]) == ["sebgup"] and report["protected"]["sebgup"] > 0
    assert "skipped" not in result.stdout


@pytest.mark.parametrize("where", ["./nowhere", "nowhere/at/all", "/nowhere"])
def test_erase_without_a_model_folder(erase, where):
    line = one_line(erase(model=where), 1)
    assert f"`model_id` must be a folder that exists or a Hub model id 'owner/name'; got '{where}'" in line


def test_erase_with_a_folder_that_holds_no_model(erase, pictures):
    assert "error in the stage 'model'" in one_line(erase(model=pictures), 1)


def test_erase_with_a_text_only_model(erase, tmp_path):
    tiny_llama().save_pretrained(tmp_path / "llama")
    line = one_line(erase(model=tmp_path / "llama"), 1)
    assert "must be a vision-language model" in line and "'llama'" in line and "in text only" in line


@pytest.mark.parametrize("concept", ["", " "])
def test_erase_with_an_empty_concept(erase, concept):
    assert "`concept` must be a non-empty name" in one_line(erase(concept=concept), 2)


def test_erase_with_a_text_question_without_the_name(erase):
    assert "must each hold '{name}'" in one_line(erase(text_question="Where?"), 2)


def test_erase_with_a_folder_of_no_images(erase, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "at least one readable picture" in one_line(erase(public_images=tmp_path / "empty"), 1)


def test_erase_without_a_folder_of_images(erase):
    assert "`public_images` must be a folder that exists" in one_line(erase(public_images="./nowhere/at/all"), 1)


def test_erase_with_too_few_images(erase):
    assert "gave 2 usable anchors of 2 images" in one_line(erase(limit=2), 1)


def test_erase_with_one_anchor(erase):
    assert "`n_anchors` must be at least 2; got 1. A single anchor overwrites" in one_line(erase(n_anchors=1), 1)


def test_erase_with_energy_out_of_range(erase):
    assert erase(energy=1.5).exit_code == 2


def test_erase_into_a_folder_that_is_not_empty(erase, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").touch()
    assert "`output` must be a new or empty folder; got 'out'" in one_line(erase(), 2)


def test_erase_shows_the_traceback_only_on_request(erase):
    result = erase("--debug", limit=2)
    assert result.exit_code == 1 and isinstance(result.exception, ValueError)


@pytest.fixture
def search(run, checkpoint, pictures):
    """`peft-space index` and `peft-space anchors` on the checkpoint and the pictures."""

    def search(command, *more):
        concept = ("--concept", "narril", "--question", "What is this creature called?", "--n-anchors", 4)
        told = concept if command == "anchors" else ()
        return run(command, "--model", checkpoint, "--public-images", pictures, "--device", "cpu", *told, *more)

    return search


def test_index_and_anchors(search, tmp_path):
    result = search("index", "--cache", "cache", "--json", "index.json")
    assert result.exit_code == 0, result.output
    told = json.loads((tmp_path / "index.json").read_text())
    assert (told["images"], told["computed"], told["skipped"]) == (24, 24, 4) and told["bytes"] > 24 * 192 * 4
    assert told["skipped_images"][0]["id"] == "broken0.png"
    assert "24 pictures in cache" in result.stdout and "computed now: 24" in result.stdout
    assert "4 of the pictures could not be read and were skipped: broken0.png" in result.stdout
    assert "computed now: 0." in search("index", "--cache", "cache").stdout

    result = search("anchors", "--cache", "cache", "--output", "found", "--json", "told.json")
    assert result.exit_code == 0, result.output
    assert {path.name for path in (tmp_path / "found").iterdir()} == {"anchors.png", "anchors.csv", "anchors.json"}
    report = json.loads((tmp_path / "told.json").read_text())
    assert report == json.loads((tmp_path / "found" / "anchors.json").read_text())
    assert len(report["anchor_images"]["images"]) == report["anchors"]["anchors"] == 4
    assert "projector cosine of the pictures" in result.stdout and "4 anchors of 24 pictures" in result.stdout


def test_anchors_into_a_folder_that_is_not_empty(search, tmp_path):
    (tmp_path / "found").mkdir()
    (tmp_path / "found" / "precious").touch()
    assert "`output` must be a new or empty folder" in one_line(search("anchors", "--output", "found"), 2)


def test_anchors_without_faiss(search, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    line = one_line(search("anchors", "--output", "found", "--search", "faiss"), 1)
    assert "error in the stage 'anchors'" in line and "peft-space[faiss]" in line
