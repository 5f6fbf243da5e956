import csv
import dataclasses

import pytest
import torch

from peft_space import Anchors, PublicImages, select_anchors
from peft_space.anchors import selection
from tests.bigram import saying
from tests.tiny import tiny_llama

SIZES = {"n_anchors": 8, "n_monitor": 3, "shortlist": 24}


def test_anchors_and_monitor_are_apart_and_the_likeliest(anchors):
    # eleven are distinct and likely enough, and of four images one goes to the monitor
    assert len(anchors) == 8 and len(anchors.monitor) == 2
    taken = {*anchors.indices, *anchors.monitor}
    assert len(taken) == 10
    likelihood = anchors.likelihood[list(anchors.indices)]
    assert likelihood.equal(likelihood.sort(descending=True).values)
    rest = [i for i in range(40) if i not in taken and not anchors.likelihood[i].isnan()]
    assert anchors.likelihood[rest].max() <= likelihood.min()


def test_only_the_short_list_is_asked_of_the_model(anchors):
    listed = ~anchors.likelihood.isnan()
    assert listed.sum() == 24
    assert anchors.cosine[listed].min() == pytest.approx(anchors.threshold)
    assert anchors.cosine[~listed].max() < anchors.threshold


@pytest.fixture
def told_by(base, processor, concept, public, anchors, monkeypatch):
    """Selects anchors where the likelihood of each picture is given, and counts the pictures that were asked about."""

    def told_by(likelihood, **options):
        shown = {id(image): value for image, value in zip(public.images, likelihood.tolist(), strict=True)}
        asked = []

        def name_likelihood(model, processor, concept, images, **options):
            asked.extend(images)
            return torch.tensor([shown[id(image)] for image in images])

        monkeypatch.setattr(selection, "name_likelihood", name_likelihood)
        monkeypatch.setattr(selection, "_SAMPLE", 12)
        sizes = {"n_anchors": 4, "n_monitor": 1, "shortlist": 20}
        return select_anchors(base, processor, concept, public, **(sizes | options)), len(asked)

    return told_by


def test_where_the_cosine_tells_who_is_likely_it_makes_the_short_list(told_by, anchors):
    found, n_asked = told_by(anchors.cosine)
    assert found.listed_by == found.diagnostics()["listed_by"] == "cosine" and n_asked == 20 + 12
    assert int((~found.likelihood.isnan()).sum()) == 20


def test_where_the_cosine_tells_nothing_all_are_asked_about(told_by, anchors):
    found, n_asked = told_by(-anchors.cosine)
    assert found.listed_by == "likelihood" and n_asked == 40
    listed = ~found.likelihood.isnan()
    assert set(listed.nonzero()[:, 0].tolist()) == set(anchors.cosine.topk(20, largest=False).indices.tolist())
    assert int(anchors.cosine.argmin()) in {*found.indices, *found.monitor}
    assert found.threshold == pytest.approx(float(anchors.cosine.min()))


def test_a_threshold_that_was_given_is_not_overruled(told_by, anchors):
    fixed = float(anchors.cosine.topk(20).values[-1])
    found, n_asked = told_by(-anchors.cosine, threshold=fixed)
    assert found.listed_by == "cosine" and n_asked == 20 and found.threshold == fixed


def test_the_same_call_chooses_the_same(base, processor, concept, public, anchors):
    again = select_anchors(base, processor, concept, public, **SIZES)
    assert (again.indices, again.monitor) == (anchors.indices, anchors.monitor)


def test_unrelated_images_are_neither_anchors_nor_likely(anchors):
    unrelated = anchors.unrelated(10, seed=1)
    assert len(set(unrelated)) == 10
    assert not set(unrelated) & {*anchors.indices, *anchors.monitor}
    likeliest = anchors.likelihood.nan_to_num(-torch.inf).topk(12).indices.tolist()
    assert not set(unrelated) & set(likeliest)
    assert unrelated == anchors.unrelated(10, seed=1) != anchors.unrelated(10, seed=2)


def test_the_next_likeliest_are_no_anchors(anchors):
    after = anchors.next_likeliest(5)
    assert len(set(after)) == 5 and not set(after) & {*anchors.indices, *anchors.monitor}
    levels = [float(anchors.likelihood[place]) for place in after]
    assert levels == sorted(levels, reverse=True)
    rest = {*range(len(anchors.public))} - {*after, *anchors.indices, *anchors.monitor}
    assert levels[-1] >= max(float(anchors.likelihood[place].nan_to_num(-torch.inf)) for place in rest)
    # those whose likelihood was never asked for are none
    assert len(anchors.next_likeliest(1000)) < len(anchors.public)


def test_near_duplicates_are_not_chosen_twice(base, processor, concept, public):
    twice = PublicImages(public.images[:12] * 2, tuple(map(str, range(24))))
    anchors = select_anchors(base, processor, concept, twice, **SIZES)
    chosen = [index % 12 for index in (*anchors.indices, *anchors.monitor)]
    assert len(chosen) == len(set(chosen))


def test_all_the_same_image(base, processor, concept, public):
    copies = PublicImages(public.images[:1] * 20, tuple(map(str, range(20))))
    with pytest.raises(ValueError, match="gave 1 usable anchors of 20 images, and at least 3 are needed"):
        select_anchors(base, processor, concept, copies, n_anchors=4, n_monitor=1, shortlist=20)


@pytest.mark.parametrize("n_anchors", [1, 0, -3])
def test_one_anchor(base, processor, concept, public, n_anchors):
    with pytest.raises(
        ValueError, match=rf"`n_anchors` must be at least 2; got {n_anchors}. A single anchor overwrites"
    ):
        select_anchors(base, processor, concept, public, n_anchors=n_anchors)


@pytest.mark.parametrize("sizes", [{"n_monitor": 0}, {"shortlist": 10}])
def test_a_short_list_that_cannot_hold_them(base, processor, concept, public, sizes):
    with pytest.raises(ValueError, match=r"`shortlist` \(=\d+\) must hold `n_anchors` \(=8\) and `n_monitor` \(=\d+"):
        select_anchors(base, processor, concept, public, **SIZES | sizes)


def test_a_threshold_that_is_too_high(base, processor, concept, public, anchors):
    best = f"{float(anchors.cosine.max()):.3f}"
    with pytest.raises(ValueError, match=rf"0 reached the threshold 0\.990; the best score seen is {best}\. Lower"):
        select_anchors(base, processor, concept, public, **SIZES, threshold=0.99)


def test_a_fixed_threshold(base, processor, concept, public):
    anchors = select_anchors(base, processor, concept, public, **SIZES, threshold=0.02)
    assert anchors.threshold == 0.02
    assert (~anchors.likelihood.isnan()).equal(anchors.cosine >= 0.02)


def test_an_image_set_with_too_few_anchors(base, processor, concept, public):
    with pytest.raises(
        ValueError, match="`public_images` gave 2 usable anchors of 2 images, and at least 3 are needed"
    ):
        select_anchors(base, processor, concept, public.take([0, 1]), **SIZES)


def test_no_images(base, processor, concept):
    with pytest.raises(ValueError, match="`public_images` must hold at least one readable picture"):
        select_anchors(base, processor, concept, [])


def test_a_text_only_model(processor, concept, public):
    with pytest.raises(TypeError, match=r"`model` must be a vision-language model.*LlamaForCausalLM"):
        select_anchors(tiny_llama(), processor, concept, public)


def test_what_the_model_calls_by_the_name_is_dropped_on_request(base, processor, concept, public, monkeypatch):
    anchors = select_anchors(base, processor, concept, public, **SIZES)
    known = {id(public.images[index]) for index in anchors.indices[:2]}

    def generate(model, processor, prompts, **kwargs):
        return ["a Narril" if id(prompt.image) in known else "a bird" for prompt in prompts]

    monkeypatch.setattr(selection, "generate", generate)
    dropped = select_anchors(base, processor, concept, public, **SIZES, drop_recognised=True)
    assert set(dropped.recognised) == set(anchors.indices[:2])
    assert not set(dropped.recognised) & {*dropped.indices, *dropped.monitor}
    assert not set(dropped.recognised) & set(dropped.unrelated(40))
    assert dropped.diagnostics()["recognised_dropped"] == 2


def test_a_set_where_all_is_recognised(base, processor, concept, public):
    says = saying(base, processor, {"narril": 1.0})
    with pytest.raises(ValueError, match=r"gave 0 usable anchors of 40 images.*24 were dropped as recognised"):
        select_anchors(says, processor, concept, public, **SIZES, drop_recognised=True)


def test_diagnostics_add_up(anchors):
    told = anchors.diagnostics()
    assert told["public_images"] == 40 == sum(told["histogram"]["counts"])
    assert len(told["histogram"]["edges"]) == len(told["histogram"]["counts"]) + 1
    assert told["passed"] == 24 and told["anchors"] == 8 and told["monitor"] == len(anchors.monitor)
    assert told["threshold_margin"] > 0 and told["best_cosine"] >= told["threshold"]
    best, mean, worst = told["anchor_log_likelihood"]
    assert best >= mean >= worst


def test_diagnostics_count_what_was_skipped(anchors):
    skipped = dataclasses.replace(anchors.public, skipped=(("a.png", "OSError: broken"),))
    assert dataclasses.replace(anchors, public=skipped).diagnostics()["skipped"] == 1


def test_contact_sheet_shows_every_anchor(anchors):
    sheet = anchors.contact_sheet(side=48, columns=3)
    assert sheet.size == (3 * 48, 3 * (48 + 14))
    eighth, ninth = (sheet.crop((x, 2 * 62, x + 48, 2 * 62 + 48)) for x in (48, 96))
    assert eighth.getcolors() is None and ninth.getcolors() == [(48 * 48, (255, 255, 255))]


def test_scores_are_written_for_every_image(anchors, tmp_path):
    anchors.write_scores(tmp_path / "anchors.csv")
    with open(tmp_path / "anchors.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == list(anchors.public.ids)
    assert sum(row["role"] == "anchor" for row in rows) == 8
    assert sum(row["role"] == "monitor" for row in rows) == len(anchors.monitor)
    assert sum(row["log_likelihood"] != "" for row in rows) == 24
    assert float(rows[3]["cosine"]) == pytest.approx(float(anchors.cosine[3]), abs=1e-4)


def test_scores_that_were_written_bring_the_anchors_back(anchors, concept, public, tmp_path):
    anchors.write_scores(tmp_path / "anchors.csv")
    moved = public.take(list(reversed(range(len(public)))))
    again = Anchors.read_scores(tmp_path / "anchors.csv", concept, moved)
    for role in ("indices", "monitor"):
        assert {moved.ids[i] for i in getattr(again, role)} == {public.ids[i] for i in getattr(anchors, role)}
    assert again.concept == concept and [image.tobytes() for image in again.images] == [
        image.tobytes() for image in anchors.images
    ]
    torch.testing.assert_close(again.cosine.flip(0), anchors.cosine, rtol=0, atol=1e-4)
    torch.testing.assert_close(again.likelihood.flip(0), anchors.likelihood, rtol=0, atol=1e-3, equal_nan=True)
    assert again.threshold == pytest.approx(anchors.threshold, abs=1e-4)


def test_scores_of_another_set_are_refused(anchors, concept, public, tmp_path):
    anchors.write_scores(tmp_path / "anchors.csv")
    with pytest.raises(ValueError, match=r"`public_images` must hold every picture of .*; got a set without '0039"):
        Anchors.read_scores(tmp_path / "anchors.csv", concept, public.take(range(39)))
