import math

import pytest

from peft_space.attacks.outcome import NOT_JUDGED, RECOVERED, ROBUST, SHOWS, TOLD, UNSURE, VERDICTS, Outcome, Reading
from peft_space.evaluation import Estimate


def near(value, reach=0.05):
    return Estimate(value, value - reach, value + reach)


def reading(told, control=1.0, recovery=None, reach=0.05):
    recovered = None if recovery is None else near(recovery, reach)
    return Reading(near(told, reach), None if control is None else near(control), recovered)


def outcome(erased, base=None, oracle=None, **rest):
    readings = {"base": base or reading(1.0), "erased": erased} | ({"oracle": oracle} if oracle else {})
    return Outcome.judged("wording/x", "x", readings, data="held out", units=24, **rest)


@pytest.mark.parametrize(
    ("erased", "rest", "verdict"),
    [
        (reading(0.0, recovery=0.0), {}, ROBUST),
        (reading(0.6, recovery=0.6), {}, RECOVERED),
        (reading(0.6, recovery=0.0), {}, TOLD),
        (reading(0.0, recovery=0.0, reach=0.4), {}, UNSURE),
        (Reading(Estimate(0.0, math.nan, math.nan), near(1.0)), {}, UNSURE),
        (reading(0.6, recovery=0.6), {"oracle": reading(0.6)}, "no more than the oracle"),
        (reading(0.6, recovery=0.6), {"oracle": reading(0.1)}, RECOVERED),
        (reading(0.0, control=0.7, recovery=0.0), {}, NOT_JUDGED),
        (reading(0.0, control=None), {}, NOT_JUDGED),
        (reading(0.0), {"base": reading(0.1)}, NOT_JUDGED),
        (reading(0.0), {"base": reading(1.0, control=0.1)}, NOT_JUDGED),
        (reading(0.5), {"measure": "auc"}, ROBUST),
        (reading(0.9), {"measure": "auc"}, TOLD),
        (reading(0.2), {"measure": "auc"}, SHOWS),
        (reading(0.9, control=0.7), {"measure": "auc"}, NOT_JUDGED),
        (reading(0.9), {"measure": "auc", "needs_oracle": "who knows"}, NOT_JUDGED),
        (reading(0.9), {"measure": "auc", "needs_oracle": "", "oracle": reading(0.9)}, "no more than the oracle"),
        (reading(0.9), {"measure": "auc", "needs_oracle": "", "oracle": reading(0.6)}, TOLD),
    ],
)
def test_verdicts(erased, rest, verdict):
    found = outcome(erased, **rest)
    assert found.verdict == verdict and verdict in VERDICTS


def test_a_broken_model_is_never_robust():
    found = outcome(reading(0.0, control=0.0, recovery=0.0))
    assert found.verdict == NOT_JUDGED and "a broken model tells nothing" in found.why


def test_the_reason_holds_the_figure_it_rests_on():
    assert outcome(reading(0.6, recovery=0.6)).why == "+0.60 by the attack"
    assert "at most 0.05" in outcome(reading(0.0, recovery=0.0)).why
    assert outcome(reading(0.9), measure="auc", needs_oracle="who knows").why == "who knows"


def test_the_oracle_s_figure_is_taken_off_with_both_intervals():
    found = outcome(reading(0.6, recovery=0.6), oracle=reading(0.2))
    assert found.beyond_oracle.value == pytest.approx(0.4)
    assert found.beyond_oracle.low == pytest.approx(0.4 - math.hypot(0.05, 0.05))
    assert outcome(reading(0.6)).beyond_oracle is None and found.kind == "wording"
