import dataclasses

import pytest
import torch

from peft_space.attacks.probing import LEAST, WHERE, best_layer, out_of_fold, probe, probed_controls
from peft_space.evaluation.intervals import auc_estimate


def auc(scores, labels):
    sides = (
        {n: [s] for n, (s, yes) in enumerate(zip(scores.tolist(), labels, strict=True)) if yes is side}
        for side in (True, False)
    )
    return auc_estimate(*sides, n_bootstrap=100).value


def drawn(n, d, shift, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 4 == 0
    features = torch.randn(n, d, generator=generator)
    features[:, 0] += shift * labels
    return features, labels


def test_what_can_be_told_apart_is_told_apart_on_pictures_that_were_not_fitted_on():
    features, labels = drawn(80, 20, 6.0)
    assert auc(out_of_fold(features, labels), labels.tolist()) > 0.97


def test_more_dimensions_than_pictures_find_nothing_where_there_is_nothing():
    found = [auc(out_of_fold(*drawn(60, 200, 0.0, seed)), drawn(60, 200, 0.0)[1].tolist()) for seed in range(8)]
    assert abs(sum(found) / len(found) - 0.5) < 0.1


def test_scale_and_offset_of_a_dimension_make_no_difference():
    features, labels = drawn(40, 10, 2.0)
    other = features * torch.linspace(0.01, 100, 10) + 7
    assert out_of_fold(other, labels).allclose(out_of_fold(features, labels), atol=1e-2)


def test_states_that_are_all_the_same_tell_nothing():
    labels = [True] * 6 + [False] * 6
    assert auc(out_of_fold(torch.ones(12, 4), torch.tensor(labels)), labels) == 0.5


def test_a_class_of_two_is_fitted_in_two_folds():
    features, _ = drawn(12, 4, 0.0)
    labels = torch.tensor([True, True, *[False] * 10])
    assert out_of_fold(features, labels).isfinite().all()


def test_only_concepts_with_enough_pictures_are_controls(aims):
    others = (*aims.control, *aims.control_train)
    assert all(len(some) >= LEAST for some in probed_controls(others))
    assert probed_controls(others[:5]) == []
    (first, *_) = probed_controls(others)
    assert len({others[place].name for place in first}) == 1


def test_each_layer_is_probed_for_the_concept_and_for_others(base, processor, aims):
    found = probe(base, processor, aims, batch_size=16, n_bootstrap=100)
    assert set(found.target) == set(WHERE)
    assert [len(layers) for layers in found.target.values()] == [3, 3]
    assert [len(layers) for layers in found.control.values()] == [3, 3]
    assert all(0 <= e.low <= e.value <= e.high <= 1 for layers in found.target.values() for e in layers)
    where, layer = best_layer(found)
    assert found.target[where][layer].value == max(e.value for layers in found.target.values() for e in layers)


def test_without_controls_there_is_none(base, processor, aims):
    few = dataclasses.replace(aims, control=aims.control[:3], control_train=())
    assert probe(base, processor, few, batch_size=16, n_bootstrap=100).control == {"answer": [], "image": []}


@pytest.mark.parametrize("labels", [[True] * 3 + [False] * 3])
def test_scores_are_higher_for_the_concept(labels):
    features = torch.tensor([[1.0], [1.1], [0.9], [-1.0], [-1.1], [-0.9]])
    assert auc(out_of_fold(features, torch.tensor(labels)), labels) == 1
