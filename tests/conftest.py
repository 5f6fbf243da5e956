"""The test bed's model with random weights, and what an erasure needs around it, as small as it can be."""

import copy
import functools

import pytest
from huggingface_hub import constants, hf_api
from huggingface_hub.utils import close_session

from peft_space import Concept, Retain, SpaceTrainingArguments, demo, erasure, testbed
from peft_space.anchors import elicit, other_names, select_anchors
from peft_space.testbed.architecture import build_processor, build_tokenizer
from tests.hub.server import Hub
from tests.tiny import two_layers

TARGET = "narril"


@pytest.fixture(scope="session")
def processor():
    return build_processor(build_tokenizer(testbed.BESTIARY.texts()))


@pytest.fixture(scope="session")
def base(processor):
    """Two layers of each of its stacks are kept. Shared by all tests: none may change it."""
    return two_layers(processor)


@pytest.fixture(scope="session")
def base_folder(base, processor, tmp_path_factory):
    """The same on disk."""
    path = tmp_path_factory.mktemp("base")
    base.save_pretrained(path)
    processor.save_pretrained(path)
    return path


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


@pytest.fixture(scope="session")
def shrink(base_folder, concept):
    """Makes the demo's world as small as a test can wait for: a random model, few pictures, two steps."""

    def shrink(patch):
        retain = Retain(questions=("What colour is it?",), texts=("Name a fruit.",) * 8, n_images=8, relatives=0)
        args = SpaceTrainingArguments(max_steps=2, dose_every=2, per_device_train_batch_size=4, learning_rate=1e-2)
        patch.setattr(testbed, "load", functools.partial(testbed.load, base_folder))
        patch.setattr(testbed, "Exam", functools.partial(testbed.Exam, n_images=1))
        patch.setattr(testbed, "public_images", functools.partial(testbed.public_images, n_images=24))
        patch.setattr(testbed, "retain", lambda: retain)
        patch.setattr(testbed, "concept", lambda name, generic=False: concept.called(name))
        patch.setattr(erasure, "other_names", functools.partial(other_names, most=4))
        patch.setattr(erasure, "select_anchors", functools.partial(select_anchors, n_anchors=8, n_monitor=3))
        patch.setattr(demo, "erase", functools.partial(erasure.erase, args=args))
        return args

    return shrink


@pytest.fixture
def small_world(shrink, monkeypatch):
    """The training arguments of the small world's demo, in force for one test."""
    return shrink(monkeypatch)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """The stand-in, in the place of the Hub for this process, with the token of somebody who may write."""
    with Hub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(hf_api.api, "endpoint", hub.endpoint)
        # transformers makes itself one client for good, for the endpoint of its first use
        monkeypatch.setattr("transformers.utils.hub._hf_api", None, raising=False)
        monkeypatch.setenv("HF_TOKEN", "hf_writer")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
        close_session()
        yield hub
        close_session()
