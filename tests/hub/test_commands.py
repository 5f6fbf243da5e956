"""The commands that publish, merge, export and inspect."""

import json
import re

import pytest
from huggingface_hub.utils import enable_progress_bars
from peft import PeftModel
from transformers import LlavaForConditionalGeneration
from transformers.utils import logging
from typer.testing import CliRunner

from peft_space.cli import app
from tests.hub.conftest import CONCEPT
from tests.tiny import image_batch, logits, tiny_llava

REPO = "jane/an-erasure"


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs a command in the folder that holds base and adapter."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("NO_COLOR", "1")
    level = logging.get_verbosity()
    yield lambda *words: CliRunner().invoke(app, [str(word) for word in words])
    logging.set_verbosity(level)
    logging.enable_progress_bar()
    enable_progress_bars()


def one_line(result, status):
    """The line that a failure is told in."""
    assert result.exit_code == status, result.output
    assert "Traceback" not in result.output
    lines = [line for line in result.stderr.splitlines() if line.startswith("error")]
    assert len(lines) == 1, result.stderr
    return lines[0]


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("push", ["REPO_ID", "--private", "--redact", "--with-images", "--create-pr", "--revision", "--base-model"]),
        ("merge", ["REPO_OR_PATH", "OUTPUT", "--base", "--dtype", "--any-base"]),
        ("export-lora", ["REPO_OR_PATH", "OUTPUT"]),
        ("inspect", ["REPO_OR_PATH", "--name", "--json"]),
    ],
)
def test_help(run, command, told):
    result = run(command, "--help")
    assert result.exit_code == 0 and all(text in result.stdout for text in told)


def test_push(run, hub, folder):
    result = run(
        "push", "erased", REPO, "--private", "--with-images", "--base-model", "jane/llava", "--license", "mit"
    )
    assert result.exit_code == 0, result.output
    commit = hub.repositories[REPO].branches["main"]
    assert result.stdout.strip() == f"Published: {hub.endpoint}/{REPO}/commit/{commit}"
    files = hub.files(REPO)
    assert hub.repositories[REPO].private and "anchors.png" in files
    assert result.stderr == ""
    assert b"license: mit" in files["README.md"] and b"base_model: jane/llava" in files["README.md"]


def test_push_as_a_pull_request_and_to_a_branch(run, hub, folder):
    result = run("push", "erased", REPO, "--create-pr")
    assert result.stdout.strip() == f"Published: {hub.endpoint}/{REPO}/discussions/1"
    assert run("push", "erased", REPO, "--revision", "strong").exit_code == 0
    assert set(hub.repositories[REPO].branches) == {"main", "refs/pr/1", "strong"}


def test_push_redacted_and_inspect_by_name(run, hub, folder, cheap):
    result = run("push", "erased", REPO, "--redact", "--also-redact", "Silver Head")
    assert result.exit_code == 0, result.output
    assert "Zilver" not in result.output
    told = run("inspect", REPO, "--json", "facts.json")
    assert told.exit_code == 0 and "a concept whose name was kept out" in told.stdout
    assert "narril" not in told.output.casefold()
    for name, verified in (("silver head", True), (CONCEPT.name, True), ("kelzil", False)):
        told = run("inspect", REPO, "--name", name)
        assert told.exit_code == 0 and ("it is this name" in told.stdout) == verified
        assert ("it is not this name" in told.stdout) != verified


def test_push_says_in_one_line_what_is_wrong(run, hub, folder, nobody):
    assert "`token` must be one that may write" in one_line(run("push", "erased", REPO), 1)
    assert "`result_or_dir` must be a folder that exists" in one_line(run("push", "nowhere", REPO), 1)
    assert "`--also-redact` needs `--redact`" in one_line(run("push", "erased", REPO, "--also-redact", "x"), 2)
    assert "`repo_id` must not tell" not in run("push", "erased", "jane/narril", "--token", "hf_writer").output
    line = one_line(run("push", "erased", "jane/narril2", "--redact", "--token", "hf_writer"), 1)
    assert "must not tell the name either" in line


def test_merge(run, hub, folder, result, tmp_path):
    assert run("push", "erased", REPO, "--private").exit_code == 0
    done = run("merge", REPO, "merged", "--base", "llava-tiny", "--token", "hf_reader")
    assert done.exit_code == 0 and "The merged model is in merged" in done.stdout, done.output
    merged = LlavaForConditionalGeneration.from_pretrained(tmp_path / "merged")
    assert logits(merged, image_batch()).allclose(logits(result.model, image_batch()), atol=1e-5)


def test_merge_into_another_base_only_on_request(run, folder, tmp_path):
    tiny_llava(seed=1).save_pretrained(tmp_path / "other")
    line = one_line(run("merge", "erased", "merged", "--base", "other"), 1)
    assert "must be the base the adapter was made for" in line and not (tmp_path / "merged").exists()
    done = run("merge", "erased", "merged", "--base", "other", "--any-base", "--dtype", "bfloat16")
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["dtype"] == "bfloat16"
    assert "`output` must be a new or empty folder" in one_line(run("merge", "erased", "merged"), 2)


def test_export_lora(run, hub, folder, result, tmp_path):
    assert run("push", "erased", REPO, "--revision", "strong").exit_code == 0
    done = run("export-lora", REPO, "lora", "--revision", "strong")
    assert done.exit_code == 0 and "The LoRA adapter is in lora" in done.stdout, done.output
    assert {file.name for file in (tmp_path / "lora").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    loaded = PeftModel.from_pretrained(tiny_llava(), tmp_path / "lora")
    assert logits(loaded, image_batch()).allclose(logits(result.model, image_batch()), atol=1e-6)
    assert "`output` must be a new or empty folder" in one_line(run("export-lora", REPO, "lora"), 2)
    assert "`path` must be a folder that exists or a Hub" in one_line(run("export-lora", "jane/none", "x"), 1)


@pytest.mark.parametrize("where", ["folder", "Hub"])
def test_inspect(run, hub, folder, where, tmp_path):
    path = "erased"
    if where == "Hub":
        path = REPO
        assert run("push", "erased", REPO, "--base-model", "jane/llava").exit_code == 0
        hub.requests.clear()
    told = run("inspect", path, "--json", "facts.json")
    assert told.exit_code == 0, told.output
    row = dict(re.findall(r"│ ([^│]+?) +│ ([^│]+?) +│\n", told.stdout))
    assert row["erases"] == "Zilverkop Narril, zilver-narril, Narrël"
    assert row["base"].endswith("jane/llava" if where == "Hub" else "llava-tiny")
    assert row["adapter"] == "LoRA of rank 4 (alpha 8), targets: 14"
    assert row["dose reached"] == "yes (dose reached, after 40 steps)"
    assert row["leak"] == "0.0251 mean, 0.0612 at most"
    assert row["anchors"] == "2 public images of jane/public-birds" and row["attacks run"] == "none"
    assert re.search(r"target images called by the name +│ +96.0 │ +1.1", told.stdout)
    assert re.search(r"name +│ +4.10 │ +-6.50 │ +-7.25", told.stdout)
    facts = json.loads((tmp_path / "facts.json").read_text())
    assert facts["concept"] == list(CONCEPT.names) and facts["rank"] == 4 and facts["leak"]["mean"] == 0.0251
    assert not any("safetensors" in path for _, path in hub.requests)


def test_inspect_an_adapter_that_says_little(run, folder):
    (folder / "report.json").unlink()
    side = json.loads((folder / "space_config.json").read_text()) | {
        "record": {"attacks": {"relearning": {"fa": 0.5}}}
    }
    (folder / "space_config.json").write_text(json.dumps(side))
    told = run("inspect", "erased").stdout
    assert "Zilverkop Narril" in told and "relearning" in told
    assert re.search(r"leak +│ not known, not known", told) and re.search(r"dose reached +│ not known", told)


def test_inspect_what_was_not_reached(run, folder):
    report = json.loads((folder / "report.json").read_text()) | {"reached": False, "stopped": "max_steps"}
    (folder / "report.json").write_text(json.dumps(report))
    assert "NO: the concept may still be told (max_steps, after 40 steps)" in run("inspect", "erased").stdout


def test_inspect_what_could_not_be_watched(run, folder):
    report = json.loads((folder / "report.json").read_text())
    report["gauges"].append({"about": "yes or no", "before": -2.0, "after": -8.0, "reference": -6.5})
    (folder / "report.json").write_text(json.dumps(report))
    told = " ".join(run("inspect", "erased").stdout.replace("│", " ").split())
    assert "yes, of what could be watched, which leaves out: yes or no (dose reached, after 40 steps)" in told


def test_inspect_what_is_no_erasure(run, tmp_path, hub):
    (tmp_path / "empty").mkdir()
    assert "adapter_config.json" in one_line(run("inspect", "empty"), 1)
    assert "the Hub says that it is not there, or private" in one_line(run("inspect", "jane/none"), 1)
