"""Bytes and JSON that were good and are not any more."""

import json
from typing import Any

from hypothesis import strategies as st

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.sampled_from([0, -1, 1, 2**31, 2**63, 10**30, 1e308, "nan", "inf", "-inf"]),
    st.text(max_size=8),
)
JSON = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=4,
)


@st.composite
def mutated(draw: st.DrawFn, whole: bytes) -> bytes:
    """One to three changes: bytes flipped, cut out, put in, moved or the rest lost."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(data)))
        kind = draw(st.sampled_from(["flip", "cut", "put", "end", "zero", "copy"]))
        length = draw(st.integers(1, 64))
        piece = data[start : start + length]
        if kind == "flip" and piece:
            data[start] ^= 1 << draw(st.integers(0, 7))
        elif kind == "cut":
            del data[start : start + length]
        elif kind == "put":
            data[start:start] = draw(st.binary(max_size=8))
        elif kind == "end":
            del data[start:]
        elif kind == "zero":
            data[start : start + length] = bytes(len(piece))
        else:
            target = draw(st.integers(0, len(data)))
            data[target : target + len(piece)] = piece
    return bytes(data)


@st.composite
def changed(draw: st.DrawFn, values: Any) -> Any:
    """JSON in which one value, somewhere, is another, or one key gone or come."""
    copy = json.loads(json.dumps(values))
    place = copy
    while True:
        keys = [*place] if isinstance(place, dict) else [*range(len(place))]
        if not keys:
            return copy
        key = draw(st.sampled_from(keys))
        inner = place[key]
        if isinstance(inner, (dict, list)) and inner and draw(st.integers(0, 3)):
            place = inner
            continue
        if isinstance(place, dict) and not draw(st.integers(0, 3)):
            if draw(st.booleans()):
                del place[key]
            else:
                place[draw(st.text(max_size=8))] = draw(JSON)
        else:
            place[key] = draw(JSON)
        return copy
