"""The loaders on small files in the schemas that the data sets have on the Hub."""

import pytest
from PIL import Image

from peft_space import Concept
from peft_space.evaluation import SUITES, Suite, load_classification, load_clear, load_mllmu

datasets = pytest.importorskip("datasets")

QUESTION = {"Question": datasets.Value("string"), "Correct_Answer": datasets.Value("string")}
CHOICE = QUESTION | {"Options": {letter: datasets.Value("string") for letter in "ABCD"}}
TOLD = {name: datasets.Value("string") for name in ("Question", "Ground_Truth", "Type")}
MLLMU = {
    "Directory": datasets.Value("string"),
    "image": datasets.Image(),
    "ID": datasets.Value("string"),
    "biography": datasets.Value("string"),
    "question": datasets.Value("string"),
    "answer": datasets.Value("string"),
    "Classification_Task": {
        "Image_Textual_Questions": datasets.List(CHOICE),
        "Pure_Text_Questions": datasets.List(CHOICE),
    },
    "Generation_Task": datasets.List(TOLD),
    "Mask_Task": datasets.List(TOLD),
}
PERSON = {
    "Directory": "017",
    "image": Image.new("L", (8, 8), 90),
    "ID": "017",
    "biography": "Ada Quill is a baker from Ghent.",
    "question": "What can you tell me about the person in the image?",
    "answer": "Ada Quill bakes bread in Ghent.",
    "Classification_Task": {
        "Image_Textual_Questions": [
            {
                "Question": "Where does this person live?",
                "Options": {"A": "Lima", "B": "Ghent", "C": "Oslo", "D": "Bonn"},
                "Correct_Answer": "B",
            }
        ],
        "Pure_Text_Questions": [
            {
                "Question": "What is Ada Quill?",
                "Options": {"A": "a baker", "B": "a judge", "C": "a pilot", "D": None},
                "Correct_Answer": "A",
            }
        ],
    },
    "Generation_Task": [
        {"Question": "What is this person's trade?", "Ground_Truth": "She is a baker.", "Type": "Image_Textual"},
        {"Question": "Where is Ada Quill from?", "Ground_Truth": "From Ghent.", "Type": "Pure_Text"},
    ],
    "Mask_Task": [
        {"Question": "This person is a [Blank].", "Ground_Truth": "baker", "Type": "Image_Textual"},
        {"Question": "Ada Quill lives in [Blank].", "Ground_Truth": "Ghent", "Type": "Pure_Text"},
    ],
}
CLEAR = {"image": datasets.Image(), "caption": datasets.Value("string"), "name": datasets.Value("string")}
PORTRAIT = {"image": Image.new("RGB", (8, 8), "teal"), "caption": "Ada Quill holds a loaf.", "name": "Ada Quill"}


def write(folder, features, split="train", **configs):
    """A data set with these configs, in the layout of a Hub repository."""
    lines = ["---", "configs:"]
    for config, rows in configs.items():
        config = config.replace("__", "+")
        (folder / config).mkdir(parents=True)
        table = datasets.Dataset.from_list(rows, features=datasets.Features(features))
        table.to_parquet(folder / config / f"{split}-00000-of-00001.parquet")
        lines += [f"- config_name: {config}", "  data_files:", f"  - split: {split}", f"    path: {config}/{split}-*"]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]))
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def test_mllmu(tmp_path):
    folder = write(tmp_path / "mllmu", MLLMU, forget_5=[PERSON], retain_95=[PERSON | {"ID": "018"}] * 2)
    read = load_mllmu(folder, "forget_5")
    told = [(e.task, e.image is not None, e.answer) for e in read]
    assert told == [
        ("generation", True, "Ada Quill bakes bread in Ghent."),
        ("choice", True, "B"),
        ("choice", False, "A"),
        ("generation", True, "She is a baker."),
        ("generation", False, "From Ghent."),
        ("cloze", True, "baker"),
        ("cloze", False, "Ghent"),
    ]
    assert {e.concept for e in read} == {"017"}
    seen, alone = (e for e in read if e.task == "choice")
    assert seen.question.splitlines()[:3] == ["Where does this person live?", "A. Lima", "B. Ghent"]
    assert seen.options == ("A", "B", "C", "D") and alone.options == ("A", "B", "C")
    assert len({id(e.image) for e in read if e.image is not None}) == 1 and read.examples[0].image.mode == "RGB"
    assert {e.concept for e in load_mllmu(folder, "retain_95")} == {"018"}
    assert len(load_mllmu(folder, "retain_95", limit=1)) == 7


def test_mllmu_of_several_pictures(tmp_path):
    features = {"images": datasets.List(datasets.Image())} | {k: v for k, v in MLLMU.items() if k != "image"}
    row = {k: v for k, v in PERSON.items() if k != "image"} | {"images": [Image.new("RGB", (8, 8))] * 3}
    read = load_mllmu(write(tmp_path / "mllmu", features, Test_Set=[row]), "Test_Set")
    assert sum(e.task == "choice" and e.image is not None for e in read) == 3
    assert sum(e.task == "choice" and e.image is None for e in read) == 1
    assert len(read.pictures(["017"])) == 3


def test_mllmu_as_an_older_datasets_reads_it():
    lists = {key: [row[key] for row in PERSON["Mask_Task"]] for key in ("Question", "Ground_Truth", "Type")}
    read = load_mllmu([PERSON | {"Mask_Task": lists}])
    assert [e.answer for e in read if e.task == "cloze"] == ["baker", "Ghent"]


def test_clear(tmp_path):
    read = load_clear(write(tmp_path / "clear", CLEAR, forget05=[PORTRAIT]))
    seen, named = read
    assert (seen.task, seen.answer, seen.concept) == ("generation", "Ada Quill holds a loaf.", "Ada Quill")
    assert (named.task, named.answer) == ("name", "Ada Quill") and named.image is seen.image
    assert read.concepts == ("Ada Quill",)


def test_clear_with_tofu_does_not_say_whom_a_row_is_about(tmp_path):
    text = datasets.Value("string")
    features = {"image": datasets.Image(), "caption": text, "question": text, "answer": text}
    rows = [
        {"image": PORTRAIT["image"], "caption": PORTRAIT["caption"], "question": None, "answer": None},
        {"image": None, "caption": None, "question": "Who is Bo Lund?", "answer": "A baker."},
    ]
    folder = write(tmp_path / "clear", features, forget05__tofu=rows)
    seen, alone = load_clear(folder, "forget05+tofu")
    assert (seen.task, seen.answer, seen.concept) == ("generation", "Ada Quill holds a loaf.", None)
    assert (alone.task, alone.image, alone.answer, alone.concept) == ("generation", None, "A baker.", None)
    read = load_clear(folder, "forget05+tofu", names=["Ada Quill", "Bo Lund"])
    assert [example.concept for example in read] == ["Ada Quill", "Bo Lund"]
    # no column says the name: nobody is asked for it
    assert {example.task for example in read} == {"generation"}


def test_clear_of_the_real_world(tmp_path):
    text = datasets.Value("string")
    options = {"answer": text, "options": datasets.List(text)}
    picture = Image.new("RGB", (8, 8), "gold")
    face = {"image": picture, "answer": "Ada Quill", "options": ["Bo Lund", "Ada Quill"]}
    folder = write(tmp_path / "faces", {"image": datasets.Image()} | options, real_faces=[face])
    (named,) = load_clear(folder, "real_faces")
    assert (named.task, named.answer, named.concept, named.perturbed) == (
        "name",
        "Ada Quill",
        "Ada Quill",
        ("Bo Lund",),
    )
    row = {"image": picture, "question": "What is it?", "answer": "a loaf", "options": ["a cat", "a loaf"]}
    folder = write(tmp_path / "world", {"image": datasets.Image(), "question": text} | options, real_world=[row])
    (asked,) = load_clear(folder, "real_world")
    assert (asked.task, asked.question, asked.answer) == ("generation", "What is it?", "a loaf")
    assert asked.concept is None and asked.perturbed == ("a cat",) and asked.image is not None


def test_clear_perturbed(tmp_path):
    more = {
        "perturbed_captions": datasets.List(datasets.Value("string")),
        "paraphrased_caption": datasets.Value("string"),
        "perturbed_names": datasets.List(datasets.Value("string")),
    }
    row = PORTRAIT | {
        "perturbed_captions": ["Bo Lund holds a loaf.", "Ada Quill holds a cat."],
        "paraphrased_caption": "A loaf is held by Ada Quill.",
        "perturbed_names": ["Bo Lund"],
    }
    folder = write(tmp_path / "clear", CLEAR | more, forget05_perturbed=[row])
    caption, name = load_clear(folder, "forget05_perturbed")
    assert caption.paraphrase == "A loaf is held by Ada Quill." and len(caption.perturbed) == 2
    assert name.perturbed == ("Bo Lund",) and name.paraphrase is None


def labelled(names, labels, **columns):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)} | columns)
    rows = [{"image": Image.new("RGB", (4, 4), (i, 0, 0)), "label": i, **dict.fromkeys(columns, i)} for i in labels]
    return datasets.Dataset.from_list(rows, features=features)


@pytest.mark.parametrize(
    ("suite", "name", "spoken", "aliases"),
    [
        ("celebrities", "Ada Quill", "Ada Quill", ()),
        ("stanford-dogs", "n02085620-Chihuahua", "Chihuahua", ()),
        ("stanford-dogs", "n02099712-Labrador_retriever", "Labrador retriever", ()),
        ("imagenet-1k", "tench, Tinca tinca", "tench", ("Tinca tinca",)),
        ("sun397", "/a/apple_orchard", "apple orchard", ()),
        ("sun397", "church/outdoor", "outdoor church", ()),
        ("vegfru", "Chinese_cabbage", "Chinese cabbage", ()),
    ],
)
def test_labels_are_names_as_one_says_them(suite, name, spoken, aliases):
    (read,) = load_classification(labelled([name, "other"], [0]), suite)
    assert (read.answer, read.aliases, read.concept) == (spoken, aliases, spoken)
    assert read.task == "name" and read.question == SUITES[suite].question


def test_the_artist_is_wikiart_s_label():
    artist = datasets.ClassLabel(names=["vincent-van-gogh", "claude-monet"])
    (read,) = load_classification(labelled(["x", "y"], [1], artist=artist), "wikiart")
    assert read.answer == "claude monet"


@pytest.mark.parametrize("suite", SUITES)
def test_a_folder_of_each_suite(tmp_path, suite):
    names = datasets.ClassLabel(names=["leek", "ada-quill"])
    columns = [SUITES[suite].label_column, *(["genre", "style"] if suite == "wikiart" else [])]
    row = {"image": Image.new("RGB", (4, 4))} | dict.fromkeys(columns, 1)
    features = {"image": datasets.Image()} | dict.fromkeys(columns, names)
    folder = write(tmp_path / suite, features, SUITES[suite].split, default=[row])
    (read,) = load_classification(folder, suite)
    assert read.answer == ("ada quill" if SUITES[suite].hyphenated else "ada-quill")
    assert read.question == SUITES[suite].question


def test_a_folder_with_another_split(tmp_path):
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["leek", "plum"])}
    folder = write(tmp_path / "vegfru", features, default=[{"image": Image.new("RGB", (4, 4)), "label": 1}])
    (read,) = load_classification(folder, "vegfru", split="train")
    assert read.answer == "plum"
    with pytest.raises(ValueError, match=r"`source` must be a folder or a Hub data-set id.*split 'test'"):
        load_classification(folder, "vegfru")


def test_some_concepts_and_some_pictures_of_each():
    rows = labelled(["leek", "plum", "kale"], [0, 0, 0, 1, 1, 2])
    read = load_classification(rows, "vegfru", concepts=["Leek", "plum"], per_concept=2)
    assert [e.answer for e in read] == ["leek", "leek", "plum", "plum"]
    assert len(read.pictures(Concept("plum"))) == 2


def test_any_other_set_and_names_of_its_numbers():
    rows = [{"photo": Image.new("RGB", (4, 4)), "kind": 1}]
    (read,) = load_classification(rows, Suite("What is it?", "photo", "kind"), label_names=["a", "b"])
    assert read.question == "What is it?" and read.answer == "b"
    for names in (None, ["a"]):
        with pytest.raises(ValueError, match=r"`label_names` must name every label of the column 'kind'; got label 1"):
            load_classification(rows, Suite("What is it?", "photo", "kind"), label_names=names)


@pytest.mark.parametrize(
    ("read", "told"),
    [
        (lambda: load_classification([], "birds"), r"`suite` must be one of celebrities, .*got 'birds'"),
        (lambda: load_classification([{"img": 1, "label": "x"}], "vegfru"), "must have a column 'image'"),
        (lambda: load_classification([{"image": "a.png", "label": "x"}], "vegfru"), "must hold pictures"),
        (lambda: load_classification([], "vegfru"), "gave no question"),
        (lambda: load_mllmu([{"ID": "1", "image": PERSON["image"]}]), "must have a column 'Classification_Task'"),
        (lambda: load_clear([{"picture": None, "text": "x"}]), "must have the columns of CLEAR"),
        (lambda: load_clear("/no/such/folder"), "must be a folder or a Hub data-set id"),
    ],
)
def test_what_cannot_be_read(read, told):
    with pytest.raises(ValueError, match=told):
        read()


def test_no_rows_at_all():
    with pytest.raises(TypeError, match="`source` must be rows"):
        load_clear(7)
