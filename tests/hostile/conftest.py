"""`pytest tests/hostile --hypothesis-profile=long` draws many examples of each property."""

from hypothesis import settings

settings.register_profile("long", max_examples=2000)
