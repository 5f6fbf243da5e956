import dataclasses
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import EvalResultEntry, constants, model_info, parse_eval_result_entries
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlavaForConditionalGeneration

from peft_space import SpaceConfig, load_erasure, merge_and_save, push_erasure
from tests.adapters import shake, space
from tests.hub.conftest import CONCEPT
from tests.tiny import image_batch, logits, tiny_llama, tiny_llava

REPO = "jane/narril-erased"
FILES = {
    ".gitattributes",
    "README.md",
    "adapter_config.json",
    "adapter_model.safetensors",
    "anchors.csv",
    "report.json",
    "space_config.json",
}


@pytest.fixture
def impatient(monkeypatch):
    """Retries follow at once."""
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)


def test_a_push_is_one_commit_of_everything_but_the_images(hub, result):
    commit = push_erasure(result, REPO)
    files = hub.files(REPO)
    assert set(files) == FILES
    assert hub.count("POST", "/commit/") == 1 and commit.oid == hub.repositories[REPO].branches["main"]
    assert json.loads(files["adapter_config.json"])["peft_type"] == "LORA"
    side = json.loads(files["space_config.json"])
    assert side["concept"] == CONCEPT.name and side["record"]["leak"] == {"mean": 0.0251, "max": 0.0612}
    rows = files["anchors.csv"].decode().splitlines()
    assert rows[0] == "dataset,split,id,index,cosine,log_likelihood"
    assert rows[1:] == [
        "jane/public-birds,train,birds/zilverkop_narril_0.png,0,0.0,-0.5",
        "jane/public-birds,train,birds/zilverkop_narril_2.png,2,0.4,-1.5",
    ]
    assert json.loads(files["report.json"])["told_in_text"] == result.report["told_in_text"]


def test_result_folder_and_push_to_hub_make_the_same_repository(hub, result, folder):
    push_erasure(result, REPO)
    expected = hub.files(REPO)
    for source in (lambda: push_erasure(folder, REPO), lambda: result.model.push_to_hub(REPO)):
        del hub.repositories[REPO]
        source()
        assert hub.files(REPO) == expected


def test_what_was_pulled_can_be_pushed_again(hub, result, base):
    push_erasure(result, REPO)
    expected = hub.files(REPO)
    again = load_erasure(LlavaForConditionalGeneration.from_pretrained(base), REPO)
    del hub.repositories[REPO]
    again.push_to_hub(REPO)
    assert hub.files(REPO) == expected


def test_push_to_hub_of_other_adapters_is_as_it_was(hub):
    get_peft_model(tiny_llama(), LoraConfig(target_modules=["q_proj"])).push_to_hub(REPO)
    assert set(hub.files(REPO)) == {
        ".gitattributes", "README.md", "adapter_config.json", "adapter_model.safetensors",
    }  # fmt: skip


def test_no_path_of_this_machine_is_published(hub, result, tmp_path):
    push_erasure(result, REPO)
    for name, data in hub.files(REPO).items():
        assert str(tmp_path).encode() not in data, name
    side = json.loads(hub.files(REPO)["space_config.json"])
    assert json.loads(hub.files(REPO)["adapter_config.json"])["base_model_name_or_path"] is None
    assert side["base_fingerprint"]["name"] == "llava-tiny" and b"`llava-tiny`" in hub.files(REPO)["README.md"]
    push_erasure(result, REPO, base_model="jane/llava-tiny")
    assert json.loads(hub.files(REPO)["adapter_config.json"])["base_model_name_or_path"] == "jane/llava-tiny"


def test_the_images_go_up_on_request_and_are_gone_with_the_next_push(hub, result, folder):
    push_erasure(result, REPO, with_images=True)
    assert set(hub.files(REPO)) == FILES | {"anchors.png"}
    assert b"anchors.png" in hub.files(REPO)["README.md"]
    picture = hub.files(REPO)["anchors.png"]
    push_erasure(folder, REPO, with_images=True)
    assert hub.files(REPO)["anchors.png"] == picture
    push_erasure(result, REPO)
    assert set(hub.files(REPO)) == FILES
    with pytest.raises(ValueError, match="`with_images` needs the anchors' pictures"):
        push_erasure(result.model, REPO, with_images=True)


def test_results_on_benchmarks_of_the_hub_go_where_it_reads_them(hub, result):
    entry = EvalResultEntry("MLLMMU/MLLMU-Bench", "forget_5", 0.12)
    push_erasure(result, REPO, eval_results=[entry])
    assert parse_eval_result_entries(yaml.safe_load(hub.files(REPO)[".eval_results/erasure.yaml"])) == [entry]


def test_a_private_repository_is_private_to_those_without_its_token(hub, result, base, monkeypatch):
    push_erasure(result, REPO, private=True)
    assert model_info(REPO).private
    monkeypatch.delenv("HF_TOKEN")
    model = LlavaForConditionalGeneration.from_pretrained(base)
    with pytest.raises(ValueError, match="`path` must be a folder that exists or a Hub repository that you may read"):
        load_erasure(model, REPO)
    assert not hasattr(model, "peft_config")
    loaded = load_erasure(model, REPO, token="hf_reader")
    assert logits(loaded, image_batch()).allclose(logits(result.model, image_batch()), atol=1e-6)


def test_nothing_goes_to_a_public_repository_that_was_to_be_private(hub, result):
    hub.create(REPO)
    with pytest.raises(ValueError, match="`private` must be left out for a repository that is public already"):
        push_erasure(result, REPO, private=True)
    assert set(hub.files(REPO)) == {".gitattributes"}
    push_erasure(result, REPO)
    assert set(hub.files(REPO)) == FILES


@pytest.mark.parametrize("token", [None, "hf_reader"])
def test_a_push_without_a_token_that_may_write_is_refused(hub, result, nobody, token):
    with pytest.raises(ValueError, match=f"`token` must be one that may write to {REPO}"):
        push_erasure(result, REPO, token=token)
    assert hub.repositories == {}


@pytest.mark.parametrize(
    "where", [("PUT", "/store/"), ("POST", "objects/batch"), ("POST", "/commit/"), ("POST", "/preupload/")]
)
def test_a_connection_that_is_cut_publishes_nothing_and_the_next_push_completes_it(hub, result, impatient, where):
    hub.cut = where
    with pytest.raises(ConnectionError, match="whole or not at all"):
        push_erasure(result, REPO)
    assert set(hub.files(REPO)) == {".gitattributes"}
    hub.cut = None
    push_erasure(result, REPO)
    assert set(hub.files(REPO)) == FILES


def test_a_cut_push_leaves_the_last_one_as_it_was(hub, result, impatient):
    push_erasure(result, REPO, with_images=True)
    before = hub.files(REPO)
    result.model.peft_config["default"].record["leak"] = result.report["leak"] = {"mean": 0.5, "max": 0.5}
    hub.cut = ("POST", "/commit/")
    with pytest.raises(ConnectionError):
        push_erasure(result, REPO)
    assert hub.files(REPO) == before


def test_pushing_the_same_again_changes_nothing_and_sends_no_weights(hub, result):
    first = push_erasure(result, REPO)
    again = push_erasure(result, REPO)
    assert again.oid == first.oid and hub.count("PUT", "/store/") == 1


def test_a_commit_whose_answer_got_lost_is_not_made_twice(hub, result):
    hub.mute = ("POST", "/commit/")
    with pytest.raises(ConnectionError, match="whole or not at all"):
        push_erasure(result, REPO)
    assert set(hub.files(REPO)) == FILES
    hub.mute = None
    assert push_erasure(result, REPO).oid == hub.repositories[REPO].branches["main"]
    assert len(hub.repositories[REPO].titles) == 2


def test_without_a_hub_a_push_says_so(hub, result, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(ConnectionError, match=f"the push to {REPO} did not come to its end"):
        push_erasure(result, REPO)


def test_an_adapter_in_a_subfolder_is_found(hub, result, base):
    push_erasure(result, REPO)
    files = hub.files(REPO)
    hub.repositories[REPO].commit("main", {f"strong/{name}": data for name, data in files.items()}, "move it")
    loaded = load_erasure(LlavaForConditionalGeneration.from_pretrained(base), REPO, subfolder="strong")
    assert logits(loaded, image_batch()).allclose(logits(result.model, image_batch()), atol=1e-6)
    pickled = {
        "strong/adapter_config.json": files["adapter_config.json"],
        "strong/adapter_model.bin": b"",
        "x.bin": b"",
    }
    hub.repositories[REPO].commit("main", pickled, "pickle it")
    with pytest.raises(ValueError, match=r"only pickled weights \(adapter_model\.bin\)"):
        load_erasure(tiny_llava(), REPO, subfolder="strong")


def test_a_revision_is_a_branch_of_its_own(hub, result, base):
    push_erasure(result, REPO, revision="strong")
    assert set(hub.files(REPO)) == {".gitattributes"} and set(hub.files(REPO, "strong")) == FILES
    model = LlavaForConditionalGeneration.from_pretrained(base)
    with pytest.raises(
        ValueError, match="`revision` must be a branch, tag or commit of jane/narril-erased; got 'weak'"
    ):
        load_erasure(model, REPO, revision="weak")
    loaded = load_erasure(model, REPO, revision="strong")
    assert logits(loaded, image_batch()).allclose(logits(result.model, image_batch()), atol=1e-6)
    commit = hub.repositories[REPO].branches["strong"]
    assert load_erasure(tiny_llava(), REPO, revision=commit).peft_config["default"].concept == CONCEPT.name


def test_a_pull_request_leaves_the_branch_alone(hub, result):
    commit = push_erasure(result, REPO, create_pr=True, commit_message="An erasure")
    assert commit.pr_url == f"{hub.endpoint}/{REPO}/discussions/1"
    assert set(hub.files(REPO)) == {".gitattributes"} and set(hub.files(REPO, "refs/pr/1")) == FILES
    assert hub.repositories[REPO].titles[-1] == "An erasure"
    assert load_erasure(tiny_llava(), REPO, revision="refs/pr/1").peft_config["default"].concept == CONCEPT.name
    with pytest.raises(ValueError, match="`revision` must be left out with `create_pr`"):
        push_erasure(result, REPO, create_pr=True, revision="strong")


@pytest.fixture
def elsewhere(result, tmp_path):
    """Runs a program in another process, in which `saved` holds a batch and the logits of the erased model."""
    batch = image_batch()
    torch.save({"batch": batch, "expected": logits(result.model, batch)}, tmp_path / "saved.pt")
    start = f"""
        import sys
        import torch
        from transformers import LlavaForConditionalGeneration

        saved = torch.load({str(tmp_path / "saved.pt")!r})

        def same(model):
            with torch.no_grad():
                told = model.eval()(**saved["batch"]).logits
            torch.testing.assert_close(told, saved["expected"], atol=1e-6, rtol=0)

        def base():
            return LlavaForConditionalGeneration.from_pretrained({str(tmp_path / "llava-tiny")!r})
    """

    def elsewhere(program, **environment):
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(start) + textwrap.dedent(program)],
            env=os.environ | {"HF_HUB_DISABLE_XET": "1"} | environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    return elsewhere


def test_another_process_without_this_package_pulls_the_same_erasure(hub, result, elsewhere, tmp_path):
    push_erasure(result, REPO, private=True)
    program = f"""
        class Blocker:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] == "peft_space":
                    raise ImportError("blocked")

        sys.meta_path.insert(0, Blocker())
        from peft import PeftConfig, PeftModel

        assert type(PeftConfig.from_pretrained({REPO!r})).__name__ == "LoraConfig"
        same(PeftModel.from_pretrained(base(), {REPO!r}))
        own = base()
        own.load_adapter({REPO!r})
        same(own)
        assert "peft_space" not in sys.modules
        print("same logits")
    """
    told = elsewhere(program, HF_ENDPOINT=hub.endpoint, HF_HOME=str(tmp_path / "home"), HF_TOKEN="hf_reader")
    assert "same logits" in told


def test_after_a_first_pull_another_process_loads_it_offline(hub, result, base, elsewhere, tmp_path):
    push_erasure(result, REPO)
    load_erasure(LlavaForConditionalGeneration.from_pretrained(base), REPO)
    hub.requests.clear()
    program = f"""
        from peft import PeftModel
        from peft_space import load_erasure

        same(PeftModel.from_pretrained(base(), {REPO!r}))
        same(load_erasure(base(), {REPO!r}))
        try:
            load_erasure(base(), "jane/another")
        except ConnectionError as error:
            print(error)
    """
    told = elsewhere(
        program,
        HF_ENDPOINT=hub.endpoint,
        HF_HUB_CACHE=str(tmp_path / "cache"),
        HF_HUB_OFFLINE="1",
        PYTHONPATH=str(Path(__file__).parents[2]),
    )
    assert "got 'jane/another', which is not in the cache, and the Hub can't be asked" in told
    assert hub.requests == []


def test_all_files_come_from_one_commit(hub, result, base):
    push_erasure(result, REPO)
    model = load_erasure(LlavaForConditionalGeneration.from_pretrained(base), REPO)
    assert isinstance(model, PeftModel)
    sha = hub.repositories[REPO].branches["main"]
    fetched = [path for method, path in hub.requests if method == "GET" and "/resolve/" in path]
    assert len(fetched) >= 2 and all(f"/resolve/{sha}/" in path for path in fetched)
    assert not any("report.json" in path for path in fetched)


def test_the_wrong_base_of_the_same_shape_is_refused_by_name(hub, result):
    push_erasure(result, REPO, base_model="jane/llava-tiny")
    wrong = tiny_llava(seed=1)
    with pytest.raises(ValueError, match=r"must be the base the adapter was made for, jane/llava-tiny; .*check_base"):
        load_erasure(wrong, REPO)
    assert not hasattr(wrong, "peft_config")
    assert load_erasure(wrong, REPO, check_base=False).peft_config["default"].concept == CONCEPT.name


def test_pickled_weights_on_the_hub_are_refused_and_not_even_fetched(hub, result):
    push_erasure(result, REPO)
    files = dict(hub.files(REPO))
    files["adapter_model.bin"] = files.pop("adapter_model.safetensors")
    hub.repositories[REPO].commit("main", files, "pickle it")
    hub.requests.clear()
    with pytest.raises(ValueError, match=r"only pickled weights \(adapter_model\.bin\), which run code"):
        load_erasure(tiny_llava(), REPO)
    assert hub.count("GET", r"\.bin") == 0 and hub.count("HEAD", r"\.bin") == 0
    push_erasure(result, REPO)
    assert set(hub.files(REPO)) == FILES


def test_an_adapter_on_the_hub_is_merged(hub, result, base, tmp_path):
    push_erasure(result, REPO, private=True)
    output = merge_and_save(REPO, base, tmp_path / "merged", token="hf_reader")
    merged = LlavaForConditionalGeneration.from_pretrained(output)
    assert logits(merged, image_batch()).allclose(logits(result.model, image_batch()), atol=1e-5)


def test_a_base_on_the_hub_is_merged_at_the_commit_that_the_adapter_was_made_for(hub, base, tmp_path):
    checkpoints = [base, tmp_path / "later"]
    tiny_llava(seed=1).save_pretrained(checkpoints[1])
    repository = hub.create("jane/llava")
    repository.commit("main", {file.name: file.read_bytes() for file in base.iterdir()}, "first")
    erased = shake(space(LlavaForConditionalGeneration.from_pretrained("jane/llava")))
    repository.commit("main", {file.name: file.read_bytes() for file in checkpoints[1].iterdir()}, "second")
    push_erasure(erased, REPO)
    card = hub.files(REPO)["README.md"].decode()
    commit = erased.peft_config["default"].base_fingerprint["revision"]
    assert commit in repository.commits and f'from_pretrained("jane/llava", revision="{commit}")' in card
    merged = LlavaForConditionalGeneration.from_pretrained(merge_and_save(REPO, None, tmp_path / "merged"))
    assert logits(merged, image_batch()).allclose(logits(erased, image_batch()), atol=1e-5)
    with pytest.raises(ValueError, match="must be the base the adapter was made for, jane/llava"):
        merge_and_save(REPO, "jane/llava", tmp_path / "other")


@pytest.mark.parametrize("repo_id", ["", "a/b/c", 3])
def test_what_is_no_repository_is_refused(result, repo_id):
    with pytest.raises(ValueError, match="`repo_id` must be a Hub id, 'owner/name'"):
        push_erasure(result, repo_id)


def test_what_holds_no_erasure_is_refused(tmp_path):
    with pytest.raises(TypeError, match="`result_or_dir` must be what `erase` returned"):
        push_erasure(tiny_llama(), REPO)
    with pytest.raises(ValueError, match="`result_or_dir` must be a folder that exists"):
        push_erasure(tmp_path / "nowhere", REPO)
    with pytest.raises(ValueError, match=r"must hold `adapter_model\.safetensors`"):
        push_erasure(tmp_path, REPO)
    with pytest.raises(ValueError, match="must be one of the SPACE adapters"):
        push_erasure(space(tiny_llama()), REPO, adapter_name="another")


def test_of_several_erasures_each_is_published_by_itself(hub, result):
    model = result.model
    model.add_adapter("second", SpaceConfig(r=2, concept="kelzil", record={"leak": {"mean": 0.5, "max": 0.5}}))
    model.base_model.set_adapter(["default", "second"])
    with pytest.raises(
        ValueError, match=r"`adapter_name` must say which of the active erasures \['default', 'second'\]"
    ):
        model.push_to_hub(REPO)
    model.push_to_hub(REPO, adapter_name="second")
    assert json.loads(hub.files(REPO)["space_config.json"])["concept"] == "kelzil"
    own = dataclasses.replace(result, report=model.peft_config["second"].record, anchors=None, adapter_name="second")
    for given, concept in ((own, "kelzil"), (result, CONCEPT.name), (model, CONCEPT.name)):
        push_erasure(given, REPO)
        assert json.loads(hub.files(REPO)["space_config.json"])["concept"] == concept
    assert json.loads(hub.files(REPO)["adapter_config.json"])["r"] == 4


def test_push_to_hub_says_what_it_does_not_take(result):
    with pytest.raises(ValueError, match="must not be given tags"):
        result.model.push_to_hub(REPO, tags=["mine"])


def test_a_push_does_not_change_the_model(hub, result):
    config = result.model.peft_config["default"]
    before = dict(vars(config)), dict(config.record)
    push_erasure(result, REPO, redact=False, base_model="jane/llava-tiny")
    assert type(config) is SpaceConfig and (dict(vars(config)), dict(config.record)) == before
