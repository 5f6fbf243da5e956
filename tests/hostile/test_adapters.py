"""Adapters that anybody may have made: they load, or are refused, and touch nothing else."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
import time
from dataclasses import fields

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from peft_space import SpaceConfig, inspect_erasure, load_erasure, merge_and_save, verify_redacted
from peft_space import _peft as peft_internals
from peft_space.hub import record_attacks
from peft_space.hub.content import open_publication
from peft_space.untrusted import MOST_JSON, read_json
from tests.hostile.drawing import changed_bytes, changed_json, few
from tests.hostile.targets import CONFIG, SIDE, WEIGHTS, adapter, is_read_or_refused, load, seeds, told_of
from tests.tiny import tiny_llama

KEYS = tuple(f.name for f in fields(SpaceConfig))


@pytest.mark.parametrize("target", ["side_file", "adapter_config", "report", "weights", "subspace", "scores"])
def test_whole_files_are_read(target):
    assert all(is_read_or_refused(target, seed) for seed in seeds(target))


@pytest.mark.parametrize("target", ["side_file", "adapter_config", "report"])
@few(15)
@given(data=st.data())
def test_changed_entries_are_read_or_refused(target, data):
    is_read_or_refused(target, data.draw(changed_json(seeds(target)[0], KEYS if target == "adapter_config" else ())))


@pytest.mark.parametrize("target", ["side_file", "adapter_config", "report", "weights", "subspace", "scores"])
@few(15)
@given(data=st.data())
def test_changed_bytes_are_read_or_refused(target, data):
    is_read_or_refused(target, data.draw(changed_bytes(data.draw(st.sampled_from(seeds(target))))))


@few(15)
@given(data=st.data())
def test_a_changed_record_of_a_subspace_is_read_or_refused(data):
    is_read_or_refused("subspace", data.draw(changed_json(seeds("subspace")[0])))


@pytest.mark.parametrize("name", [CONFIG, SIDE, "report.json"])
@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"a":' * 100_000,
        "9" * 5000,
        "",
        "\x00",
        "null",
        "[]",
        '"x"',
        b"\xff\xfe{}",
        '{"a": 1' + "0" * 5000,
    ],
    ids=["lists", "mappings", "digits", "nothing", "nul", "null", "list", "text", "utf-16", "number"],
)
def test_json_that_is_no_object_is_refused(name, text):
    with adapter() as folder:
        (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(ValueError, match=f"`{name}` must be a file that holds a JSON object"):
            inspect_erasure(folder)


def test_no_more_is_read_of_json_than_is_bearable(tmp_path):
    file = tmp_path / "side.json"
    with file.open("wb") as sparse:
        sparse.truncate(2**40)
    with pytest.raises(ValueError, match=f"at most {MOST_JSON >> 20} MiB; got more"):
        read_json(file)


@pytest.mark.parametrize("name", [CONFIG, SIDE, "report.json"])
def test_what_is_no_regular_file_is_not_opened(name):
    with adapter() as folder:
        (folder / name).unlink()
        os.mkfifo(folder / name)
        with pytest.raises(ValueError, match=f"`{name}`"):
            inspect_erasure(folder)


@pytest.mark.parametrize("length", [2**60, 2**63 - 1, 0, 8, 100_000_001])
def test_a_header_that_claims_more_than_there_is_is_refused(length):
    with adapter() as folder:
        (folder / WEIGHTS).write_bytes(struct.pack("<Q", length) + b'{"a": 1}')
        with pytest.raises(ValueError, match=f"`{WEIGHTS}` must be a whole safetensors file"):
            load(folder)


def header(**tensors) -> bytes:
    text = json.dumps(tensors).encode()
    return struct.pack("<Q", len(text)) + text


@pytest.mark.parametrize("shape", [[2**30], [2**40, 2**40], [-1], [1.5], "x"])
def test_a_shape_that_claims_more_than_there_is_is_refused(shape):
    with adapter() as folder:
        (folder / WEIGHTS).write_bytes(header(a={"dtype": "F32", "shape": shape, "data_offsets": [0, 4]}) + b"\0" * 4)
        with pytest.raises(ValueError, match=f"`{WEIGHTS}` must be a whole safetensors file"):
            load(folder)


def change(folder, name: str, **entries) -> None:
    (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | entries))


def test_a_rank_that_nothing_in_the_file_bears_out_takes_no_memory():
    with adapter() as folder:
        change(folder, CONFIG, r=10**9)
        shapes = {key: value.shape for key, value in load_file(folder / WEIGHTS).items()}
        # a factor of no width takes no byte, whatever its rank
        empty = {
            key: {
                "dtype": "F32",
                "shape": [10**9, 0] if "lora_A" in key else [0, 10**9],
                "data_offsets": [0, 0],
            }
            for key in shapes
        }
        (folder / WEIGHTS).write_bytes(header(**empty))
        with pytest.raises(ValueError, match="must hold factors for 32 inputs and 32 outputs"):
            load(folder)


@pytest.mark.parametrize(
    "change_of", [lambda t: t.reshape(-1), lambda t: t[..., :-1].contiguous()], ids=["flat", "thin"]
)
@pytest.mark.parametrize("factor", ["lora_A", "lora_B"])
def test_factors_of_another_shape_are_refused(factor, change_of):
    with adapter() as folder:
        tensors = load_file(folder / WEIGHTS)
        save_file({k: change_of(t) if factor in k else t for k, t in tensors.items()}, folder / WEIGHTS)
        with pytest.raises(ValueError, match=f"`{WEIGHTS}` must hold factors"):
            load(folder)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("r", 0),
        ("r", "8"),
        ("r", True),
        ("lora_alpha", float("nan")),
        ("lora_alpha", float("inf")),
        ("lora_alpha", "1"),
        ("lora_dropout", 2),
        ("rank_pattern", {"q_proj": -1}),
        ("rank_pattern", [1]),
        ("rank_pattern", None),
        ("alpha_pattern", None),
        ("alpha_pattern", {"q_proj": float("nan")}),
        ("target_modules", 3),
        ("target_modules", [["q_proj"]]),
        ("exclude_modules", {"a": 1}),
        ("layers_to_transform", "1"),
        ("layers_pattern", "(a+)+"),
        ("base_model_name_or_path", ["x"]),
        ("auto_mapping", {"parent_library": 3}),
        ("megatron_config", {"tensor_model_parallel_size": 1}),
        ("layer_replication", [[0, 10**6]]),
        ("modules_to_save", ["lm_head"]),
        ("trainable_token_indices", [1]),
        ("target_parameters", ["weight"]),
        ("peft_type", "IA3"),
        ("peft_type", ["LORA"]),
        ("task_type", "NOTHING"),
        ("init_lora_weights", "pissa"),
        ("init_lora_weights", ["x"]),
        ("eva_config", 3),
    ],
)
def test_settings_that_can_not_be_are_refused(field, value):
    with adapter() as folder:
        change(folder, CONFIG, **{field: value})
        with pytest.raises(ValueError, match=f"{field}|{CONFIG}"):
            SpaceConfig.from_pretrained(folder)


def test_an_adapter_that_targets_nothing_is_refused():
    with adapter() as folder:
        change(folder, CONFIG, target_modules=None)
        with pytest.raises(ValueError, match=r"`target_modules` in .* must be names or a pattern"):
            load_erasure(tiny_llama(), folder)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("concept", 3),
        ("concept", {"a": 1}),
        ("parts", 3),
        ("base_fingerprint", {"name": "x"}),
        ("base_fingerprint", {"config": "x", "name": None, "revision": None, "weights": {"a": ["b"]}}),
        ("record", []),
        ("r", 3),
        ("__class__", "x"),
        ("format", 2),
    ],
)
def test_a_side_file_of_another_form_is_refused(field, value):
    with adapter() as folder:
        change(folder, SIDE, **{field: value})
        with pytest.raises(ValueError, match=f"`{field}`|{SIDE}"):
            SpaceConfig.from_pretrained(folder)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("aliases", 3),
        ("gauges", [3]),
        ("gauges", [{"about": 1}]),
        ("leak", [1]),
        ("leak", {"mean": "x"}),
        ("before", []),
        ("anchor_images", {"images": 3}),
        ("anchor_images", {"dataset": None, "split": None, "images": [{}]}),
        ("attacks", [3]),
        ("reached", "yes"),
        ("stopped", {}),
        ("steps", "many"),
        ("strength", "x"),
        ("concept_hash", "x"),
    ],
)
def test_a_report_of_another_form_is_refused(field, value):
    with adapter() as folder:
        change(folder, "report.json", **{field: value})
        with pytest.raises(ValueError, match=f"as `{field}`"):
            inspect_erasure(folder)


@pytest.mark.parametrize(
    "hashed",
    [
        3,
        {},
        {"kdf": "scrypt", "n": 16, "r": 8, "p": 1, "salt": "zz", "digests": []},
        {"kdf": "scrypt", "n": 15, "r": 8, "p": 1, "salt": "00", "digests": []},
        {"kdf": "scrypt", "n": 2**40, "r": 8, "p": 1, "salt": "00", "digests": []},
        {"kdf": "scrypt", "n": 16, "r": 8, "p": 1, "salt": "00", "digests": 3},
    ],
)
def test_a_hash_of_another_form_is_refused(hashed):
    with adapter() as folder:
        record = json.loads((folder / SIDE).read_text())["record"]
        change(folder, SIDE, record=record | {"concept_hash": hashed})
        with pytest.raises(ValueError, match="`concept_hash` must be an scrypt hash"):
            verify_redacted(folder, "a thing")


@pytest.mark.parametrize("field", ["target_modules", "exclude_modules", "rank_pattern", "alpha_pattern"])
def test_a_pattern_that_takes_for_ever_is_refused_in_time(field, monkeypatch):
    monkeypatch.setattr(peft_internals, "MATCHING_SECONDS", 0.2)
    slow = r"(\w|\w\w|\w\.|\.\w|\.)+\d(?<!\d)"
    with adapter() as folder:
        change(folder, CONFIG, **{field: {slow: 2} if field.endswith("pattern") else slow})
        before = time.monotonic()
        with pytest.raises(ValueError, match=f"`{field}` must be names or a pattern.*takes more than"):
            load(folder)
        assert time.monotonic() - before < 60


@pytest.mark.parametrize("pattern", ["(", "[", "a{99999999999}", "(" * 5000 + ")" * 5000, "*", "(?P<a>x)(?P<a>y)"])
def test_a_pattern_that_is_none_is_refused(pattern):
    with adapter() as folder:
        change(folder, CONFIG, target_modules=pattern)
        with pytest.raises(ValueError, match="`target_modules` must be names or a pattern that can be matched"):
            load(folder)


def test_patterns_choose_what_they_chose():
    """Names take their place in a model, and the same modules get the same ranks."""
    model = tiny_llama()
    config = SpaceConfig(
        target_modules=r".*layers\.\d+\.(self_attn|mlp)\.(q|up)_proj",
        exclude_modules=r".*\.0\..*",
        rank_pattern={r"self_attn\..*": 2, "up_proj": 3},
        alpha_pattern={r".*q_proj": 5},
    )
    named = peft_internals.with_names(config, model)
    targets = peft_internals.modules_matching(config, model)
    assert (
        targets
        == peft_internals.modules_matching(named, model)
        == ["model.layers.1.self_attn.q_proj", "model.layers.1.mlp.up_proj"]
    )
    assert [peft_internals.rank_of(named, name) for name in targets] == [2, 3]
    assert [peft_internals.rank_of(config, name) for name in targets] == [2, 3]
    assert named.alpha_pattern == dict.fromkeys(named.alpha_pattern, 5) and targets[0] in named.alpha_pattern


def test_nothing_is_unpickled(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "exploded"),))

    with adapter() as folder:
        for name in (WEIGHTS, "adapter_model.bin"):
            (folder / name).write_bytes(pickle.dumps(Bomb()))
        with pytest.raises(ValueError, match=f"`{WEIGHTS}` must be a whole safetensors file"):
            load(folder)
        (folder / WEIGHTS).unlink()
        with pytest.raises(ValueError, match="only pickled weights"):
            load(folder)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("parent", ["antigravity", "os", "tests.hostile.nothing"])
def test_a_module_that_settings_name_is_not_imported(parent):
    import sys

    with adapter() as folder:
        change(folder, CONFIG, auto_mapping={"base_model_class": "LlamaForCausalLM", "parent_library": parent})
        before = set(sys.modules)
        told_of(folder)
        load(folder)
        assert parent not in set(sys.modules) - before


@pytest.mark.parametrize("name", ["pipeline", "__doc__", "AutoTokenizer", "AutoModel", "os", "", "TFBertModel"])
def test_only_a_model_is_loaded_as_the_base(name, tmp_path):
    tiny_llama().save_pretrained(tmp_path / "base")
    with adapter(tmp_path / "base") as folder:
        change(folder, CONFIG, auto_mapping={"base_model_class": name}, base_model_name_or_path=str(tmp_path / "base"))
        with pytest.raises(ValueError, match="`base` must be a model of transformers"):
            merge_and_save(folder, None, folder / "out")
        assert not (folder / "out").exists()


@pytest.mark.parametrize("name", ["../../etc", "/etc", "~/models/base", "a/b/c", ""])
def test_an_adapter_of_the_hub_names_no_folder_of_this_machine(name, tmp_path, monkeypatch):
    from peft_space.adapter import merge

    with adapter() as folder:
        change(folder, CONFIG, base_model_name_or_path=name)
        monkeypatch.setattr(merge, "fetch_adapter", lambda *args, **options: folder)
        with pytest.raises(ValueError, match=r"`base` must be given: the adapter names .* no Hub id"):
            merge_and_save("jane/erased", None, tmp_path / "out")


def test_every_field_of_lora_can_be_anything(monkeypatch):
    """Each in turn is given each odd thing; more than half of the time that is refused, and never anything else."""
    from tests.hostile.drawing import ODD

    names = [f.name for f in fields(LoraConfig)]
    base = json.loads(seeds("adapter_config")[0])
    taken = 0
    with adapter() as folder:
        for name in names:
            for value in ODD[::3]:
                (folder / CONFIG).write_text(json.dumps(base | {name: value}))
                try:
                    SpaceConfig.from_pretrained(folder)
                    taken += 1
                except ValueError:
                    continue
    assert 0 < taken < len(names) * len(ODD[::3]) / 2


def test_loading_leaves_the_model_as_it_was():
    model = tiny_llama()
    with adapter() as folder:
        change(folder, CONFIG, lora_alpha=float("nan"))
        with pytest.raises(ValueError, match="`lora_alpha` must be a finite number; got nan"):
            load_erasure(model, folder)
    assert not hasattr(model, "peft_config")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), tiny_llama().parameters(), strict=True))


@pytest.mark.parametrize("name", [CONFIG, SIDE, WEIGHTS, "report.json", "anchors.png"])
def test_nothing_that_a_folder_links_to_is_published(name, tmp_path):
    with adapter(tmp_path) as folder:
        secret = tmp_path / "secret"
        secret.write_bytes((folder / name).read_bytes() if (folder / name).exists() else b"x")
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(secret)
        with pytest.raises(ValueError, match=f"whose {name} links to"), open_publication(folder):
            pass


def test_what_lies_in_the_cache_of_the_hub_is_read(tmp_path):
    blobs, snapshot = tmp_path / "models--a--b" / "blobs", tmp_path / "models--a--b" / "snapshots" / ("0" * 40)
    with adapter(tmp_path) as folder:
        shutil.copytree(folder, blobs)
        snapshot.mkdir(parents=True)
        for file in blobs.iterdir():
            (snapshot / file.name).symlink_to(blobs / file.name)
        with open_publication(snapshot) as publication:
            assert publication.config.concept == "a thing"


@pytest.mark.parametrize(
    "card",
    [
        "---\nlicense: !!python/object/apply:os.mkdir [{folder}/made]\n---\n",
        "---\nlicense: [" + "[" * 500 + "\n---\n",
        "---\na: &a [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n or ''}, *a{n or ''}]\n" for n in range(1)) + "---\n",
        "---\nlicense: [mit]\n---\n",
        "---\n: : :\n---\n",
        "---\nmodel-index: 3\n---\n",
        "\xff",
        "",
    ],
)
def test_a_card_of_others_runs_nothing(card):
    with adapter() as folder:
        (folder / "README.md").write_text(card.replace("{folder}", str(folder)), encoding="utf-8")
        try:
            record_attacks(folder, [])
        except ValueError as error:
            assert "`README.md` must be a model card" in str(error)
        assert not (folder / "made").exists()
