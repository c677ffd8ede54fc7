"""Text and JSON read into the type of a default: the one place where types are checked.

Python is not asked what a text means: it would run what stands there, or take for ever
over it. A number here is what a device can hold: integers of 32 bits, and finite
numbers that are finite in float32 too.
"""

from typing import Any

from multistep_cm.errors import UserError

LARGEST_INTEGER = 2**31 - 1
LARGEST_NUMBER = (2 - 2**-23) * 2.0**127
LONGEST_NUMBER = 40
"""Characters of one number; Python refuses or dawdles over thousands of them."""

Value = bool | int | float | str | tuple[float, ...]


def parse_value(what: str, text: str, default: Value) -> Value:
    """`text`, as a user wrote it, as a value of the default's type.

    Booleans are true and false in any case; a tuple is `(8,16)`, `[8,16]`, `8,16` or a
    single number. Raises UserError, in which `what` names the key.
    """
    if isinstance(default, str):
        value: Any = text
    elif isinstance(default, bool):
        value = {"true": True, "false": False}.get(text.strip().lower(), text)
    elif isinstance(default, tuple):
        value = _parse_tuple(text, default)
    else:
        value = _parse_number(text, default)
    return check_value(what, value, default)


def check_value(what: str, value: Any, default: Value) -> Value:
    """`value` if it is of the default's type and a device can hold it.

    An integer is also a number, a list also a tuple, a number also a tuple of one. What
    is in a tuple has the type of the default's first; where that is empty, any
    number is right. Raises UserError, in which `what` names the key.
    """
    if isinstance(default, tuple):
        held = _as_tuple(value)
        if held is not None and all(
            _fits(item, isinstance((default or (item,))[0], int)) for item in held
        ):
            to_float = default and isinstance(default[0], float)
            return tuple(map(float, held)) if to_float else held
    elif isinstance(default, bool):
        if isinstance(value, bool):
            return value
    elif isinstance(default, str):
        if isinstance(value, str) and "\0" not in value:
            return value
    elif _fits(value, isinstance(default, int)):
        return value if isinstance(default, int) else float(value)
    raise UserError(
        f"{what} is {value!r:.200}, expected {_expected(value, default)} (like "
        f"{default!r})"
    )


def _parse_number(text: str, like: float) -> Any:
    """A number, or the text itself where it is none."""
    if len(text) > LONGEST_NUMBER:
        return text
    try:
        return int(text, 0) if isinstance(like, int) else float(text)
    except ValueError:
        return text


def _parse_tuple(text: str, default: tuple[float, ...]) -> Any:
    inner = text.strip()
    if inner[:1] + inner[-1:] in ("()", "[]"):
        inner = inner[1:-1].strip()
    if not inner:
        # Nothing is no tuple: it is what an unset variable of a shell gives.
        return () if text.strip() else text
    parts = [_parse_any(part, default) for part in inner.removesuffix(",").split(",")]
    return text if any(isinstance(part, str) for part in parts) else tuple(parts)


def _parse_any(text: str, default: tuple[float, ...]) -> Any:
    """An integer where it looks like one, or a number, or the text."""
    whole = _parse_number(text, 0)
    return _parse_number(text, 0.0) if isinstance(whole, str) else whole


def _as_tuple(value: Any) -> tuple[Any, ...] | None:
    if isinstance(value, (tuple, list)):
        return tuple(value)
    return (value,) if isinstance(value, (int, float)) else None


def _fits(value: Any, whole: bool) -> bool:
    """Whether it is a number of the kind, and a device can hold it."""
    if isinstance(value, bool):
        return False
    if isinstance(value, int) and whole:
        return -LARGEST_INTEGER - 1 <= value <= LARGEST_INTEGER
    return (
        not whole
        and isinstance(value, (int, float))
        and abs(value) <= LARGEST_NUMBER  # of NaN too this is not so
    )


def _expected(value: Any, default: Value) -> str:
    if isinstance(default, bool):
        return "True or False"
    if isinstance(default, str):
        return "text without NUL" if isinstance(value, str) else "text"
    if isinstance(default, tuple):
        whole = bool(default) and isinstance(default[0], int)
        return "a tuple of integers" if whole else "a tuple of numbers"
    if isinstance(default, int):
        if isinstance(value, int) and not isinstance(value, bool):
            return f"an integer of at most {LARGEST_INTEGER} in size"
        return "an integer"
    return "a finite number" if isinstance(value, (int, float)) else "a number"
