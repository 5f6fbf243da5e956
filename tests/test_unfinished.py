import os
import signal
import subprocess
import sys

import pytest

from peft_space.adapter import whole_folder
from peft_space.unfinished import kept, unfinished, unfinished_folder, workplace, writes_output


def test_the_folder_goes_when_all_went_well(tmp_path):
    with unfinished(tmp_path / "out") as folder:
        assert folder == unfinished_folder(tmp_path / "out") == workplace()
        (folder / "part").touch()
    assert list(tmp_path.iterdir()) == [] and workplace() is None


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_what_there_is_to_go_on_from_stays_after_an_error(tmp_path, error):
    with pytest.raises(error), unfinished(tmp_path / "out") as folder:
        (folder / "part").touch()
        raise error
    assert kept(tmp_path / "out") == folder and (folder / "part").exists()
    with unfinished(tmp_path / "out") as again:
        assert (again / "part").exists()
    assert list(tmp_path.iterdir()) == []


def test_an_error_before_there_is_anything_leaves_nothing(tmp_path):
    with pytest.raises(ValueError), unfinished(tmp_path / "out"):
        raise ValueError
    assert list(tmp_path.iterdir()) == []


def test_inside_itself_it_is_the_same(tmp_path):
    with unfinished(tmp_path / "out") as outer:
        with unfinished(tmp_path / "out") as inner:
            assert inner == outer
        assert outer.exists()
    assert not outer.exists()


def test_a_relative_folder_and_the_one_that_one_is_in(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert unfinished_folder("out").name == ".out.unfinished"
    assert unfinished_folder(".").name == ".here.unfinished"


def test_an_output_that_is_not_empty(tmp_path):
    (tmp_path / "precious").touch()
    with pytest.raises(ValueError, match="`output` must be a new or empty folder"), unfinished(tmp_path, "output"):
        pass
    assert not unfinished_folder(tmp_path).exists()


def test_what_a_process_left_that_was_killed_after_all_was_written_goes(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "adapter").touch()
    (unfinished_folder(tmp_path / "out") / "features").mkdir(parents=True)
    with pytest.raises(ValueError, match="must be a new or empty folder"), unfinished(tmp_path / "out"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_where_nothing_can_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="Not a directory"), unfinished(tmp_path / "file" / "out"):
        pass


def test_a_second_process_is_told_and_a_killed_one_holds_nothing(tmp_path):
    program = "import sys\nfrom peft_space.unfinished import unfinished\nwith unfinished(sys.argv[1]) as folder:\n"
    program += "    (folder / 'part').touch()\n    print('held', flush=True)\n    sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", program, tmp_path / "out"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as first:
        assert first.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match=r"`output` must be a folder that no other process writes; got .*out'"):
            unfinished(tmp_path / "out", "output").__enter__()
        with pytest.raises(ValueError, match="that no other process writes"), whole_folder(tmp_path / "out"):
            pass
        assert kept(tmp_path / "out") is not None
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
    with unfinished(tmp_path / "out") as folder:
        assert (folder / "part").exists()


def test_the_draft_of_a_killed_process_is_swept(tmp_path):
    draft = unfinished_folder(tmp_path / "out") / "draft"
    draft.mkdir(parents=True)
    (draft / "half").touch()
    with whole_folder(tmp_path / "out") as folder:
        (folder / "whole").touch()
    assert [path.relative_to(tmp_path) for path in sorted(tmp_path.rglob("*"))] == [
        (tmp_path / "out").relative_to(tmp_path),
        (tmp_path / "out" / "whole").relative_to(tmp_path),
    ]


def test_a_call_without_an_output_has_no_workplace(tmp_path):
    found = writes_output(lambda *, output_dir=None: workplace())
    assert found() is None
    assert found(output_dir=tmp_path / "out") == unfinished_folder(tmp_path / "out")
