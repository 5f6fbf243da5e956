import subprocess
import sys

import peft_space

_HEAVY = {"torch", "transformers", "peft", "accelerate", "numpy", "huggingface_hub"}


def loaded_by(program):
    """Which of the heavy packages a new interpreter has loaded after a program."""
    program = f"import sys\n{program}\nprint(*{_HEAVY} & set(sys.modules))"
    return set(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout.split())


def test_importing_the_package_loads_nothing_heavy():
    assert not loaded_by("import peft_space; assert 'erase' in dir(peft_space)")


def test_help_loads_nothing_heavy():
    program = """
import contextlib, io
from peft_space.cli import app
for words in (["--help"], ["erase", "--help"], ["erase", "--rank", "x"]):
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()) as said:
        app(words)
"""
    assert not loaded_by(program)
    assert loaded_by(f"{program}\nimport numpy") == {"numpy"}


def test_every_name_is_there():
    assert all(getattr(peft_space, name) is not None for name in peft_space.__all__)
    assert set(peft_space.__all__) <= set(dir(peft_space))


def test_a_name_that_is_used_registers_space():
    program = """
from peft_space import Concept
import peft
if not hasattr(peft.PeftType, "SPACE"): sys.modules.pop("torch")
"""
    assert "torch" in loaded_by(program)
