"""How an erasure stands up to attacks: base, erased model and oracle alike, with other concepts as the control."""

from .audit import ATTACKS, audit_erasure
from .noise import Budget as NoiseBudget
from .outcome import Outcome, Reading
from .relearning import Budget as RelearningBudget
from .report import AuditReport

__all__ = ["ATTACKS", "AuditReport", "NoiseBudget", "Outcome", "Reading", "RelearningBudget", "audit_erasure"]
