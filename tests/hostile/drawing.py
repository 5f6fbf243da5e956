"""What is drawn, and how much: few examples, so that all of these tests take seconds, unless the profile is "long"."""

from __future__ import annotations

import copy
import json
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

MANY = settings.get_current_profile_name() == "long"

ODD: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    2**70,
    10**400,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "x",
    "../../etc/passwd",
    "/etc/passwd",
    "{{ 7 * 7 }}{% include 'x' %}",
    "\x1b[2J\x00\ud800",
    "a\n---\nb: [`|<script>",
    "(a+)+$",
    [],
    [None],
    [[]],
    {},
    {"a": {}},
    ["x"] * 50,
)


_RUNS = (b"\xff" * 8, b"\x00" * 8, b"\x80" + b"\xff" * 7, b"9" * 12)


def few(examples: int = 15) -> settings:
    """The settings of a test; its folder and its models are the same for all examples."""
    return settings(
        max_examples=2000 if MANY else examples,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


def places(value: Any, at: tuple = ()) -> list[tuple]:
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(place for key, entry in inside for place in places(entry, (*at, key)))]


@st.composite
def changed_json(draw, data: bytes, keys: tuple[str, ...] = ()) -> bytes:
    """JSON with a few entries replaced by odd ones, or taken out, or with entries under some of `keys` put in."""
    value = json.loads(data)
    odd = st.sampled_from(ODD) | st.recursive(
        st.none() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=4,
    )
    for _ in range(draw(st.integers(1, 3))):
        found = places(value)[1:]
        if not found:
            break
        *path, last = draw(st.sampled_from(found))
        parent = value
        for key in path:
            parent = parent[key]
        if isinstance(parent, dict) and draw(st.booleans()):
            last = draw(st.sampled_from([*keys, last])) if not path else last
        if draw(st.integers(0, 4)):
            parent[last] = copy.deepcopy(draw(odd))
        elif not isinstance(parent, list) or last < len(parent):
            parent.pop(last, None) if isinstance(parent, dict) else parent.pop(last)
    return json.dumps(value).encode()


@st.composite
def changed_bytes(draw, data: bytes) -> bytes:
    """Bytes with some written over, put in or cut off."""
    changed = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(changed)))
        some = draw(st.binary(max_size=8) | st.sampled_from(_RUNS))
        kind = draw(st.integers(0, 3))
        if kind == 0:
            del changed[at:]
        elif kind == 1:
            changed[at:at] = some
        else:
            changed[at : at + len(some)] = some
    return bytes(changed)
