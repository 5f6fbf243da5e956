"""The matrix of PEFT's features and the models they are proven on: `python -m tests.conformance.table` prints it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.conformance import several, storage, training, weights
from tests.conformance.cases import CASES, Case

Feature = Callable[[Case, Path], None]
"""Proves one feature on one model, and has a folder to write into. Its docstring says what is proven."""

WORKS: list[Feature] = [
    storage.safetensors,
    storage.sharded_base,
    storage.low_cpu_mem_usage,
    storage.state_dict,
    storage.inject_adapter,
    storage.auto_peft_model,
    storage.transformers_adapters,
    storage.hotswap,
    storage.merge_and_save_from_disk,
    storage.rank_and_alpha_pattern,
    storage.rslora,
    storage.layers_to_transform,
    storage.regular_expression_targets,
    several.set_adapter,
    several.disable_adapter,
    several.delete_adapter,
    several.mixed_batches,
    several.add_weighted_adapter_linear,
    several.add_weighted_adapter_cat,
    several.add_weighted_adapter_svd,
    several.mixed_model,
    several.baking_one_of_two,
    several.task_lora_on_an_erased_model,
    several.task_lora_beside_a_held_erasure,
    several.erasure_on_a_task_lora,
    weights.merge_and_unmerge,
    weights.merge_and_unload,
    weights.unload,
    weights.convert,
    weights.half_base,
    weights.autocast,
    weights.model_half,
    weights.deep_copy,
    weights.pickled,
    training.adamw,
    training.gradient_checkpointing,
    training.gradient_checkpointing_reentrant,
    training.torch_compile,
    training.trainer_resume,
    training.kbit_preparation,
    training.ddp,
    training.fsdp2,
]

REFUSED: list[Feature] = [
    storage.modules_to_save,
    storage.low_cpu_mem_usage_when_created,
    storage.hotswap_into_a_held_adapter,
    several.add_weighted_adapter_ties_and_dare,
    several.erasure_around_a_peft_model,
]

FEW_WILL_DO = {
    storage.modules_to_save: (("llama",), "the config is refused before it meets a model"),
    training.torch_compile: (("llama", "gpt2"), "the others' adapted layers are `lora.Linear` as in Llama"),
    training.ddp: (("llama",), "processes exchange parameters and gradients, which do not know their model"),
    training.fsdp2: (("llama",), "processes exchange parameters and gradients, which do not know their model"),
}
NOT_RUN = {
    (model, feature): reason
    for feature, (enough, reason) in FEW_WILL_DO.items()
    for model in CASES
    if model not in enough
}

FEATURES = WORKS + REFUSED
CELLS = [(model, feature) for feature in FEATURES for model in CASES if (model, feature) not in NOT_RUN]


def markdown() -> str:
    """The matrix as a table for the documentation."""
    rows = [["feature", *CASES, "what is proven"], ["---"] * (len(CASES) + 2)]
    for feature in FEATURES:
        proven = "refused" if feature in REFUSED else "yes"
        cells = ["-" if (model, feature) in NOT_RUN else proven for model in CASES]
        said = " ".join((feature.__doc__ or "").split())
        rows.append([f"`{feature.__name__}`", *cells, said])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


if __name__ == "__main__":
    print(markdown())
