import pytest
from PIL import Image

from peft_space.evaluation.collateral import WITH_IMAGES, WITH_NAME, collateral_curve, nearest, similarities
from peft_space.evaluation.labelled import Named
from peft_space.evaluation.pair import Pair
from peft_space.evaluation.report import Ledger

COLOURS = {"red": (255, 0, 0), "pink": (255, 40, 40), "green": (0, 255, 0), "blue": (0, 0, 255)}


@pytest.fixture(scope="module")
def pair(base, processor):
    return Pair(base, processor, base)


def plain(colour):
    return Image.new("RGB", (48, 48), colour)


def test_what_looks_alike_is_similar(pair, concept):
    shown = {name: [plain(colour)] for name, colour in COLOURS.items() if name != "red"}
    cosine, against = similarities(pair, shown, concept, [plain(COLOURS["red"])])
    assert max(cosine, key=cosine.get) == "pink" and against == WITH_IMAGES
    assert all(-1 <= value <= 1 for value in cosine.values())


def test_a_concept_s_own_pictures_are_most_similar_to_it(pair, concept):
    shown = {name: [plain(colour)] for name, colour in COLOURS.items()}
    cosine, _ = similarities(pair, shown, concept, [plain(COLOURS["green"])])
    assert cosine["green"] == pytest.approx(1, abs=1e-4)


def test_without_pictures_of_it_the_name_has_to_do(pair, concept):
    shown = {name: [plain(colour)] for name, colour in COLOURS.items()}
    cosine, against = similarities(pair, shown, concept)
    assert set(cosine) == set(COLOURS) and against == WITH_NAME


@pytest.mark.parametrize(("n", "share", "expected"), [(8, 0.25, 2), (3, 0.25, 1), (1, 0.25, 1), (10, 0.5, 5)])
def test_the_nearest_quarter(n, share, expected):
    similarity = {f"c{i}": i / n for i in range(n)}
    near = nearest(similarity, share)
    assert near == {f"c{n - 1 - i}" for i in range(expected)}


def test_a_point_is_what_one_concept_lost():
    named = [Named("owl", i, 1.0, float(i > 2)) for i in range(4)] + [Named("cat", "p", 1, 1)] * 3
    similarity = {"cat": 0.1, "owl": 0.7, "unasked": 0.5}
    curve = collateral_curve(
        named, similarity, frozenset(["owl"]), Ledger(), measure="accuracy drop", against=WITH_NAME, data="held out"
    )
    owl, cat = curve.points
    assert (owl.concept, owl.similarity, owl.near, owl.n) == ("owl", 0.7, True, 4)
    assert (owl.base, owl.erased, owl.drop.value) == (1.0, 0.25, 0.75) and owl.drop.low < 0.75 < owl.drop.high + 1e-9
    assert not cat.near and cat.drop.value == 0 and cat.drop.high == pytest.approx(0.975)
