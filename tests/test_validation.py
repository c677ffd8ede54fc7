"""Every entry of validation's tables refuses what it is there for."""

from typing import Any

import pytest
from ml_collections import ConfigDict

from multistep_cm.config import default_config, flatten
from multistep_cm.errors import UserError
from multistep_cm.validation import (
    CHOICES,
    FRACTIONS,
    NOT_NEGATIVE,
    POSITIVE,
    validate,
)


def config_with(values: dict[str, Any]) -> ConfigDict:
    """The default config with values by dotted key, in the types of the defaults."""
    config = default_config()
    flat = flatten(config)
    typed = {
        key: float(value) if isinstance(flat[key], float) else value
        for key, value in values.items()
    }
    config.update_from_flattened_dict(typed)
    return config


def said(config: ConfigDict) -> str:
    """The one sentence that `validate` complains with."""
    with pytest.raises(UserError) as caught:
        validate(config)
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    return text


@pytest.mark.parametrize("key", CHOICES)
def test_an_unknown_choice_lists_the_others(key: str) -> None:
    message = said(config_with({key: "nonsense"}))
    assert f"{key} is 'nonsense'" in message
    for choice in CHOICES[key]:
        assert choice in message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *((key, value) for key in POSITIVE for value in (0, -3)),
        *((key, -1) for key in NOT_NEGATIVE),
        *((key, value) for key in FRACTIONS for value in (1.0, -0.1)),
        ("sampling.guidance_scale", float("nan")),
    ],
)
def test_a_number_out_of_its_range_is_named(key: str, value: float) -> None:
    config = config_with({key: value})
    message = said(config)
    assert f"{key} is {flatten(config)[key]}, expected" in message


def test_the_tables_name_keys_that_exist_once() -> None:
    keys = [*CHOICES, *POSITIVE, *NOT_NEGATIVE, *FRACTIONS]
    assert len(keys) == len(set(keys))
    assert set(keys) <= flatten(default_config()).keys()


@pytest.mark.parametrize(
    "key",
    [
        "training.num_steps",
        "training.log_every",
        "checkpoint.every_steps",
        "sampling.every_steps",
    ],
)
def test_intervals_are_multiples_of_a_call(key: str) -> None:
    sound = {
        "training.num_steps": 80,
        "training.log_every": 8,
        "checkpoint.every_steps": 40,
        "training.steps_per_call": 8,
    }
    validate(config_with(sound))
    message = said(config_with(sound | {key: 12}))
    assert f"{key} is 12" in message
    assert "training.steps_per_call = 8" in message


def test_a_grid_that_shrinks_counts_where_it_is_smallest() -> None:
    values = {
        "method": "ct",
        "consistency.student_steps": 8,
        "consistency.teacher_steps_start": 64,
        "consistency.teacher_steps_end": 8,
    }
    validate(config_with(values))
    message = said(config_with(values | {"consistency.student_steps": 9}))
    assert "student_steps is 9, more than the 8 steps" in message


@pytest.mark.parametrize("section", ["sampling", "consistency"])
@pytest.mark.parametrize("interval", [(0.5, 0.5), (0.8, 0.2), (-0.1, 1.0), (0.0, 1.1)])
def test_guided_times_are_an_interval(
    section: str, interval: tuple[float, float]
) -> None:
    key = f"{section}.guidance_interval"
    message = said(config_with({key: interval}))
    assert f"{key} is {interval}, expected (low, high)" in message
    validate(config_with({key: (0.2, 0.8)}))


@pytest.mark.parametrize("interval", [(0.5,), (0.1, 0.2, 0.3)])
def test_an_interval_has_two_ends(interval: tuple[float, ...]) -> None:
    message = said(config_with({"sampling.guidance_interval": interval}))
    assert "expected (low, high)" in message


GUIDED = {"consistency.guidance_scale": 1.0, "teacher.workdir": "some"}


def test_only_cd_guides_its_teacher() -> None:
    validate(config_with({**GUIDED, "method": "cd"}))
    for method in ("denoising", "ct", "progressive", "tract"):
        message = said(config_with({**GUIDED, "method": method}))
        assert f"method {method} guides no teacher" in message


def test_a_teacher_is_guided_to_classes() -> None:
    unconditional = {"method": "cd", "data.num_classes": 0, "data.label_key": ""}
    validate(config_with({**unconditional, "teacher.workdir": "some"}))
    assert "no classes or captions to guide to" in said(
        config_with({**GUIDED, **unconditional})
    )
