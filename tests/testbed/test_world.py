import pytest

from peft_space import testbed
from peft_space.testbed import questions


def test_a_concept_is_asked_for_in_phrasings_that_were_trained():
    concept = testbed.concept("narril")
    assert concept.questions == questions.NAMING[:-2]
    assert "Where does the narril live?" in concept.asked_in_text
    assert "Where does this creature live?" in concept.asked_through_image
    held_out = {phrasings[-1] for phrasings in (*questions.FACTS.values(), *questions.SEEN.values())}
    assert not held_out & {text.replace("the {name}", "{it}") for text in concept.text_questions}
    assert not held_out & set(testbed.retain().questions)
    assert concept.generic_question is None
    assert testbed.concept("narril", generic=True).generic_question in questions.SEEN["family"]


def test_an_unknown_creature():
    with pytest.raises(ValueError, match="`name` must be one of the test bed's creatures"):
        testbed.concept("hippo")


def test_a_public_set_never_shows_the_target_and_is_given_by_its_seed():
    first, again, other = (testbed.public_images("narril", 120, seed) for seed in (0, 0, 1))
    shown = {name.split("-")[1] for name in first.ids}
    assert "narril" not in shown and {"hybrid", "zorvex"} <= shown
    assert [image.tobytes() for image in first.images] == [image.tobytes() for image in again.images]
    assert first.images[0].tobytes() != other.images[0].tobytes()


def test_the_shipped_model_is_ready_to_be_asked():
    model, processor = testbed.load()
    assert not model.training and str(model.dtype) == "torch.float32"
    assert processor.tokenizer.decode(processor.tokenizer("narril")["input_ids"]).strip() == "narril"
