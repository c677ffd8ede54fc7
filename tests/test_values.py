"""Types: what a text or a JSON value becomes, and what is refused."""

import math
from typing import Any

import pytest

from multistep_cm.errors import UserError
from multistep_cm.values import (
    LARGEST_INTEGER,
    LARGEST_NUMBER,
    check_value,
    parse_value,
)


@pytest.mark.parametrize(
    ("text", "default", "expected"),
    [
        ("3", 1, 3),
        (" 1_000 ", 1, 1000),
        ("0x10", 1, 16),
        (str(LARGEST_INTEGER), 1, LARGEST_INTEGER),
        ("3", 1.0, 3.0),
        ("1e-320", 1.0, 1e-320),
        ("3.4e38", 1.0, 3.4e38),
        ("TRUE", False, True),
        ("8", (1,), (8,)),
        ("8,16,", (1,), (8, 16)),
        ("[8, 16]", (1,), (8, 16)),
        ("()", (1,), ()),
        ("(0,1)", (0.5, 0.5), (0.0, 1.0)),
        ("0.9,1", (), (0.9, 1)),
        ("None", "", "None"),
    ],
)
def test_what_a_text_becomes(text: str, default: Any, expected: Any) -> None:
    found = parse_value("key", text, default)
    assert found == expected
    assert type(found) is type(expected)
    if isinstance(found, tuple) and isinstance(expected, tuple):
        assert [type(item) for item in found] == [type(item) for item in expected]


@pytest.mark.parametrize(
    ("text", "default", "expected"),
    [
        ("", 1, "an integer"),
        ("1.0", 1, "an integer"),
        (str(LARGEST_INTEGER + 1), 1, f"an integer of at most {LARGEST_INTEGER}"),
        ("nan", 1.0, "a finite number"),
        ("-inf", 1.0, "a finite number"),
        ("1e39", 1.0, "a finite number"),
        ("9" * 9999, 1.0, "a number"),
        ("yes", True, "True or False"),
        ("", (1,), "a tuple of integers"),
        ("1,,2", (1,), "a tuple of integers"),
        ("0.5", (1,), "a tuple of integers"),
        ("(1,(2,3))", (1,), "a tuple of integers"),
        ("0,nan", (0.0,), "a tuple of numbers"),
        (str(2**40), (), "a tuple of numbers"),
        ("a\0b", "", "text without NUL"),
    ],
)
def test_a_text_that_is_refused(text: str, default: Any, expected: str) -> None:
    with pytest.raises(UserError, match=r"^some key is ") as caught:
        parse_value("some key", text, default)
    assert f"expected {expected}" in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("value", "default"),
    [
        (True, 1),
        (True, 1.0),
        (1, True),
        (1.0, 1),
        (None, ""),
        (5, ""),
        (None, 1),
        ({}, ()),
        ("ab", (1,)),
        ([True], (1,)),
        (math.nan, 1.0),
        (10**400, 1.0),
        (-LARGEST_INTEGER - 2, 1),
        (2 * LARGEST_NUMBER, 1.0),
    ],
)
def test_a_value_of_another_type(value: Any, default: Any) -> None:
    with pytest.raises(UserError, match="key is "):
        check_value("key", value, default)


def test_python_is_not_asked() -> None:
    """Its parser would be deep in brackets, and warn of escapes and of `1if`."""
    for text in ("(" * 100_000, "1if 1else 2", "'\\d'", "[" * 5000 + "]" * 5000):
        for default in (1, 1.0, (1,), True):
            with pytest.raises(UserError):
                parse_value("key", text, default)
