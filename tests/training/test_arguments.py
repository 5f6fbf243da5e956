import pytest
from transformers import TrainingArguments

from peft_space import SpaceTrainingArguments


def test_they_are_training_arguments_that_write_nothing():
    args = SpaceTrainingArguments()
    assert isinstance(args, TrainingArguments)
    assert str(args.save_strategy.value) == "no" and args.report_to == []
    assert not args.remove_unused_columns
    assert args.weight_decay == 5.0 and SpaceTrainingArguments(weight_decay=0.0).weight_decay == 0.0


@pytest.mark.parametrize(
    ("name", "value", "bound"),
    [
        ("lambda_anchor", -0.1, "at least 0"),
        ("lambda_diversity", -1.0, "at least 0"),
        ("dose_share", -0.5, "at least 0"),
        ("dose_margin", -0.1, "at least 0"),
        ("dose_name_margin", -0.1, "at least 0"),
        ("dose_slack", -0.1, "at least 0"),
        ("dose_every", -1, "at least 0"),
        ("dose_readings", 0, "at least 1"),
        ("dose_lr_factor", 0.0, r"greater than 0 and at most 1 \(1 changes nothing\)"),
        ("dose_lr_factor", 1.5, r"greater than 0 and at most 1 \(1 changes nothing\)"),
        ("leak_budget", 0.0, "greater than 0"),
        ("leak_budget", float("nan"), "greater than 0"),
    ],
)
def test_out_of_range(name, value, bound):
    with pytest.raises(ValueError, match=rf"`{name}` must be {bound}; got {value}"):
        SpaceTrainingArguments(**{name: value})


@pytest.mark.parametrize("name", ["lambda_anchor", "lambda_diversity", "dose_every", "dose_share"])
def test_zero_switches_off(name):
    assert getattr(SpaceTrainingArguments(**{name: 0}), name) == 0


def test_one_adapter_for_several_takes_more_steps_and_may_leak_more():
    one, four = SpaceTrainingArguments(seed=3), SpaceTrainingArguments.of_several(4, seed=3)
    assert (four.max_steps, four.leak_budget, four.seed) == (4 * one.max_steps, 2 * one.leak_budget, 3)
    assert four.lr_scheduler_kwargs == {"num_decay_steps": four.max_steps // 2}
    alone = SpaceTrainingArguments.of_several(1)
    assert (alone.max_steps, alone.leak_budget) == (one.max_steps, one.leak_budget)


def test_of_a_schedule_that_is_asked_for_nothing_is_set():
    assert not SpaceTrainingArguments(lr_scheduler_type="linear").lr_scheduler_kwargs
    given = {"num_decay_steps": 7, "min_lr_ratio": 0.1}
    assert SpaceTrainingArguments(lr_scheduler_kwargs=given).lr_scheduler_kwargs == given


def test_in_small_batches_it_takes_the_same_steps():
    args = SpaceTrainingArguments(per_device_train_batch_size=12, gradient_accumulation_steps=2)
    small = args.in_small_batches(5)
    assert (small.per_device_train_batch_size, small.gradient_accumulation_steps) == (4, 6)
    assert small.gradient_checkpointing and not args.gradient_checkpointing
    assert args.in_small_batches(12) is args
