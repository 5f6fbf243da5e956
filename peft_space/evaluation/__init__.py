"""What an erasure took and what it left, before and after in one run, with or without a picture of the concept."""

from .datasets import SUITES, Suite, load_classification, load_clear, load_mllmu
from .evaluate import evaluate_erasure
from .examples import EvaluatedSet, Example
from .intervals import Estimate
from .report import Collateral, CollateralPoint, ErasureReport, Figure

__all__ = [
    "SUITES",
    "Collateral",
    "CollateralPoint",
    "ErasureReport",
    "Estimate",
    "EvaluatedSet",
    "Example",
    "Figure",
    "Suite",
    "evaluate_erasure",
    "load_classification",
    "load_clear",
    "load_mllmu",
]
