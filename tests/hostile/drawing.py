"""How many examples are drawn: few, so that all of these tests take seconds, unless the profile "long" is chosen."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

MANY = settings.get_current_profile_name() == "long"


def few(examples: int = 15) -> settings:
    """The settings of a test; its folder and its models are the same for all examples."""
    return settings(
        max_examples=2000 if MANY else examples,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
