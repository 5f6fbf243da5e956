import copy
import functools
import json

import pytest
from typer.testing import CliRunner

from peft_space import attacks, cli, save_erasure_adapter
from tests.adapters import shake, space


@pytest.fixture
def adapter(base, tmp_path):
    folder = tmp_path / "erased" / "narril"
    save_erasure_adapter(shake(space(copy.deepcopy(base), subspace=False, concept="narril")), folder)
    (folder / "report.json").write_text(json.dumps({"aliases": ["nar"], "steps": 4}))
    return folder


@pytest.fixture
def pictures(public, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(4):
        public.images[number].save(folder / f"{number}.png")
    return folder


@pytest.fixture
def audit(base_folder, adapter, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    small = functools.partial(attacks.audit_erasure, n_bootstrap=100, max_new_tokens=4, strengths=(0.0,))
    monkeypatch.setattr(attacks, "audit_erasure", small)

    def audit(*words, **options):
        given = {"base": base_folder, "device": "cpu", "question": "Name the creature.", "n-images": 4} | options
        line = [str(word) for name, value in given.items() if value is not None for word in (f"--{name}", value)]
        return CliRunner().invoke(cli.app, ["audit", str(adapter), *line, *map(str, words)])

    return audit


def test_it_writes_the_audit_and_the_card_beside_the_adapter(audit, adapter, pictures):
    result = audit("--target-images", pictures, "--attacks", "removal", "--attacks", "membership")
    assert result.exit_code == 0, result.output
    report = json.loads((adapter / "audit" / "audit.json").read_text())
    assert report["concept"] == "narril" and report["aliases"] == ["nar"]
    assert report["settings"]["attacks"] == ["membership", "removal"]
    assert (adapter / "audit" / "audit.md").is_file() and (adapter / "README.md").is_file()
    kept = json.loads((adapter / "report.json").read_text())
    assert kept["steps"] == 4 and isinstance(kept["attacks"], list)
    assert "what attacks got" in result.stdout and "what was not run" in result.stdout


def test_elsewhere_and_under_another_name(audit, adapter, base_folder, tmp_path):
    there = ("--output", tmp_path / "out", "--oracle", base_folder)
    result = audit("--concept", "keltus", *there, "--attacks", "text", "--other", "zormok")
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "out" / "audit.json").read_text())
    assert report["concept"] == "keltus" and report["aliases"] == []
    assert report["sides"] == ["base", "erased", "oracle"]
    assert set(report["unknown"]) == {"text"} and not (adapter / "audit").exists()


@pytest.mark.parametrize(
    ("options", "status", "told"),
    [
        ({"attacks": "pruning"}, 2, "error: `--attacks` must be 'all' or some of relearning"),
        ({"target-images": "./nowhere/at/all"}, 1, "error in the stage 'pictures': `public_images` must be a folder"),
    ],
)
def test_what_goes_wrong_is_told_in_one_line(audit, options, status, told):
    result = audit(**options)
    assert result.exit_code == status and any(line.startswith(told) for line in result.stderr.splitlines())


def test_an_adapter_that_tells_no_name_needs_one(audit, adapter):
    settings = json.loads((adapter / "space_config.json").read_text()) | {"concept": None}
    (adapter / "space_config.json").write_text(json.dumps(settings))
    (adapter / "report.json").write_text("{}")
    result = audit()
    assert result.exit_code == 2 and "`--concept` must name one concept where the adapter does not" in result.stderr


def test_help(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")
    told = CliRunner().invoke(cli.app, ["audit", "--help"]).stdout
    assert all(f"--{name}" in told for name in ("base", "target-images", "attacks", "oracle", "output"))
