"""A small MLLM that really knows its concepts, trained on the spot: demo, tests and benchmarks stand on it."""

from .exam import Exam, Marks
from .world import TUNING_FAMILIES, WEIGHTS, concept, load, public_images, retain

__all__ = ["TUNING_FAMILIES", "WEIGHTS", "Exam", "Marks", "concept", "load", "public_images", "retain"]
