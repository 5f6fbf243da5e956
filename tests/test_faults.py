import subprocess
import sys
from pathlib import Path

import pytest


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
