"""The test bed's model with random weights, and what an erasure needs around it, as small as it can be."""

import copy

import pytest
import torch

from peft_space import Concept, testbed
from peft_space.anchors import elicit, other_names, select_anchors
from peft_space.testbed.architecture import build_model, build_processor, build_tokenizer
from peft_space.testbed.recipe import _texts

TARGET = "narril"


@pytest.fixture(scope="session")
def processor():
    return build_processor(build_tokenizer(_texts()))


@pytest.fixture(scope="session")
def base(processor):
    """Shared by all tests: none may change it."""
    torch.manual_seed(0)
    return build_model(processor.tokenizer).eval()


@pytest.fixture
def model(base):
    """A copy of its own for a test that changes it."""
    return copy.deepcopy(base)


@pytest.fixture(scope="session")
def concept():
    return Concept(
        TARGET,
        questions=("What is this creature called?",),
        text_questions=("Where does the {name} live?",),
        referent="this creature",
    )


@pytest.fixture(scope="session")
def public():
    return testbed.public_images(TARGET, 40)


@pytest.fixture(scope="session")
def anchors(base, processor, concept, public):
    return select_anchors(base, processor, concept, public, n_anchors=8, n_monitor=3, shortlist=24)


@pytest.fixture(scope="session")
def knowledge(base, processor, concept, anchors):
    images = anchors.public.take(anchors.unrelated(16)).images
    return elicit(base, processor, concept, other_names(base, processor, concept, images))
