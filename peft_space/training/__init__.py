"""DCSI: the losses, the dose that sets itself, and the trainer."""

from .arguments import SpaceTrainingArguments
from .dose import Gauge, Reading, build_gauges, read_dose, tied_to_name
from .losses import repulsion, spectral_entropy
from .trainer import Collator, Lessons, SpaceTrainer, anchor_entropy, concept_directions, lessons_at_a_time

__all__ = [
    "Collator",
    "Gauge",
    "Lessons",
    "Reading",
    "SpaceTrainer",
    "SpaceTrainingArguments",
    "anchor_entropy",
    "build_gauges",
    "concept_directions",
    "lessons_at_a_time",
    "read_dose",
    "repulsion",
    "spectral_entropy",
    "tied_to_name",
]
