import math
from dataclasses import replace

import pytest
import torch
from peft import get_peft_model
from transformers import TrainerCallback, set_seed

from peft_space import SpaceConfig, SpaceTrainer, SpaceTrainingArguments, vlm
from peft_space._peft import lora_layers
from peft_space.anchors import Lesson
from peft_space.training import Collator, Gauge, Lessons, anchor_entropy, concept_directions, lessons_at_a_time
from peft_space.training import trainer as trainer_module
from peft_space.training.dose import Reading
from peft_space.training.trainer import past_earlier_adapters
from peft_space.vlm import Prompt, encode
from tests.adapters import RandomSubspace, attach_subspace, leak


@pytest.fixture(scope="module")
def lessons(anchors, concept):
    rows = []
    for image, said in zip(anchors.images[:4], ("a bird", "red", "a fish", "blue"), strict=True):
        rows.append(Lesson(Prompt(concept.questions[0], image), said, "name"))
        rows.append(Lesson(Prompt("What colour is it?", image), said, "other"))
    return [*rows, Lesson(Prompt(concept.asked_in_text[0]), "in the sea", "fact")]


@pytest.fixture
def peft_model(model):
    torch.manual_seed(0)
    return get_peft_model(model, SpaceConfig(r=4, concept="narril"))


@pytest.fixture
def make(peft_model, processor, lessons):
    def make(model=peft_model, gauges=(), measure_leak=None, rows=lessons, callbacks=None, keep_in=None, **args):
        set_seed(0)
        args = SpaceTrainingArguments(**{"max_steps": 4, "per_device_train_batch_size": 4, "logging_steps": 1} | args)
        directions = concept_directions(model, processor, ["narril"])
        return SpaceTrainer(
            model,
            args,
            Lessons(rows),
            processor,
            directions,
            gauges=gauges,
            measure_leak=measure_leak,
            callbacks=callbacks,
            keep_in=keep_in,
        )

    return make


def gauge(reference, anchors):
    """One that the tiny model has passed from the start, or never will."""
    return Gauge("name", (Prompt("Name it.", anchors.images[0]),), ("narril",), 0.0, reference)


def adapter(model):
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def reset(model, to):
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name in to:
                p.copy_(to[name])


def lora_deltas(model):
    layers = lora_layers(model.get_base_model(), "default")
    return {name: layer.get_delta_weight("default").detach() for name, layer in layers}


def test_no_lessons():
    with pytest.raises(ValueError, match="`lessons` must hold at least one lesson; got none"):
        Lessons([])


def test_pictures_and_text_are_encoded_apart(processor, lessons):
    parts = Collator(processor)(lessons)
    assert len(parts["image"]["input_ids"]) == 8 and len(parts["text"]["input_ids"]) == 1
    assert "pixel_values" not in parts["text"]
    # a name and a fact are repelled from the concept, what else is seen of a picture is not
    assert parts["image"]["named"].tolist() == [True, False] * 4 and parts["text"]["named"].tolist() == [True]
    assert set(Collator(processor)(lessons[:1])) == {"image"}


def test_what_an_answer_begins_with_is_not_learned(processor, lessons):
    begun = Lesson(lessons[0].prompt, "a red zorvex in the sea", "leading", begun=2)
    labels = Collator(processor)([begun])["image"]["labels"][0]
    whole = Collator(processor)([replace(begun, begun=0)])["image"]["labels"][0]
    answer = whole[whole >= 0]
    assert labels[labels >= 0].equal(answer[2:])
    assert Collator(processor)([begun])["image"]["named"].tolist() == [False]


def test_an_answer_that_was_begun_hides_nothing_of_a_shorter_one(make, peft_model, processor, lessons):
    short = Lesson(lessons[0].prompt, "moss", "other")
    long = Lesson(lessons[0].prompt, "a red zorvex in the sea", "leading", begun=4)
    trainer = make(max_steps=1, lambda_anchor=0.0, lambda_diversity=0.0)
    with torch.no_grad():
        loss = trainer.compute_loss(peft_model, Collator(processor)([short, long]))
        alone = [trainer.compute_loss(peft_model, Collator(processor)([row])) for row in (short, long)]
    counts = [int((Collator(processor)([row])["image"]["labels"] >= 0).sum()) for row in (short, long)]
    assert loss == pytest.approx(float(sum(a * n for a, n in zip(alone, counts, strict=True)) / sum(counts)), rel=1e-3)


def test_directions_are_the_rows_of_the_names_tokens(base, processor):
    ids = processor.tokenizer("narril", add_special_tokens=False)["input_ids"]
    rows = base.get_output_embeddings().weight.detach()
    directions = concept_directions(base, processor, ["narril", "narril"])
    assert directions.equal(rows[sorted(ids)] - rows.mean(0))


def test_of_long_lessons_few_are_learned_at_a_time(make, model, processor, lessons, monkeypatch):
    assert lessons_at_a_time(model, processor, lessons, 32) == 32
    monkeypatch.setattr(vlm, "BATCH_NUMBERS", 1)
    assert lessons_at_a_time(model, processor, lessons, 32) == 1
    trainer = make(max_steps=1)
    trainer.args = trainer.args.in_small_batches(1)
    trainer.train()
    assert trainer.state.global_step == 1 and len(trainer.state.log_history) == 2


def test_it_learns_and_logs_each_term(make):
    trainer = make(max_steps=12, learning_rate=1e-2)
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(entries) == 12
    assert entries[-1]["loss_task"] < entries[0]["loss_task"]
    for entry in entries:
        parts = entry["loss_task"] + entry["loss_orth"] + 0.1 * entry["loss_div"]
        assert entry["loss"] == pytest.approx(parts, abs=1e-3)
        assert 0 <= entry["loss_orth"] <= 1 and -1 - 1e-5 <= entry["loss_div"] <= 0


def test_weights_of_zero_leave_the_task(make):
    trainer = make(max_steps=2, lambda_anchor=0, lambda_diversity=0)
    trainer.train()
    for entry in trainer.state.log_history:
        if "loss" in entry:
            assert entry["loss"] == pytest.approx(entry["loss_task"], abs=1e-3)


def test_every_token_of_the_answers_counts_alike(make, peft_model, processor, anchors):
    rows = [
        Lesson(Prompt("Name it.", anchors.images[0]), "moss", "name"),
        Lesson(Prompt("Describe it.", anchors.images[1]), "a red fish with two horns in the sea", "name"),
    ]
    trainer = make(rows=rows, lambda_anchor=0, lambda_diversity=0)
    peft_model.eval()
    with torch.no_grad():
        loss = trainer.compute_loss(peft_model, Collator(processor)(rows))
        alone = [peft_model(**encode(processor, [row.prompt], [row.answer])) for row in rows]
        tokens = [int((encode(processor, [r.prompt], [r.answer])["labels"] >= 0).sum()) for r in rows]
    expected = sum(out.loss.item() * n for out, n in zip(alone, tokens, strict=True)) / sum(tokens)
    assert tokens[1] > 3 * tokens[0]
    assert loss.item() == pytest.approx(expected, abs=1e-4)
    assert abs(loss.item() - sum(out.loss.item() for out in alone) / 2) > 1e-2


def test_only_the_adapter_moves(make, peft_model):
    before = {name: p.detach().clone() for name, p in peft_model.named_parameters()}
    make(learning_rate=1e-2).train()
    moved = {name for name, p in peft_model.named_parameters() if not p.equal(before[name])}
    assert moved and all("lora_" in name for name in moved)


def test_the_subspace_holds_through_training(make, peft_model):
    subspace = RandomSubspace(peft_model)
    attach_subspace(peft_model, subspace)
    make(learning_rate=1e-2).train()
    assert leak(peft_model, subspace) < 1e-5


def test_it_stops_where_the_dose_is_reached(make, anchors):
    trainer = make(gauges=[gauge(100, anchors)], dose_every=2, max_steps=8)
    trainer.train()
    assert trainer.stopped == "dose reached" and trainer.state.global_step == 4
    assert [reading.step for reading in trainer.readings] == [2, 4] and trainer.readings[-1].reached


def test_it_stops_only_where_so_many_readings_in_a_row_find_the_dose(make, anchors, monkeypatch):
    found = iter([True, False, True, True, True])
    monkeypatch.setattr(
        trainer_module, "read_dose", lambda *args, **rest: Reading(args[-1], (0.0,), next(found), leak=args[-2])
    )
    trainer = make(gauges=[gauge(100, anchors)], dose_every=1, dose_readings=2, max_steps=8)
    trainer.train()
    assert trainer.stopped == "dose reached" and trainer.state.global_step == 4


class Rates(TrainerCallback):
    """Remembers the learning rate that each step has."""

    def __init__(self):
        self.rates, self.decays = [], []

    def on_step_begin(self, args, state, control, optimizer, **kwargs):
        self.rates.append(optimizer.param_groups[0]["lr"])
        self.decays.append([group["weight_decay"] for group in optimizer.param_groups])


@pytest.fixture
def readings_of(monkeypatch):
    """Puts levels in the place of what the readings find, one after another."""

    def readings_of(*levels):
        monkeypatch.setattr(
            trainer_module,
            "read_dose",
            lambda *args, **rest: Reading(args[-1], levels[args[-1] - 1], False, leak=args[-2]),
        )

    return readings_of


@pytest.mark.parametrize(
    ("schedule", "factor", "rates"),
    [
        ("constant", 0.5, [4, 4, 4, 2, 2, 1, 1, 0.5]),
        ("constant", 1.0, [4, 4, 4, 4, 4, 4, 4, 4]),
        ("constant_with_warmup", 0.5, [4, 4, 4, 2, 2, 1, 1, 0.5]),
        ("linear", 0.5, [4, 4 * 7 / 8, 4 * 6 / 8, 2 * 5 / 8, 2 * 4 / 8, 3 / 8, 2 / 8, 0.5 / 8]),
    ],
)
def test_where_a_gauge_comes_back_the_steps_become_shorter(make, anchors, readings_of, schedule, factor, rates):
    # the first comes back at the third step, the second at the fifth, the first once more at the seventh
    up, down = 1.0, -50.0
    levels = [(up, up), (down, up), (up, down), (up, down), (down, up), (down, up), (up, up), (up, up)]
    readings_of(*levels)
    both = [replace(gauge(-10.0, anchors), sure=0.0)] * 2
    how = {"lr_scheduler_type": schedule, "learning_rate": 4e-4, "warmup_steps": 0}
    had = Rates()
    make(gauges=both, dose_every=1, max_steps=len(levels), dose_lr_factor=factor, callbacks=[had], **how).train()
    assert had.rates == pytest.approx([1e-4 * rate for rate in rates])


def test_the_learning_rate_falls_over_the_last_half(make):
    had = Rates()
    make(max_steps=8, learning_rate=4e-4, warmup_steps=2, callbacks=[had]).train()
    falling = [(1 + math.cos(math.pi * done / 4)) / 2 for done in range(4)]
    assert had.rates == pytest.approx([4e-4 * share for share in (0.0, 0.5, 1.0, 1.0, *falling)])


def test_what_comes_back_at_the_very_next_reading_is_left_to_the_shorter_steps(make, anchors, readings_of):
    up, down = 1.0, -50.0
    readings_of((down, down), (up, down), (up, up), (down, down), (up, down), (up, down))
    both = [replace(gauge(-10.0, anchors), sure=0.0)] * 2
    had = Rates()
    how = {"learning_rate": 4e-4, "lr_scheduler_type": "constant"}
    make(gauges=both, dose_every=1, max_steps=6, callbacks=[had], **how).train()
    assert had.rates == pytest.approx([4e-4, 4e-4, 2e-4, 2e-4, 2e-4, 1e-4])


@pytest.mark.parametrize("decay", [5.0, 2.0, 0.0])
def test_of_a_first_adapter_weight_decay_fades_out(make, decay):
    had = Rates()
    make(max_steps=4, weight_decay=decay, callbacks=[had]).train()
    # the second group is of what has no decay
    assert had.decays == [[decay * left, 0.0] for left in (1.0, 0.75, 0.5, 0.25)]


def test_what_should_stay_comes_back_too(make, anchors, readings_of):
    readings_of((0.0,), (-1.0,), (-1.0,))
    stays = replace(gauge(None, anchors), about="what should stay")
    trainer = make(gauges=[stays], dose_every=1, max_steps=3, learning_rate=4e-4, lr_scheduler_type="constant")
    trainer.train()
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(2e-4)


def test_a_gauge_that_wavers_around_its_margin_leaves_the_steps_as_they_are(make, anchors, readings_of):
    readings_of((-2.1,), (-1.2,), (-2.1,), (-1.05,), (-2.1,))
    wavering = replace(gauge(0.0, anchors), about="fact through the image", sure=2.0, reference=-4.0)
    how = {"learning_rate": 4e-4, "lr_scheduler_type": "constant", "dose_share": 0.1, "dose_margin": 2.0}
    had = Rates()
    make(gauges=[wavering], dose_every=1, max_steps=5, callbacks=[had], **how).train()
    assert had.rates == pytest.approx([4e-4] * 4 + [2e-4])


@pytest.fixture
def beside_another(peft_model):
    """A second adapter to be trained, beside a first one that does something and is not trained."""
    with torch.no_grad():
        for _, layer in lora_layers(peft_model.get_base_model()):
            layer.lora_B["default"].weight.normal_(std=0.05)
    peft_model.add_adapter("second", SpaceConfig(r=4, concept="zormok"))
    peft_model.base_model.set_adapter(["default", "second"])
    peft_model.set_requires_grad("default", requires_grad=False)
    for _, layer in lora_layers(peft_model.get_base_model(), "second"):
        torch.nn.init.normal_(layer.lora_B["second"].weight, std=0.05)
    return peft_model


def slopes(model, processor, lessons):
    """The gradients of what is trained."""
    model.zero_grad()
    rows = [lesson for lesson in lessons if lesson.prompt.image is not None]
    batch = encode(processor, [row.prompt for row in rows], [row.answer for row in rows])
    model(**batch).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


def test_gradients_go_past_an_adapter_that_is_not_trained(beside_another, processor, lessons):
    through = slopes(beside_another, processor, lessons)
    layers = [layer for _, layer in lora_layers(beside_another.get_base_model())]
    adds = {layer: [] for layer in layers}
    watching = [
        layer.lora_B["default"].register_forward_hook(lambda m, a, out, layer=layer: adds[layer].append(out.detach()))
        for layer in layers
    ]
    with past_earlier_adapters(beside_another):
        past = slopes(beside_another, processor, lessons)
    for hook in watching:
        hook.remove()
    assert not any(layer.lora_A["default"]._forward_pre_hooks for layer in layers)
    # what the first adapter adds, put there as a constant
    for layer in layers:
        layer.lora_B["default"].register_forward_hook(lambda m, a, out, layer=layer: adds[layer][0])
    constant = slopes(beside_another, processor, lessons)
    assert past.keys() == constant.keys() and all("second" in name for name in past)
    for name, slope in past.items():
        torch.testing.assert_close(slope, constant[name], rtol=1e-4, atol=1e-7)
    assert any(not slope.allclose(through[name], rtol=1e-2) for name, slope in past.items())


def test_beside_another_adapter_weight_decay_stays(make, beside_another):
    had = Rates()
    make(beside_another, max_steps=4, weight_decay=2.0, callbacks=[had]).train()
    assert had.decays == [[2.0, 0.0]] * 4


def test_training_goes_past_the_other_adapter_and_lets_it_be(make, beside_another, monkeypatch):
    layers = [layer for _, layer in lora_layers(beside_another.get_base_model())]
    before = [layer.lora_B["default"].weight.clone() for layer in layers]
    held, compute = [], SpaceTrainer.compute_loss

    def computing(self, *args, **kwargs):
        held.append([name for layer in layers for name, one in layer.lora_A.items() if one._forward_pre_hooks])
        return compute(self, *args, **kwargs)

    monkeypatch.setattr(SpaceTrainer, "compute_loss", computing)
    make(model=beside_another, max_steps=2).train()
    assert held == [["default"] * len(layers)] * 2
    assert all(layer.lora_B["default"].weight.equal(was) for layer, was in zip(layers, before, strict=True))


def test_it_stops_where_the_leak_budget_is_spent(make, anchors):
    trainer = make(gauges=[gauge(-100, anchors)], measure_leak=lambda: 0.06, dose_every=2, max_steps=8)
    trainer.train()
    assert trainer.stopped == "leak budget spent" and trainer.state.global_step == 2
    assert not trainer.readings[-1].reached


def test_it_stops_at_max_steps(make, anchors):
    trainer = make(gauges=[gauge(-100, anchors)], measure_leak=lambda: 0.01, dose_every=2, max_steps=5)
    trainer.train()
    assert trainer.stopped == "max_steps" and [reading.step for reading in trainer.readings] == [2, 4, 5]


def test_dose_every_zero_trains_for_max_steps(make, anchors):
    trainer = make(gauges=[gauge(100, anchors)], dose_every=0, max_steps=3)
    trainer.train()
    assert trainer.state.global_step == 3 and [reading.step for reading in trainer.readings] == [3]


def test_a_loss_that_is_not_a_number_stops_and_brings_the_last_good_adapter_back(
    make, peft_model, monkeypatch, anchors
):
    trainer = make(gauges=[gauge(-100, anchors)], dose_every=2, max_steps=8, learning_rate=1e-2)
    good, calls = {}, []
    compute = SpaceTrainer.compute_loss

    def break_down(self, model, inputs, **kwargs):
        calls.append(self.state.global_step)
        if self.state.global_step == 2:
            good.update(adapter(peft_model))
        if self.state.global_step == 3:
            with torch.no_grad():
                next(iter(p for p in peft_model.parameters() if p.requires_grad)).fill_(math.nan)
        return compute(self, model, inputs, **kwargs)

    monkeypatch.setattr(SpaceTrainer, "compute_loss", break_down)
    with pytest.raises(FloatingPointError, match=r"became nan at step 3; lower `learning_rate` \(=0.01\)"):
        trainer.train()
    assert trainer.stopped == "loss not finite" and calls[-1] == 3
    assert good and all(p.equal(good[name]) for name, p in adapter(peft_model).items())


def test_a_loss_that_is_never_a_number_leaves_the_adapter_as_it_was(make, peft_model):
    before = adapter(peft_model)
    with pytest.raises(FloatingPointError, match="step 0"):
        make(lambda_anchor=float("inf")).train()
    assert all(p.equal(before[name]) for name, p in adapter(peft_model).items())


def test_the_same_seed_trains_the_same_adapter(make, peft_model):
    start = adapter(peft_model)
    ends = []
    for _ in range(2):
        reset(peft_model, start)
        make(max_steps=2).train()
        ends.append(adapter(peft_model))
    assert all(p.equal(ends[1][name]) for name, p in ends[0].items())


def test_gradient_checkpointing_gives_the_same_adapter(make, peft_model):
    start = adapter(peft_model)
    make(max_steps=2).train()
    plain = adapter(peft_model)
    reset(peft_model, start)
    make(max_steps=2, gradient_checkpointing=True).train()
    assert all(p.allclose(plain[name], atol=1e-5) for name, p in adapter(peft_model).items())


def test_bf16_trains(make):
    trainer = make(max_steps=2, bf16=True, use_cpu=True)
    trainer.train()
    assert math.isfinite(trainer.state.log_history[0]["loss"])


def test_it_resumes_from_a_checkpoint(make, peft_model, tmp_path):
    subspace = RandomSubspace(peft_model)
    attach_subspace(peft_model, subspace)
    start = adapter(peft_model)
    where = {"output_dir": str(tmp_path), "save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    make(**where).train()
    through = lora_deltas(peft_model)
    reset(peft_model, start)
    trainer = make(**where)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert trainer.state.global_step == 4
    assert all(delta.allclose(through[name], atol=1e-6) for name, delta in lora_deltas(peft_model).items())
    assert leak(peft_model, subspace) < 1e-5


class Stops(TrainerCallback):
    """Remembers which steps begin, and stops before one of them."""

    def __init__(self, before=None):
        self.before, self.begun = before, []

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.before:
            raise KeyboardInterrupt
        self.begun.append(state.global_step)


@pytest.mark.parametrize("slower", [False, True])
def test_it_goes_on_from_the_state_that_it_kept_to_the_same_adapter(
    make, peft_model, anchors, tmp_path, readings_of, slower
):
    begin = adapter(peft_model)
    given = {"gauges": [replace(gauge(-50.0, anchors), sure=0.0)], "max_steps": 6, "dose_every": 2}
    if slower:
        readings_of(None, (-90.0,), None, (0.0,), None, (0.0,))
    whole = make(**given)
    whole.train()
    expected = adapter(peft_model)
    # the schedule itself has come to its end
    assert whole.lr_scheduler.base_lrs[0] == pytest.approx(whole.args.learning_rate * (0.5 if slower else 1))

    reset(peft_model, begin)
    with pytest.raises(KeyboardInterrupt):
        make(**given, keep_in=tmp_path, callbacks=[Stops(before=5)]).train()
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000004"]

    reset(peft_model, begin)
    rest = Stops()
    trainer = make(**given, keep_in=tmp_path, callbacks=[rest])
    trainer.train()
    assert rest.begun == [4, 5] and trainer.readings == whole.readings
    assert [row for row in trainer.state.log_history if "loss" in row] == [
        row for row in whole.state.log_history if "loss" in row
    ]
    assert all(tensor.equal(expected[name]) for name, tensor in adapter(peft_model).items())


def test_another_training_does_not_go_on_from_a_state(make, peft_model, lessons, anchors, tmp_path):
    begin = adapter(peft_model)
    given = {"gauges": [gauge(-50.0, anchors)], "dose_every": 2}
    with pytest.raises(KeyboardInterrupt):
        make(**given, keep_in=tmp_path, callbacks=[Stops(before=3)]).train()
    reset(peft_model, begin)
    assert make(**given, keep_in=tmp_path).kept_state.latest() == tmp_path / "step-00000002"
    for change in ({"learning_rate": 1.0}, {"rows": lessons[1:]}, {"seed": 1}, {"gauges": given["gauges"] * 2}):
        assert make(**given | change, keep_in=tmp_path).kept_state.latest() is None
    next(iter(begin.values())).add_(1)
    reset(peft_model, begin)
    assert make(**given, keep_in=tmp_path).kept_state.latest() is None


def test_entropy_of_the_naming_answers(peft_model, processor, lessons):
    assert 0 <= anchor_entropy(peft_model, processor, lessons) <= 1
    several = anchor_entropy(peft_model, processor, lessons, batch_size=2)
    assert several == pytest.approx(anchor_entropy(peft_model, processor, lessons), abs=1e-3)


def test_entropy_of_no_naming_answers(peft_model, processor, lessons):
    assert math.isnan(anchor_entropy(peft_model, processor, [row for row in lessons if row.about != "name"]))
