"""Runs atheris, where it is installed, over the same readers: `python -m tests.hostile.fuzz TARGET --seconds 60`.

It starts with whole files and changes bytes, of JSON entries too; what a reader raises but an error that it documents
ends the run, and the input lies beside as `crash-...`. Without a target every one is run, in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

TARGETS = "side_file adapter_config report weights subspace picture tar parquet rows scores".split()
WRITTEN_IN_JSON = ("side_file", "adapter_config", "report", "rows")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", nargs="?", choices=TARGETS)
    parser.add_argument("--seconds", type=int, default=60)
    given = parser.parse_args()
    if given.target is None:
        again = [sys.executable, "-m", "tests.hostile.fuzz", "--seconds", str(given.seconds)]
        # all are run, whatever one of them finds
        sys.exit(max([subprocess.run([*again, target]).returncode for target in TARGETS]))
    try:
        import atheris
    except ImportError:
        sys.exit("this needs atheris: pip install atheris")
    with atheris.instrument_imports(include=["peft_space", "tarfile", "PIL"]):
        from tests.hostile.targets import is_read_or_refused, seeds
    from tests.hostile.drawing import ODD, places

    def change(data: bytes, size: int, seed: int) -> bytes:
        draw = random.Random(seed)
        try:
            value = json.loads(data)
            *path, last = draw.choice(places(value)[1:])
        except (ValueError, IndexError, RecursionError):
            return atheris.Mutate(data, size)
        if not draw.randrange(3):
            return atheris.Mutate(data, size)
        parent = value
        for key in path:
            parent = parent[key]
        parent[last] = draw.choice(ODD)
        return json.dumps(value).encode()[:size]

    def read(data: bytes) -> None:
        is_read_or_refused(given.target, data)

    print(f"== {given.target}", flush=True)
    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(seeds(given.target)):
            Path(corpus, str(number)).write_bytes(seed)
        limits = ["-max_len=65536", "-len_control=0", "-rss_limit_mb=8192", "-timeout=60"]
        arguments = [sys.argv[0], f"-max_total_time={given.seconds}", *limits, corpus]
        options = {"custom_mutator": change} if given.target in WRITTEN_IN_JSON else {}
        atheris.Setup(arguments, read, **options)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
