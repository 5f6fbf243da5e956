from pathlib import Path
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from peft_space.cli import AliasOption, ConfigOption, Dtype, DtypeOption, In4BitOption, JsonOption, SeedOption

job = typer.Typer()


@job.command()
def told(
    folder: Annotated[str, typer.Argument()],
    public_images: Annotated[str, typer.Option()],
    alias: AliasOption = None,
    rank: Annotated[int | None, typer.Option(min=1)] = None,
    energy: Annotated[float | None, typer.Option(min=0, max=1)] = None,
    dtype: DtypeOption = Dtype.AUTO,
    load_in_4bit: In4BitOption = False,
    json_file: JsonOption = None,
    seed: SeedOption = 0,
    config: ConfigOption = None,
) -> None:
    print(folder, public_images, alias, rank, energy, dtype.value, load_in_4bit, json_file, seed, sep="|")


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(text, *words):
        Path("job.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
        return CliRunner().invoke(job, [*words, "--config", "job.yaml"])

    return run


WHOLE = """
folder: out
public-images: pictures
aliases: [J. Doe, "007"]
rank: 8
energy: 0.5
dtype: float32
load_in_4bit: true
json: told.json
seed: 3
"""


def test_a_file_gives_options_by_the_names_of_the_command_line(run):
    result = run(WHOLE)
    assert result.exit_code == 0, result.output
    assert result.stdout == "out|pictures|['J. Doe', '007']|8|0.5|float32|True|told.json|3\n"


def test_the_command_line_comes_first(run):
    result = run(WHOLE, "in", "--rank", "4", "--alias", "Jane", "--dtype", "auto")
    assert result.exit_code == 0, result.output
    assert result.stdout == "in|pictures|['Jane']|4|0.5|auto|True|told.json|3\n"


def test_what_is_in_neither_has_its_default(run):
    assert run("public_images: pictures", "in").stdout == "in|pictures|None|None|None|auto|False|None|0\n"


def test_what_is_needed_and_in_neither_is_asked_for(run):
    result = run("rank: 2", "in")
    assert result.exit_code == 2 and "--public-images" in result.stderr


LOTS = "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ranks: 8", "`ranks` in job.yaml must be an option of `told`: alias, aliases, debug"),
        ("config: other.yaml", "`config` in job.yaml must be an option"),
        ("rank: many", "`rank` in job.yaml must be a whole number; got 'many'."),
        ("rank: 2.5", "`rank` in job.yaml must be a whole number; got 2.5."),
        ("rank: true", "`rank` in job.yaml must be a whole number; got True."),
        ("rank: '8'", "`rank` in job.yaml must be a whole number; got '8'."),
        ("rank: 0", "`rank` in job.yaml must be at least 1; got 0."),
        ("rank:", "`rank` in job.yaml must be a whole number; got None."),
        ("energy: 1.5", "`energy` in job.yaml must be from 0 to 1; got 1.5."),
        ("load-in-4bit: 1", "`load-in-4bit` in job.yaml must be true or false; got 1."),
        ("dtype: half", "`dtype` in job.yaml must be one of auto, float32, bfloat16, float16; got 'half'."),
        (
            "alias: narril",
            "`alias` in job.yaml must be a list, as the option may be given several times; got 'narril'.",
        ),
        ("alias: [no]", "`alias` in job.yaml must be text; got False. Put it in quotes."),
        ("alias: [[x]]", "`alias` in job.yaml must be text; got ['x']."),
        ("folder: {a: b}", "`folder` in job.yaml must be text; got {'a': 'b'}."),
        ("rank: 2\nrank: 3", "`rank` in job.yaml must be given once; it is there 2 times."),
        ("alias: [a]\naliases: [b]", "`aliases` in job.yaml must be given once; there is another spelling of it."),
        ("1: 2", "`1` in job.yaml must be the name of an option."),
        ("[a, b]: 2", "`config` must be YAML without tags; got job.yaml:"),
        ("- rank: 2", "`config` must hold options, as `name: value` lines; got job.yaml, which does not."),
        ("", "`config` must hold options"),
        ("rank", "`config` must hold options"),
        ("rank: [", "`config` must be YAML without tags; got job.yaml:"),
        ("rank: !!python/object/apply:os.system ['true']", "`config` must be YAML without tags; got job.yaml:"),
        (b"rank: \xff\xfe", "`config` must be YAML without tags; got job.yaml:"),
        (LOTS, "`config` must hold no aliases; got job.yaml. Write out what `*...` stands for."),
        (
            "rank: " + "[" * 20_000,
            "`config` must hold values and lists of them; got job.yaml, which nests them deeper.",
        ),
        ("#" * 70_000, "`config` must be a file of at most 65536 bytes; got job.yaml, of 70000."),
    ],
)
def test_a_file_that_is_wrong_is_told_in_one_line(run, text, message):
    result = run(text, "in", "--public-images", "pictures")
    message = message.replace("aliases, debug", "aliases, dtype")
    assert result.exit_code == 2 and result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"error: {message}"), line


def test_a_file_that_is_not_there(run, tmp_path):
    result = CliRunner().invoke(job, ["in", "--config", "nowhere.yaml"])
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert "No such file or directory: 'nowhere.yaml'" in line
