"""TPAS: the public images that the model ties to the concept, and the answers they are trained with."""

from .answers import suppressed_answers
from .index import FeatureIndex, index_images
from .knowledge import Knowledge, elicit, other_names
from .lessons import Lesson, anchor_lessons, naming_questions, varied
from .scores import concept_embedding, name_likelihood, projector_cosine
from .selection import Anchors, in_memory, select_anchors

__all__ = [
    "Anchors",
    "FeatureIndex",
    "Knowledge",
    "Lesson",
    "anchor_lessons",
    "concept_embedding",
    "elicit",
    "in_memory",
    "index_images",
    "name_likelihood",
    "naming_questions",
    "other_names",
    "projector_cosine",
    "select_anchors",
    "suppressed_answers",
    "varied",
]
