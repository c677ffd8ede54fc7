"""Overrides, arguments and JSON of configs that nobody wrote for us."""

import functools
import json
import math
from pathlib import Path
from typing import Any

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import ConfigDict

from multistep_cm import config as configs
from multistep_cm import validation
from multistep_cm.training.setup import check_config
from multistep_cm.values import LARGEST_INTEGER, LARGEST_NUMBER
from tests.fuzz.invariant import fewer, hypothesis_settings, refusal
from tests.training.tiny import tiny_config

ROOT = Path(__file__).parents[2]
DEFAULTS = configs.flatten(configs.default_config())
FILES = sorted((ROOT / "configs").glob("*.py"))

NUMBERS = st.one_of(
    st.integers(),
    st.sampled_from([0, 1, -1, 2, 3, 8, 16, 2**31 - 1, 2**31, 2**63, 10**400]),
    st.floats(),
    st.sampled_from([math.nan, math.inf, -math.inf, 1e38, 1e39, 1e-320, 5e-1]),
)
WORDS = st.one_of(
    st.sampled_from(["", "None", "True", "false", "()", "(", "1,,2", "__import__(1)"]),
    st.sampled_from(["cd", "ct", "heun", "mlp", "uvit", "~nobody/x", "a/b"]),
    st.text(max_size=30),
    st.sampled_from(["(" * 5000, "1" * 5000, "x" * 5000, "\0", "\udc80", "0x1f"]),
)
TEXTS = st.one_of(
    WORDS,
    NUMBERS.map(str),
    st.lists(NUMBERS, max_size=4).map(lambda items: str(tuple(items))),
    st.lists(NUMBERS, max_size=4).map(lambda items: ",".join(map(str, items))),
)
JSON_VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=10)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner)
    ),
    max_leaves=5,
)


def assert_typed(config: ConfigDict) -> None:
    """Every value is of its default's type, and a device can hold it."""
    flat = configs.flatten(config)
    assert flat.keys() == DEFAULTS.keys()
    for key, value in flat.items():
        assert type(value) is type(DEFAULTS[key]), key
        for item in value if isinstance(value, tuple) else (value,):
            if isinstance(item, int):
                assert abs(item) <= LARGEST_INTEGER + 1, key
            elif isinstance(item, float):
                assert abs(item) <= LARGEST_NUMBER, key


def assert_sound(config: ConfigDict) -> None:
    """What passes the checks survives a file, and the checks after it."""
    assert_typed(config)
    back = configs.from_json(configs.to_json(config), "origin")
    assert configs.flatten(back) == configs.flatten(config)
    if not refusal(lambda: validation.validate(config)):
        refusal(lambda: check_config(config, jax.devices()[:1]))


@given(
    st.dictionaries(
        st.one_of(st.sampled_from(sorted(DEFAULTS)), st.text(max_size=20)),
        TEXTS,
        min_size=1,
        max_size=3,
    )
)
@hypothesis_settings
def test_overrides(overrides: dict[str, str]) -> None:
    config = tiny_config()
    for key, text in overrides.items():
        said = refusal(functools.partial(configs.override, config, key, text))
        assert not said or f"config key {key!r}"[:60] in said or key in said
    assert_sound(config)


@pytest.mark.parametrize("method", ["denoising", "ct", "cd", "tract", "progressive"])
@given(st.data())
@fewer(4)
def test_each_key_alone_in_each_method(method: str, data: st.DataObject) -> None:
    """With a value of the right type, so that the checks behind the types are met."""
    config = tiny_config(method=method)
    key = data.draw(st.sampled_from(sorted(DEFAULTS)))
    default = DEFAULTS[key]
    numbers = st.integers(-3, 40) if isinstance(default, int) else NUMBERS
    text = data.draw(TEXTS if isinstance(default, (str, tuple)) else numbers.map(str))
    refusal(lambda: configs.override(config, key, text))
    assert_sound(config)


@given(
    st.dictionaries(
        st.one_of(st.sampled_from(sorted(DEFAULTS)), st.text(max_size=8)),
        JSON_VALUES,
        max_size=3,
    ),
    st.booleans(),
)
@hypothesis_settings
def test_json_with_other_values(values: dict[str, Any], is_nested: bool) -> None:
    stored: dict[str, Any] = {}
    for key, value in values.items():
        folder, dot, leaf = key.rpartition(".")
        if is_nested and dot:
            stored.setdefault(folder, {})[leaf] = value
        else:
            stored[key] = value
    found: list[ConfigDict] = []
    text = json.dumps(stored)
    said = refusal(lambda: found.append(configs.from_json(text, "some/config.json")))
    assert said.startswith("some/config.json") or found
    if found:
        assert_sound(found[0])


@given(st.data())
@hypothesis_settings
def test_a_config_file_that_is_damaged(tmp_path: Path, data: st.DataObject) -> None:
    whole = configs.to_json(tiny_config()).encode()
    start = data.draw(st.integers(0, len(whole)))
    stop = data.draw(st.integers(start, min(len(whole), start + 40)))
    put = data.draw(st.binary(max_size=12) | st.sampled_from([b"[" * 9999, b"9" * 999]))
    path = tmp_path / "config.json"
    path.write_bytes(whole[:start] + put + whole[stop:])
    found: list[ConfigDict] = []
    said = refusal(lambda: found.append(configs.load_config(str(path), {})))
    assert str(path) in said or found
    if found:
        assert_sound(found[0])


@given(st.text(max_size=20) | st.just("a" * 300) | st.just("/dev/null"), st.text())
@hypothesis_settings
def test_names_of_config_files(name: str, arguments: str) -> None:
    said = refusal(lambda: configs.load_config(f"{name}:{arguments}", {}))
    assert "--config" in said


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["stage", "steps", "size", "network", "folder", "name"])
            | st.sampled_from(["classes", "channels", "guidance"])
            | st.text(max_size=5),
            TEXTS | st.integers(0, 64).map(str),
        ),
        max_size=3,
    )
)
@fewer(2)
def test_arguments_of_config_files(file: Path, parts: list[tuple[str, str]]) -> None:
    arguments = ",".join(f"{name}={text}" for name, text in parts)
    found: list[ConfigDict] = []
    call = f"{file}:{arguments}"
    refusal(lambda: found.append(configs.load_config(call, {})))
    if found:
        assert_typed(found[0])
        if not refusal(lambda: validation.validate(found[0])):
            refusal(lambda: check_config(found[0], jax.devices()[:1]))
