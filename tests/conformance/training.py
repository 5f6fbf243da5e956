"""Features of training: what recomputes, compiles, resumes or distributes it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training, set_peft_model_state_dict
from transformers import Trainer, TrainingArguments

from peft_space import has_subspace
from tests.adapters import leak, train
from tests.conformance import distributed
from tests.conformance.cases import ROUNDING, Case, apart, close


def adamw(case: Case, folder: Path) -> None:
    """Plain training: the loss falls, other outputs move, retained ones do not."""
    model = case.held()
    losses = train(model, case.batch(), steps=50, weight_decay=0.3)
    assert losses[-1] < losses[0]
    apart(case.logits(model), case.base_logits())
    assert case.leak(model) < ROUNDING


def gradient_checkpointing(case: Case, folder: Path) -> None:
    """The same training, with activations computed twice."""
    expected = _trained(case.build(), case)
    base = case.build()
    base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    _same_training(case, _trained(base, case), expected)


def gradient_checkpointing_reentrant(case: Case, folder: Path) -> None:
    """The older kind, which needs an input that asks for gradients: PEFT sees to it."""
    expected = _trained(case.build(), case)
    base = case.build()
    base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    _same_training(case, _trained(base, case), expected)


def _trained(base, case):
    torch.manual_seed(0)
    model = case.erased(base)
    losses = train(model, case.batch(), steps=3)
    assert all(parameter.grad.abs().max() > 0 for parameter in model.parameters() if parameter.requires_grad)
    return losses, model


def _same_training(case, actual, expected):
    assert actual[0] == pytest.approx(expected[0], abs=1e-5)
    close(case.logits(actual[1]), case.logits(expected[1]), 1e-4)
    assert leak(actual[1], case.subspace()) < ROUNDING


def torch_compile(case: Case, folder: Path) -> None:
    """A compiled model gives the same logits and gradients, and holds while it is trained on."""
    model = case.erased()
    batch = case.batch() | {"labels": case.batch()["input_ids"]}
    passes = []
    for form in (model, torch.compile(model, backend="aot_eager")):
        model.zero_grad()
        output = form.train()(**batch)
        output.loss.backward()
        passes.append((output, {name: p.grad for name, p in model.named_parameters() if p.requires_grad}))
    (eager, expected), (compiled, gradients) = passes
    close(compiled.logits.detach(), eager.logits.detach())
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients[name], gradient, atol=1e-5, rtol=1e-4)
    train(form, case.batch(), steps=2)
    assert leak(model, case.subspace()) < ROUNDING


def trainer_resume(case: Case, folder: Path) -> None:
    """The Trainer stops, starts again from its checkpoint with a new model, and ends where it would have ended."""
    rows = [case.batch(1, seed=seed) for seed in range(8)]
    ends = []
    for checkpoint in (None, str(folder / "checkpoint-2")):
        torch.manual_seed(0)
        model = case.held()
        arguments = TrainingArguments(
            str(folder),
            max_steps=4,
            save_steps=2,
            per_device_train_batch_size=2,
            learning_rate=1e-2,
            weight_decay=0.1,
            remove_unused_columns=False,
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
        )
        Trainer(model, arguments, train_dataset=rows, data_collator=_joined).train(resume_from_checkpoint=checkpoint)
        ends.append(model)
    close(case.logits(ends[1]), case.logits(ends[0]))
    apart(case.logits(ends[1]), case.base_logits())
    assert has_subspace(ends[1])
    assert leak(ends[1], case.subspace()) < ROUNDING


def _joined(rows):
    batch = {key: torch.cat([row[key] for row in rows]) for key in rows[0]}
    return batch | {"labels": batch["input_ids"]}


def kbit_preparation(case: Case, folder: Path) -> None:
    """`prepare_model_for_kbit_training` upcasts and freezes a base; the adapter on it trains and holds."""
    model = case.held(prepare_model_for_kbit_training(case.build().to(torch.bfloat16)))
    losses = train(model, case.batch_for(model), steps=3)
    assert losses[-1] < losses[0]
    assert leak(model, case.subspace()) < ROUNDING
    assert {p.requires_grad for n, p in model.named_parameters() if "lora_" not in n} == {False}


def ddp(case: Case, folder: Path) -> None:
    """Two processes with half a batch each end where one with the whole batch ends."""
    _ends_like_one_process(case, "ddp")


def fsdp2(case: Case, folder: Path) -> None:
    """The same with all parameters split over the processes; the adapter comes out whole, folded and plain LoRA."""
    _ends_like_one_process(case, "fsdp2")


def _ends_like_one_process(case, kind):
    alone = distributed.model_to_train(case)
    losses = train(alone, case.batch(distributed.PROCESSES), distributed.STEPS)
    told = distributed.distributed(case.name)[kind]
    assert told["losses"] == pytest.approx(losses, abs=1e-5)
    model = get_peft_model(case.build(), LoraConfig(r=4, target_modules=case.targets()))
    assert not set_peft_model_state_dict(model, told["adapter"]).unexpected_keys
    close(case.logits(model), case.logits(alone), 1e-4)
    assert case.leak(model) < ROUNDING
