"""TPAS: the public images that the model ties to the concept, and the answers they are trained with."""

from .answers import suppressed_answers
from .company import Company, find_company, in_company
from .index import FeatureIndex, index_images
from .knowledge import Knowledge, elicit, evenly_named, names_given, neighbours, other_names, relatives
from .leading import YesNo, leading_lessons, yes_no_questions
from .lesson import Lesson
from .lessons import anchor_lessons, naming_questions, varied
from .scores import concept_embedding, name_likelihood, projector_cosine
from .selection import Anchors, TooFewAnchors, in_memory, select_anchors

__all__ = [
    "Anchors",
    "Company",
    "FeatureIndex",
    "Knowledge",
    "Lesson",
    "TooFewAnchors",
    "YesNo",
    "anchor_lessons",
    "concept_embedding",
    "elicit",
    "evenly_named",
    "find_company",
    "in_company",
    "in_memory",
    "index_images",
    "leading_lessons",
    "name_likelihood",
    "names_given",
    "naming_questions",
    "neighbours",
    "other_names",
    "projector_cosine",
    "relatives",
    "select_anchors",
    "suppressed_answers",
    "varied",
    "yes_no_questions",
]
