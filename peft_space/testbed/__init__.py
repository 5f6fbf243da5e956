"""A small MLLM that really knows its concepts, trained on the spot: demo, tests and benchmarks stand on it."""

from .bed import Bed
from .exam import Exam, GroupMarks, Marks
from .world import BESTIARY, TUNING_FAMILIES, WEIGHTS, concept, load, public_images, retain

__all__ = [
    "BESTIARY",
    "TUNING_FAMILIES",
    "WEIGHTS",
    "Bed",
    "Exam",
    "GroupMarks",
    "Marks",
    "concept",
    "load",
    "public_images",
    "retain",
]
