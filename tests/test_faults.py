import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from peft_space.cli import app


@pytest.mark.slow
def test_an_erasure_that_was_killed_comes_to_the_same_adapter():
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults", "--kills", "3", "--seed", "6"],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("same adapter, nothing left") == 3
    assert "; 0 of 3 runs after them failed" in done.stdout.splitlines()[-1]


@pytest.fixture
def disk(tmp_path):
    """A file system of its own, of 64 KiB; gives its folder and what mounts it anew with other options."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options):
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True, capture_output=True)

    try:
        mount("size=64k")
    except (FileNotFoundError, subprocess.CalledProcessError):
        pytest.skip("mounting a file system takes rights that this process has not")
    yield folder, lambda options: mount(f"remount,{options}")
    subprocess.run(["umount", folder], check=True)


def test_an_index_on_a_full_and_on_a_read_only_disk(disk, base_folder, public, tmp_path):
    folder, remount = disk
    (tmp_path / "pictures").mkdir()
    for number, image in enumerate(public.images[:30]):
        image.save(tmp_path / "pictures" / f"{number}.png")

    def run(command, *words):
        given = ["--model", base_folder, "--public-images", tmp_path / "pictures", "--cache", folder / "features"]
        return CliRunner().invoke(app, [command, *map(str, given), "--device", "cpu", *map(str, words)])

    (folder / "filler").write_bytes(bytes(60 * 1024))
    full = run("index")
    assert full.exit_code == 1 and "No space left on device" in full.stderr and "Traceback" not in full.output
    remount("size=8m")
    assert "computed now: 30." in run("index").stdout
    remount("ro")
    there = run("anchors", "--concept", "narril", "--n-anchors", 8, "--output", tmp_path / "found")
    assert there.exit_code == 0 and (tmp_path / "found" / "anchors.json").is_file(), there.output
    (tmp_path / "pictures" / "0.png").unlink()
    public.images[31].save(tmp_path / "pictures" / "new.png")
    more = run("index")
    assert more.exit_code == 1 and "Read-only file system" in more.stderr and "Traceback" not in more.output
