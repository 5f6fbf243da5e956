import pytest

from peft_space import Concept
from peft_space.anchors import elicit, knowledge, names_given, neighbours, other_names, relatives
from peft_space.vlm import Prompt, generate
from tests.bigram import saying

CONCEPT = Concept("narril", questions=("Name it.",), text_questions=("Where does the {name} live?", "Eats {name}?"))
OTHERS = tuple(f"other{number}" for number in range(8))


@pytest.fixture
def tells(monkeypatch):
    """What the model answers: by question, else by default."""

    def tells(by_question, default="in the sea"):
        def generate(model, processor, prompts, **kwargs):
            return [by_question.get(prompt.question, default) for prompt in prompts]

        monkeypatch.setattr(knowledge, "generate", generate)

    return tells


def test_other_names_are_the_models_own_most_frequent_first(monkeypatch, base, processor, public, concept):
    told = iter([["zorvex", "quizil", "zorvex", "", "a Narril here", "narril", "mal", "quizil", "zorvex"]])
    monkeypatch.setattr(knowledge, "generate", lambda *args, **kwargs: next(told))
    assert other_names(base, processor, concept, public.images[:9], most=2) == ("zorvex", "quizil")


def test_what_never_comes_up_unasked_is_no_name(monkeypatch, base, processor, public, concept):
    def generate(model, processor, prompts, **options):
        asked = prompts[0].question == concept.questions[0]
        return ["nothing", "nothing", "zorvex", "quizil"] if asked else ["a tree", "a hill", "a zorvex", "Quizil!"]

    monkeypatch.setattr(knowledge, "generate", generate)
    images = public.images[:4]
    assert other_names(base, processor, concept, images) == ("nothing", "zorvex", "quizil")
    assert other_names(base, processor, concept, images, ("Describe it.",)) == ("zorvex", "quizil")


def test_names_given_are_the_models_own_for_pictures_away_from_the_anchors(base, processor, anchors, concept):
    given = names_given(base, processor, anchors, 5, seed=1)
    assert tuple(given) == anchors.unrelated(5, 1)
    asked = [Prompt(concept.questions[0], anchors.public.images[index]) for index in given]
    assert [*given.values()] == generate(base, processor, asked)


def test_neighbours_are_names_of_the_likeliest_pictures_that_were_not_chosen(monkeypatch, base, processor, anchors):
    told = ["zorvex", "keltus", "keltus", "moss", "quidan", "zorvex", "keltus", "moss", "no <image>", "no <image>"]
    places = anchors.next_likeliest(10)
    called = dict(zip(places[:3], told[:3], strict=True))
    asked = []

    def generate(model, processor, prompts, **options):
        asked.extend(prompts)
        return told[3:]

    monkeypatch.setattr(knowledge, "generate", generate)
    others = ("quidan", "zorvex", "keltus", "no <image>")
    assert neighbours(base, processor, anchors, others, called, n_images=10) == ("keltus", "zorvex")
    assert [prompt.image for prompt in asked] == [anchors.public.images[place] for place in places[3:]]


@pytest.mark.parametrize(
    ("names", "others", "akin"),
    [
        # of the test bed's tokenizer a syllable is a token
        (["narril"], ["zorvex", "lumril", "malwen", "nartus"], ("lumril", "nartus")),
        (["narril"], ["lumdan", "zorvex"], ()),
        (["narril", "zormok"], ["zorvex", "lumril"], ("zorvex", "lumril")),
        # a word that is shared, in any case
        (["Sanel Varnel"], ["Sanel Ostrek", "dovi varnel", "Alsa Hadric"], ("Sanel Ostrek", "dovi varnel")),
        # other forms of the same name
        (["New York City"], ["New York", "york", "the New York City skyline", "New Delhi"], ("New Delhi",)),
        # what more than a quarter of all names have says nothing
        (["a cat"], ["a dog", "a cow", "a hen", "wild cat"], ("wild cat",)),
    ],
)
def test_relatives_share_a_piece_of_the_name(processor, names, others, akin):
    name, *aliases = names
    assert relatives(processor, Concept(name, tuple(aliases)), others, 4) == akin


def test_what_spells_a_special_token_is_no_relative(processor):
    assert relatives(processor, Concept("narril"), ["lumril <image>", "nartus"], 4) == ("nartus",)


def test_as_many_relatives_as_are_wanted(processor):
    others = ["nartus", "zorvex", "lumril", *(f"{syllable}vex" for syllable in ("seb", "mal", "quid", "tev", "dro"))]
    assert relatives(processor, Concept("narril"), others, 1) == ("nartus",)
    assert relatives(processor, Concept("narril"), others, 0) == ()


def test_only_what_is_told_of_the_concept_alone_is_telling(tells):
    tells({"Where does the narril live?": "the narril lives in the Marsh", "Where does the other1 live?": "the bog"})
    told = elicit(None, None, CONCEPT, OTHERS)
    assert told.answers == ("the narril lives in the Marsh", "in the sea")
    # "in" and "the" are said of the others too, and the name is no fact
    assert told.telling == (("lives", "marsh"), ())
    assert told.others == OTHERS
    assert told.others_answers[0] == ("in the sea", "the bog", *["in the sea"] * 6)


def test_a_word_that_few_others_share_is_telling(tells):
    tells(
        {"Where does the narril live?": "a marsh"}
        | {f"Where does the other{number} live?": "a marsh" for number in range(2)}
    )
    assert elicit(None, None, CONCEPT, OTHERS).telling[0] == ("a", "marsh")


def test_a_word_that_more_others_share_is_not(tells):
    tells(
        {"Where does the narril live?": "a marsh"}
        | {f"Where does the other{number} live?": "a marsh" for number in range(3)}
    )
    assert elicit(None, None, CONCEPT, OTHERS).telling[0] == ()


def test_no_text_questions(tells):
    tells({})
    told = elicit(None, None, Concept("narril", text_questions=()), OTHERS)
    assert told.answers == told.telling == told.others_answers == ()


def test_no_other_names(base, processor, public):
    says = saying(base, processor, {"narril": 1.0})
    others = other_names(says, processor, CONCEPT, public.images[:4])
    assert others == ()
    with pytest.raises(ValueError, match="`public_images` gave no name but the concept's"):
        elicit(says, processor, CONCEPT, others)
