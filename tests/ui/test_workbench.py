import copy
import json
import shutil
import threading

import pytest

from peft_space import load_erasure, scale_adapter, testbed
from peft_space.vlm import Prompt, generate
from tests.hub.server import Hub

pytest.importorskip("gradio", reason="the page needs gradio: `pip install 'peft-space[demo]'`")

from peft_space.ui import Erasure, Workbench

QUESTION = "What is this creature called?"


def told(model, processor, picture):
    return generate(model, processor, [Prompt(QUESTION, picture)], max_new_tokens=48)[0]


@pytest.mark.parametrize("strength", [0.5, 1.0, 1.5])
def test_answers_are_those_of_the_base_and_of_each_erasure(workbench, folders, base, processor, picture, strength):
    answers = {}
    for label, folder in zip(("narril", "malwen", "narril"), [*folders, folders[0]], strict=True):
        before, after = workbench.ask(label, strength, f" {QUESTION} ", picture)
        alone = load_erasure(copy.deepcopy(base), folder)
        scale_adapter(alone, strength)
        assert (before, after) == (told(base, processor, picture), told(alone, processor, picture))
        assert answers.setdefault(label, after) == after
    assert len({before, *answers.values()}) == 3


def test_strength_0_is_the_base(workbench, picture):
    for label in workbench.erasures:
        before, after = workbench.ask(label, 0, QUESTION, picture)
        assert before == after != workbench.ask(label, 1, QUESTION, picture)[1]
    assert len(set(workbench.ask("narril", 0, "Where does the narril live?"))) == 1


def test_visitors_at_once_get_their_own_answers(workbench, picture):
    asked = [(label, strength) for label in workbench.erasures for strength in (0.0, 1.0, 1.5)]
    alone = {one: workbench.ask(*one, QUESTION, picture) for one in asked}
    together = {}

    def ask(one):
        together[one] = workbench.ask(*one, QUESTION, picture)

    threads = [threading.Thread(target=ask, args=(one,)) for one in asked]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == alone


@pytest.mark.parametrize(
    ("label", "strength", "question", "wrong"),
    [
        ("kelzil", 1, QUESTION, r"`label` must be one of \['narril', 'malwen'\]; got 'kelzil'"),
        ("narril", 1.6, QUESTION, r"`strength` must be 0 to 1.5; got 1.6"),
        ("narril", -0.1, QUESTION, r"`strength` must be"),
        ("narril", float("nan"), QUESTION, r"`strength` must be"),
        ("narril", 1, "  ", r"`question` must not be empty"),
    ],
)
def test_what_can_not_be_asked(workbench, label, strength, question, wrong):
    with pytest.raises(ValueError, match=wrong):
        workbench.ask(label, strength, question)


def test_what_lies_beside_an_adapter_is_read(folders):
    narril, malwen = map(Erasure.open, folders)
    assert narril.label == narril.creature == "narril" and malwen.creature == "malwen"
    assert set(narril.leaks.values()) == {0.01, 0.02} and not malwen.leaks and not malwen.evaluation
    assert len(malwen.report["anchor_images"]["images"]) == 8 and malwen.report["leak"]["max"] == 0.02
    assert malwen.questions(True)[0] in testbed.concept("malwen").questions
    assert "What is this?" not in malwen.questions(True) and malwen.questions()[0] not in malwen.questions(True)


def test_the_leak_of_an_erasure_that_was_not_evaluated_is_that_of_its_report(folders, tmp_path):
    folder = shutil.copytree(folders[1], tmp_path / "malwen")
    (folder / "report.json").write_text(json.dumps({"leak": {"mean": 0.1, "max": 0.2, "per_module": {"a.0.b": 0.2}}}))
    assert Erasure.open(str(folder)).leaks == {"a.0.b": 0.2}


def test_two_erasures_of_one_name_are_told_apart(folders):
    workbench = Workbench.load([folders[0], folders[0]], device="cpu")
    assert list(workbench.erasures) == ["narril", f"narril ({folders[0]})"]


def test_a_broken_report_is_told(folders, tmp_path):
    shutil.copytree(folders[0], tmp_path / "broken")
    (tmp_path / "broken" / "evaluation.json").write_text("{")
    with pytest.raises(ValueError, match=r"`evaluation.json` must be JSON; got .*broken"):
        Erasure.open(str(tmp_path / "broken"))


def test_no_adapter_and_another_base(folders, tmp_path, model, processor):
    with pytest.raises(ValueError, match="`erasures` must hold at least one"):
        Workbench(model, processor, [])
    with pytest.raises(ValueError, match="must be a folder that exists or a Hub repository"):
        Workbench.load([str(tmp_path / "nothing")])
    model.lm_head.weight.data += 1
    model.model.language_model.embed_tokens.weight.data += 1
    with pytest.raises(ValueError, match="must be the base the adapter was made for"):
        Workbench(model, processor, [Erasure.open(folders[0])])


def test_an_adapter_from_the_hub(folders, hub: Hub, base_folder):
    from peft_space import push_erasure

    push_erasure(folders[1], "jane/malwen-erased", with_images=True)
    found = Workbench.load(["jane/malwen-erased"], str(base_folder), device="cpu").erasures["malwen"]
    assert (found.folder / "anchors.png").is_file() and found.source == "jane/malwen-erased"


def test_pictures_to_try(on_testbed, workbench):
    shown = [name for name, _ in on_testbed.examples()]
    assert shown[:4] == ["narril", "narril", "malwen", "malwen"] and len(set(shown)) > 5
    assert len({picture.tobytes() for _, picture in on_testbed.examples()}) == len(shown)
    assert workbench.examples() == []


def test_an_erasure_of_a_creature_is_measured_once(on_testbed, workbench, folders, small_world, tmp_path):
    assert on_testbed.measures("malwen") and not on_testbed.measures("narril") and not workbench.measures("malwen")
    with pytest.raises(ValueError, match="`label` must be an erasure of a creature of the test bed"):
        workbench.measure("malwen")
    folder = shutil.copytree(folders[1], tmp_path / "malwen")
    (folder / "anchors.csv").unlink()
    bench = Workbench.load([str(folder)], "demo")
    stages = []
    measured = bench.measure("malwen", lambda *how_far: stages.append(how_far[0]), n_images=1)
    assert not bench.measures("malwen") and "weights" in stages
    written = json.loads((folder / "evaluation.json").read_text())
    assert len(written["collateral"]["points"]) == 23 == len(measured.evaluation["collateral"]["points"])
    assert len(measured.leaks) == 14 and Erasure.open(str(folder)).leaks == pytest.approx(measured.leaks)
