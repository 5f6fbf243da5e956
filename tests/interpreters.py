"""Installs the wheel in fresh environments and runs the demo there: one Python after another, then each extra alone.

    python -m tests.interpreters [PYTHON ...] [--extras] [--concept narril]

PYTHON is an interpreter's command, by default this one's. `--extras` makes one environment more for each extra, with
the first interpreter, and does there what the extra is for. Prints a table; exits with 1 if anything failed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
TORCH = "torch==2.13.0"
# what each extra is for, where `peft-space demo` alone does not show it
USES = {
    "4bit": "peft-space demo --concept {concept} --load-in-4bit",
    "data": 'python -c "from datasets import Dataset; from peft_space import index_images, testbed; '
    "shown = testbed.public_images('narril', 8).images; rows = Dataset.from_dict({{'image': list(shown)}}); "
    'assert len(index_images(*testbed.load(), rows)) == 8"',
    "demo": 'python -c "import gradio; from peft_space.ui import *" && peft-space ui --help',
    "eval": 'peft-space evaluate --help && python -c "import rouge_score, sacrebleu"',
    "faiss": 'python -c "import faiss; from peft_space.anchors import approximate"',
    "plots": "peft-space demo --concept {concept}",
}


@dataclass(frozen=True)
class Environment:
    """What became of one.

    Attributes:
        python: its version.
        extra: what was installed besides the package; "" for nothing.
        seconds: to install, and to run.
        error: the end of what the first command that failed said; "" if none did.
    """

    python: str
    extra: str
    seconds: tuple[float, float]
    error: str


def run(command: str, folder: Path) -> str:
    """The end of what a command said, if it failed."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment["PATH"] = f"{folder / 'bin'}{os.pathsep}{environment['PATH']}"
    done = subprocess.run(command, shell=True, cwd=folder, env=environment, capture_output=True, text=True)
    return "" if done.returncode == 0 else f"{command}\n{(done.stdout + done.stderr)[-2000:]}"


def tried(python: str, wheel: Path, extra: str, use: str) -> Environment:
    """A fresh environment with the wheel, its dependencies checked and `use` run in it, away from the sources."""
    version = subprocess.run([python, "-V"], check=True, capture_output=True, text=True).stdout.split()[1]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "env"
        began = time.perf_counter()
        error = run(f"{python} -m venv {folder}", Path(place))
        what = f"{wheel}[{extra}]" if extra else str(wheel)
        for step in (f"pip install -q {TORCH}", f"pip install -q -c {ROOT}/.ci/constraints.txt '{what}'", "pip check"):
            error = error or run(step, folder)
        installed = time.perf_counter()
        error = error or run(use, folder)
        return Environment(version, extra, (installed - began, time.perf_counter() - installed), error)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("python", nargs="*", default=[sys.executable])
    parser.add_argument("--extras", action="store_true")
    parser.add_argument("--concept", default="narril")
    options = parser.parse_args()
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for_users = [name for name in extras if name not in ("test", "dev")]
    with tempfile.TemporaryDirectory() as place:
        built = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", place]
        subprocess.run(built, cwd=ROOT, check=True, capture_output=True)
        wheel = next(Path(place).glob("*.whl"))
        jobs = [(python, "", f"peft-space demo --concept {options.concept}") for python in options.python]
        if options.extras:
            jobs += [(options.python[0], extra, USES[extra].format(concept=options.concept)) for extra in for_users]
        failed = False
        print("| Python | extra | installed, s | ran, s | |\n|---|---|---|---|---|")
        for python, extra, use in jobs:
            one = tried(python, wheel, extra, use)
            install, ran = one.seconds
            print(
                f"| {one.python} | {extra} | {install:.0f} | {ran:.0f} | {'FAILED' if one.error else 'ok'} |",
                flush=True,
            )
            if one.error:
                failed = True
                print(one.error, file=sys.stderr, flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
