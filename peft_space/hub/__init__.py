"""Erasures on the Hugging Face Hub: what a repository holds, its model card, and keeping the erased name out of it."""

from .audited import record_attacks
from .card import build_card
from .push import push_erasure
from .redaction import verify_redacted
from .summary import inspect_erasure, read_report

__all__ = ["build_card", "inspect_erasure", "push_erasure", "read_report", "record_attacks", "verify_redacted"]
