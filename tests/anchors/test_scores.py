from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer, models
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast

from peft_space import Concept
from peft_space.anchors import concept_embedding, name_likelihood, projector_cosine
from tests.bigram import saying


def test_the_direction_has_unit_norm_and_is_the_names_own(base, processor):
    narril, zorvex = (concept_embedding(base, processor, Concept(name)) for name in ("narril", "zorvex"))
    assert narril.shape == (192,) and narril.norm() == pytest.approx(1, abs=1e-5)
    assert narril @ zorvex < 0.9


def test_an_alias_turns_it(base, processor):
    alone = concept_embedding(base, processor, Concept("narril"))
    both = concept_embedding(base, processor, Concept("narril", aliases=("zorvex",)))
    assert both @ concept_embedding(base, processor, Concept("zorvex")) > alone @ concept_embedding(
        base, processor, Concept("zorvex")
    )


def test_a_name_without_a_token_of_its_own(base):
    # the test bed's tokenizer can write everything; this one knows no letter of the name
    backend = Tokenizer(models.WordLevel({"<unk>": 0, "moss": 1}, unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    with pytest.raises(ValueError, match="`concept` must be text that the model's tokenizer can write; got 'ཀཁ'"):
        concept_embedding(base, SimpleNamespace(tokenizer=tokenizer), Concept("ཀཁ"))


def test_the_modality_gap_does_not_count():
    features, concept = torch.randn(9, 16), torch.randn(16)
    cosine = projector_cosine(features, concept)
    assert cosine.shape == (9,) and cosine.abs().max() <= 1 + 1e-6
    assert projector_cosine(features + 100 * torch.randn(16), 7 * concept).allclose(cosine, atol=1e-3)


def test_the_picture_that_points_at_the_concept_scores_best():
    concept = F.normalize(torch.randn(16), dim=0)
    features = torch.randn(9, 16)
    features[4] = features.mean(0) + 20 * concept
    assert projector_cosine(features, concept).argmax() == 4


def test_what_a_model_says_is_likely(base, processor, public):
    images = public.images[:3]
    says = saying(base, processor, {"narril": 1.0})
    said = name_likelihood(says, processor, Concept("narril"), images)
    assert said.shape == (3,) and (said > -0.5).all()
    assert (name_likelihood(says, processor, Concept("zorvex"), images) < said - 1).all()


def test_of_several_names_the_likeliest_counts(base, processor, public):
    says = saying(base, processor, {"narril": 1.0})
    both = name_likelihood(says, processor, Concept("zorvex", aliases=("narril",)), public.images[:2])
    assert both.allclose(name_likelihood(says, processor, Concept("narril"), public.images[:2]))
