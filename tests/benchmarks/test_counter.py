import copy

import pytest
import torch
from torch import nn

from peft_space.tuner import language_model_targets
from tests.benchmarks.counter import counting, nf4
from tests.benchmarks.memory import Profiled, counted, run_stages
from tests.tiny import image_batch, tiny_llava, tiny_qwen

KIB = 2**10


def test_what_is_alive_and_the_most_that_was():
    model = nn.Linear(64, 64, bias=False, device="meta")
    with counting(model, "meta") as counter:
        assert counter.alive == 16 * KIB
        x = torch.zeros(16, 64, device="meta")
        y = model(x)
        assert counter.alive == 24 * KIB
        view = y[:4]
        del y
        assert counter.alive == 24 * KIB
        del view
        assert counter.alive == 20 * KIB and counter.peak == 24 * KIB
        counter.reset()
        assert counter.peak == 20 * KIB
        assert x.cpu().shape == x.shape and counter.alive == 20 * KIB


def test_values_that_decide_about_shapes_stay_real():
    with counting(nn.Identity(), "meta"):
        x = torch.zeros(4, 8, device="meta")
        mask = torch.tensor([True, False, True, False]).to("meta")
        assert x[mask].shape == (2, 8) and x[mask].is_meta
        assert x.isfinite().all().item() is True and 0 < float(x.sum()) < 1e-3


def test_allocations_are_rounded_up():
    with counting(nn.Identity(), "cpu", 512) as counter:
        some = torch.zeros(3)
        assert counter.alive == 512 and len(some) == 3


@pytest.mark.parametrize("make", [tiny_llava, tiny_qwen])
def test_faked_nf4_weighs_as_much_as_the_real(make):
    model = make().requires_grad_(False)
    sizes = []
    for device in ("cpu", "meta"):
        quantised = copy.deepcopy(model).to(device)
        nf4(quantised, language_model_targets(quantised), device)
        with counting(quantised, device) as counter:
            sizes.append(counter.alive)
    assert sizes[0] == sizes[1] < sum(p.nbytes for p in model.parameters())


@torch.no_grad()
def test_a_pass_is_counted_as_on_real_tensors():
    model, batch = tiny_llava(), image_batch()
    peaks = []
    for device in ("cpu", "meta"):
        there = copy.deepcopy(model).to(device)
        with counting(there, device) as counter:
            there(**{k: v.to(device) for k, v in batch.items()}, use_cache=False)
            peaks.append(counter.peak)
    assert peaks[1] == pytest.approx(peaks[0], rel=0.1)


@pytest.mark.slow
def test_every_stage_is_counted_as_the_allocator_has_it(base, processor):
    peaks = {}
    for device in ("meta", "cpu"):
        model = copy.deepcopy(base).to(device)
        if device == "meta":
            model.quantization_method = "bitsandbytes"
            with counted(model, device, 1) as meter:
                run_stages(model, processor, 48, meter, meta=True)
        else:
            meter = Profiled(model)
            run_stages(model, processor, 48, meter)
        peaks[device] = meter.peaks
    for stage, peak in peaks["cpu"].items():
        assert peaks["meta"][stage] == pytest.approx(peak, rel=0.15), stage
