from .adapter import base_fingerprint, export_lora, load_erasure, merge_and_save, save_erasure_adapter
from .anchors import Anchors, FeatureIndex, index_images, select_anchors
from .attacks import AuditReport, NoiseBudget, RelearningBudget, audit_erasure
from .concepts import Concept, PublicImages, Retain, load_public_images
from .erasure import ErasureResult, erase
from .evaluation import ErasureReport, EvaluatedSet, Example, evaluate_erasure
from .figures import plot_erasure
from .hub import inspect_erasure, push_erasure, verify_redacted
from .loading import load_base
from .subspace import LeakReport, RetainedSubspace, fit_retained_subspace, leak, leak_between
from .training import SpaceTrainer, SpaceTrainingArguments
from .tuner import SpaceConfig, SpaceModel, attach_subspace, bake, has_subspace, scale_adapter, targeted_modules

__all__ = [
    "Anchors",
    "AuditReport",
    "Concept",
    "ErasureReport",
    "ErasureResult",
    "EvaluatedSet",
    "Example",
    "FeatureIndex",
    "LeakReport",
    "NoiseBudget",
    "PublicImages",
    "RelearningBudget",
    "Retain",
    "RetainedSubspace",
    "SpaceConfig",
    "SpaceModel",
    "SpaceTrainer",
    "SpaceTrainingArguments",
    "attach_subspace",
    "audit_erasure",
    "bake",
    "base_fingerprint",
    "erase",
    "evaluate_erasure",
    "export_lora",
    "fit_retained_subspace",
    "has_subspace",
    "index_images",
    "inspect_erasure",
    "leak",
    "leak_between",
    "load_base",
    "load_erasure",
    "load_public_images",
    "merge_and_save",
    "plot_erasure",
    "push_erasure",
    "save_erasure_adapter",
    "scale_adapter",
    "select_anchors",
    "targeted_modules",
    "verify_redacted",
]
