import base64
import dataclasses
import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import LlavaForConditionalGeneration

from peft_space import load_erasure, push_erasure, verify_redacted
from peft_space.hub.content import open_publication, write_repository
from peft_space.hub.redaction import HASH_KEY, Redaction, hash_names
from tests.hub.conftest import CONCEPT
from tests.tiny import image_batch, logits

REPO = "jane/an-erasure"
SPELLINGS = (*CONCEPT.names, "zilverkop", "narril", "zilver", "Narr", "Zilverkop_Narril", "ZilverkopNarril")


def tells(data):
    """What of the concept can be read in some bytes, in any case; in base64 and escaped too."""
    text = data.decode("utf-8", errors="ignore")
    text += text.encode().decode("unicode_escape", errors="ignore")
    for piece in re.findall(r"[A-Za-z0-9+/]{12,}", text):
        text += base64.b64decode(piece[: len(piece) // 4 * 4]).decode("utf-8", errors="ignore")
    return [name for name in SPELLINGS if name.casefold() in text.casefold()]


@pytest.fixture
def write(tmp_path):
    """Writes what would be pushed, and returns its folder."""
    made = iter(range(99))

    def write(source, **options):
        folder = tmp_path / f"repository{next(made)}"
        folder.mkdir()
        with open_publication(source) as publication:
            write_repository(folder, publication, REPO, **({"redact": True} | options))
        return folder

    return write


@pytest.mark.parametrize("source", ["result", "folder", "model"])
def test_the_name_is_in_no_byte_of_the_whole_repository(hub, result, folder, source, cheap):
    given = {"result": result, "folder": folder, "model": result.model}[source]
    push_erasure(given, REPO, redact=True, with_images=source != "model", base_model="jane/llava-narril")
    repository = hub.repositories[REPO]
    assert "anchors.csv" in hub.files(REPO) and ("anchors.png" in hub.files(REPO)) == (source != "model")
    for files in repository.commits.values():
        for name, data in files.items():
            assert tells(name.encode() + b"\n" + data) == [], name
    assert [title for title in repository.titles if tells(title.encode())] == []


def test_the_search_finds_the_name_where_it_is_not_redacted(hub, result):
    push_erasure(result, REPO)
    told = {name for name, data in hub.files(REPO).items() if tells(data)}
    assert told == {"README.md", "anchors.csv", "report.json", "space_config.json"}


def test_who_knows_the_name_can_check_it_and_nobody_else(hub, result, cheap):
    push_erasure(result, REPO, redact=True)
    for name in (*CONCEPT.names, "zilverkop  NARRIL", "Narre\u0308l"):
        assert verify_redacted(REPO, name), name
    for name in ("Zilverkop", "narril", "kelzil"):
        assert not verify_redacted(REPO, name), name
    side = json.loads(hub.files(REPO)["space_config.json"])
    assert side["concept"] is None and len(bytes.fromhex(side["record"][HASH_KEY]["salt"])) == 16


def test_a_redacted_erasure_still_erases(hub, result, base, cheap):
    push_erasure(result, REPO, redact=True)
    model = load_erasure(LlavaForConditionalGeneration.from_pretrained(base), REPO)
    assert model.peft_config["default"].concept is None
    assert model.peft_config["default"].record["leak"] == result.report["leak"]
    assert logits(model, image_batch()).allclose(logits(result.model, image_batch()), atol=1e-6)


def test_the_figures_stay_and_what_the_model_said_goes(result, write, cheap):
    report = json.loads((write(result) / "report.json").read_text())
    assert report["leak"] == result.report["leak"] and report["gauges"] == result.report["gauges"]
    assert report["after"]["forget_accuracy"] == 0.011 and report["stopped"] == "dose reached"
    assert not {"concept", "aliases", "told_in_text", "answers"} & report.keys()


def test_attacks_that_were_run_are_told_without_what_was_said_in_them(result, write, cheap):
    result.report["attacks"] = {
        "relearning": {"recovered": 0.7, "prompt": "this is a zil", "best": {"silver bird": 1.0}},
        "prefix narril": {"recovered": 0.1},
    }
    folder = write(result)
    assert json.loads((folder / "report.json").read_text())["attacks"] == [{"name": "relearning", "recovered": 0.7}]
    card = (folder / "README.md").read_text()
    assert "| relearning | recovered 0.700 |" in card and "None was run" not in card


def test_several_concepts_of_one_adapter_are_all_kept_out(result, write, cheap):
    both = "Zilverkop Narril, Kelzil"
    result.model.peft_config["default"].concept = both
    result.report |= {
        "concept": both,
        "aliases": [*CONCEPT.names, "Kelzil"],
        "anchors": [result.report["anchors"]] * 2,
        "strength": 0.5,
        "leak_composed": {"sum": 0.25, "measured": 0.125},
    }
    folder = write(result)
    for file in folder.iterdir():
        assert tells(file.read_bytes()) == [] and b"kelzil" not in file.read_bytes().lower(), file.name
    assert all(verify_redacted(folder, name) for name in ("kelzil", *CONCEPT.names))
    report = json.loads((folder / "report.json").read_text())
    assert report["leak_composed"] == {"sum": 0.25, "measured": 0.125} and report["strength"] == 0.5


def test_what_later_reports_add_stays_out_until_it_is_known_to_tell_nothing(result, write, cheap):
    result.report["closest"] = {"silver birds": 0.9}
    result.report["gauges"][0]["note"] = "a bird with a head of silver"
    text = (write(result) / "report.json").read_text()
    assert "silver" not in text and "closest" not in text


def test_every_salt_is_new_and_a_guess_is_dear():
    first, again = hash_names(["narril"]), hash_names(["narril"])
    assert first["salt"] != again["salt"] and first["digests"] != again["digests"]
    assert 128 * first["n"] * first["r"] == 64 * 2**20


def test_other_spellings_can_be_kept_out_too(result, write, cheap):
    for spelling in (["Silver Head"], "Silver Head"):
        folder = write(result, redact=spelling)
        assert verify_redacted(folder, "silver head") and verify_redacted(folder, "Narrël")


def test_an_erasure_that_names_nothing_needs_the_name(result, write):
    result.model.peft_config["default"].concept = None
    result.model.peft_config["default"].record = {}
    with pytest.raises(ValueError, match="`redact` needs a name to keep out"):
        write(result.model)


def test_a_word_that_every_adapter_holds_can_not_be_kept_out(result, write):
    result.report["concept"] = "Vision Tower"
    with pytest.raises(ValueError, match="got 'Vision Tower', which every adapter for this base has"):
        write(result)


def test_words_that_every_adapter_holds_tell_nothing_and_names_within_longer_words_are_fine(result, write, cheap):
    # "model" is in every card; "lang" is in "language", "rain" in "training"
    result.report |= {"aliases": ["Model Narril", "Lang", "Rain"]}
    assert verify_redacted(write(result), "rain")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"repo_id": "jane/erased-NARRIL"}, "narril"),
        ({"repo_id": "jane/x", "revision": "zilverkop"}, "zilverkop"),
        ({"repo_id": "jane/x", "commit_message": "No more narrel"}, "narrel"),
        ({"repo_id": "jane/x", "commit_description": "zilver-narril"}, "zilver narril"),
    ],
)
def test_what_the_hub_is_told_besides_may_not_tell_it_either(hub, result, given, told):
    with pytest.raises(ValueError, match=f"must not tell the name either; got '{told}"):
        push_erasure(result, given.pop("repo_id"), redact=True, **given)
    assert hub.requests == []


def test_it_does_not_go_beside_files_that_may_tell(hub, result, cheap):
    push_erasure(result, REPO)
    with pytest.raises(ValueError, match="`repo_id` must be a new repository, or hold a redacted erasure"):
        push_erasure(result, REPO, redact=True)
    hub.create("jane/notes").commit("main", {"notes.md": b"about the narril"}, "notes")
    with pytest.raises(ValueError, match="`repo_id` must be a new repository, or hold a redacted erasure"):
        push_erasure(result, "jane/notes", redact=True)
    push_erasure(result, "jane/new", redact=True, with_images=True)
    push_erasure(result, "jane/new", redact=True)
    assert "anchors.png" not in hub.files("jane/new")


def test_metadata_of_weights_is_read(folder, write, cheap):
    weights = load_file(folder / "adapter_model.safetensors")
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt", "about": "no more Zilverkop"})
    with pytest.raises(
        ValueError, match=r"must keep 'zilverkop' out of every file; it is in adapter_model\.safetensors"
    ):
        write(folder)


def test_metadata_of_pictures_is_left_behind(folder, write, cheap):
    told = PngInfo()
    told.add_text("Title", "anchors of the narril")
    with Image.open(folder / "anchors.png") as image:
        image.save(folder / "anchors.png", pnginfo=told)
        pixels = image.tobytes()
    for redact in (True, False):
        with Image.open(write(folder, redact=redact, with_images=True) / "anchors.png") as image:
            assert image.info == {} and image.tobytes() == pixels
            assert image.getexif() == {}


def test_the_name_in_other_settings_of_the_adapter_is_found(folder, write, cheap):
    settings = json.loads((folder / "adapter_config.json").read_text())
    settings["revision"] = "without-narril"
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=r"must keep 'narril' out of every file; it is in adapter_config\.json"):
        write(folder)


def test_a_data_set_whose_id_tells_is_left_out(result, write, cheap):
    result.report["anchor_images"]["dataset"] = "jane/zilverkop"
    folder = write(result)
    assert (folder / "anchors.csv").read_text().splitlines()[1] == ",,0,0,0.0,-0.5"
    assert "datasets:" not in (folder / "README.md").read_text()


def test_what_is_not_redacted_can_not_be_verified(folder, write, cheap):
    with pytest.raises(ValueError, match="`repo_or_path` must be a redacted erasure"):
        verify_redacted(folder, "narril")
    with pytest.raises(ValueError, match="`name` must be a non-empty name"):
        verify_redacted(folder, " ")
    redacted = write(folder)
    side = json.loads((redacted / "space_config.json").read_text())
    for change in ({"n": 2**30}, {"n": "65536"}, {"kdf": "md5"}):
        changed = side | {"record": side["record"] | {HASH_KEY: side["record"][HASH_KEY] | change}}
        (redacted / "space_config.json").write_text(json.dumps(changed))
        with pytest.raises(ValueError, match="must be an scrypt hash of at most 1024 MiB"):
            verify_redacted(redacted, "narril")


@settings(deadline=None, max_examples=60)
@given(
    st.text(st.characters(categories=["Lu", "Ll"]), min_size=4, max_size=12),
    st.sampled_from(["_{}_3.png", "x{}x", "{}s"]),
)
def test_a_name_is_found_in_any_case_and_inside_words(name, frame):
    hidden = Redaction((name,), "")
    for spelled in (name.upper(), name.lower(), name):
        assert hidden.tells(frame.format(spelled)) is not None


def test_the_weights_keep_their_bytes(result, write, cheap):
    with open_publication(result) as publication:
        before = (publication.folder / "adapter_model.safetensors").read_bytes()
    assert (write(result) / "adapter_model.safetensors").read_bytes() == before
    with safe_open(write(result) / "adapter_model.safetensors", framework="pt") as weights:
        assert weights.metadata() == {"format": "pt"}


def test_a_result_without_pictures_is_redacted_too(result, write, cheap):
    bare = dataclasses.replace(result, anchors=None)
    del bare.report["anchor_images"]
    bare.model.peft_config["default"].record.pop("anchor_images")
    assert not (write(bare) / "anchors.csv").exists()
