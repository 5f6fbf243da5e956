"""The retained subspace: which inputs of each layer must keep their outputs, and how well an adapter keeps them."""

from peft_space.subspace.fit import LOW_MOMENT_BUDGET, MOMENT_BUDGET, fit_retained_subspace
from peft_space.subspace.leak import LeakReport, leak, leak_between
from peft_space.subspace.moments import DenseMoment, PrincipalSubspace, SketchedMoment, average, principal_subspace
from peft_space.subspace.retained import InputRecord, RetainedSubspace

__all__ = [
    "LOW_MOMENT_BUDGET",
    "MOMENT_BUDGET",
    "DenseMoment",
    "InputRecord",
    "LeakReport",
    "PrincipalSubspace",
    "RetainedSubspace",
    "SketchedMoment",
    "average",
    "fit_retained_subspace",
    "leak",
    "leak_between",
    "principal_subspace",
]
