"""Configs: files, arguments, overrides, JSON, and what validation refuses."""

import json
from pathlib import Path
from typing import Any

import pytest
from ml_collections import ConfigDict

from multistep_cm.config import (
    default_config,
    differences,
    flatten,
    from_json,
    load_config,
    override,
    parse_arguments,
    to_json,
)
from multistep_cm.errors import UserError
from multistep_cm.validation import check_batch, validate
from tests.training.tiny import tiny_config


def write(folder: Path, text: str) -> str:
    path = folder / "config.py"
    path.write_text(text)
    return str(path)


GOOD = """
from multistep_cm.config import default_config, parse_arguments

def get_config(arguments):
    config = default_config()
    config.seed = parse_arguments(arguments, seed=3)["seed"]
    return config
"""


def test_a_file_with_arguments_and_overrides(tmp_path: Path) -> None:
    name = write(tmp_path, GOOD)
    config = load_config(f"{name}:seed=5", {"training.num_steps": "7"})
    assert (config.seed, config.training.num_steps) == (5, 7)
    assert load_config(name, {}).seed == 3
    assert load_config(f"{name}:seed=5", {"seed": "6"}).seed == 6
    with pytest.raises(AttributeError):
        config.training.num_stepz = 1  # locked


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def get_config(:", "does not load"),
        ("import no_such_module", "does not load: No module named 'no_such_module'"),
        ("x = undefined", "does not load"),
        ("x = 1", "defines no function get_config"),
        (GOOD.replace("config.seed", "config.sead"), "sead"),
        (GOOD.replace("return config", "config.seed = 'x'; return config"), "seed"),
        ("def get_config(arguments): return None", "returned None, expected"),
        (
            "from ml_collections import ConfigDict\n"
            "def get_config(arguments): return ConfigDict({'seed': 1})",
            "has no key 'checkpoint.every_steps': make it from default_config",
        ),
        (GOOD.replace('["seed"]', '["seed"] * 10**20'), "seed is 3000"),
        (
            GOOD.replace("return config", "config.data.name = None; return config"),
            "None",
        ),
        ("\0", "does not load"),
    ],
)
def test_a_file_that_does_not_load(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        load_config(write(tmp_path, text), {})
    assert "config.py" in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no file .*nothing.py"):
        load_config(f"{tmp_path}/nothing.py:a=1", {})
    for name in (str(tmp_path), "a" * 300, "a\0b.py", ""):
        with pytest.raises(UserError, match="there is no file"):
            load_config(name, {})
    with pytest.raises(UserError, match=r"config.json cannot be read: byte 0 of it"):
        (tmp_path / "config.json").write_bytes(b"\xff")
        load_config(f"{tmp_path}/config.json", {})
    text = tmp_path / "config.txt"
    text.write_text(GOOD)
    with pytest.raises(UserError, match="is not a Python file"):
        load_config(str(text), {})


def test_arguments_have_the_types_of_their_defaults() -> None:
    given = parse_arguments("a=2,c=x", a=1, b=0.5, c="y")
    assert given == {"a": 2, "b": 0.5, "c": "x"}
    assert parse_arguments("", a=1) == {"a": 1}
    assert parse_arguments("b=1", b=0.5) == {"b": 1.0}
    for wrong in ("d=1", "a", "a=1,,d=2"):
        with pytest.raises(UserError, match=r"is not known; expected some of a=1"):
            parse_arguments(wrong, a=1)
    with pytest.raises(UserError, match="argument a is 'x', expected an integer"):
        parse_arguments("a=x", a=1)


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("training.num_steps", "10", 10),
        ("training.num_steps", "1_000", 1000),
        ("training.learning_rate", "1", 1.0),
        ("training.learning_rate", "1e-4", 1e-4),
        ("data.flip", "True", True),
        ("data.flip", "true", True),
        ("data.flip", "false", False),
        ("data.name", "cifar10", "cifar10"),
        ("data.name", "12", "12"),
        ("data.label_key", "", ""),
        ("model.channels", "(8,16)", (8, 16)),
        ("model.channels", "[8, 16]", (8, 16)),
        ("model.channels", "8", (8,)),
        ("model.dropout_resolutions", "()", ()),
        ("mesh.data", "-1", -1),
    ],
)
def test_override(key: str, text: str, value: Any) -> None:
    config = default_config()
    override(config, key, text)
    held = flatten(config)[key]
    assert held == value
    assert type(held) is type(value)


@pytest.mark.parametrize(
    ("key", "text", "expected"),
    [
        ("training.num_steps", "1.5", "an integer"),
        ("training.num_steps", "ten", "an integer"),
        ("training.num_steps", "True", "an integer"),
        ("training.num_steps", "", "an integer"),
        ("training.learning_rate", "fast", "a number"),
        ("training.learning_rate", "(1,)", "a number"),
        ("data.flip", "1", "True or False"),
        ("model.channels", "'ab'", "a tuple of integers"),
        ("model.channels", "(1,'a')", "a tuple of integers"),
        ("seed", "__import__('os')", "an integer"),
    ],
)
def test_override_of_another_type(key: str, text: str, expected: str) -> None:
    config = default_config()
    with pytest.raises(UserError) as caught:
        override(config, key, text)
    message = str(caught.value)
    assert message.startswith(f"config key {key} is {text!r}, expected {expected}")
    assert flatten(config) == flatten(default_config())


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("training.learning_rat", "training.learning_rate"),
        ("training.steps", "training.num_steps"),
        ("consistency.huber_eps", "consistency.huber_epsilon"),
        ("sede", "seed"),
    ],
)
def test_an_unknown_key_names_the_nearest(key: str, nearest: str) -> None:
    with pytest.raises(UserError) as caught:
        override(default_config(), key, "1")
    expected = f"config key {key!r} does not exist; did you mean {nearest!r}?"
    assert str(caught.value) == expected


def test_a_group_of_keys_is_no_key() -> None:
    with pytest.raises(UserError, match="config key 'training' does not exist"):
        override(default_config(), "training", "1")


def test_json_keeps_every_value_and_its_type() -> None:
    config = tiny_config(
        model__channels=(8, 16, 32),
        model__dropout_resolutions=(),
        data__range=(0.0, 1.0),
        data__label_key="",
        training__epsilon=1e-12,
        consistency__teacher_steps_end=1e6,
    )
    back = from_json(to_json(config), "origin")
    before, after = flatten(config), flatten(back)
    assert before == after
    for key, value in before.items():
        assert type(after[key]) is type(value), key
    assert isinstance(back.model.channels, tuple)
    assert differences(config, back) == []
    assert to_json(back) == to_json(config)


def test_json_of_an_older_version_gets_defaults_for_new_keys() -> None:
    stored = json.loads(to_json(tiny_config(seed=7)))
    del stored["training"]["time_bins"]
    config = from_json(json.dumps(stored), "origin")
    assert config.seed == 7
    assert config.training.time_bins == default_config().training.time_bins


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[1]", "3", '{"seed": "x"}', '{"sede": 1}', '{"seed": null}'),
        *('{"seed": 1.0}', '{"seed": true}', '{"seed": -2147483649}', '{"seed": NaN}'),
        *('{"data": 3}', '{"data": {"name": 5}}', '{"data": {"directory": "\\u0000"}}'),
        "[" * 100_000,
        '{"seed": ' + "9" * 10_000 + "}",
        '{"a":' * 900 + "1" + "}" * 900,
    ],
)
def test_json_that_is_no_config(text: str) -> None:
    with pytest.raises(UserError, match=r"origin|seed"):
        from_json(text, "origin")


def test_differences_names_each_key_with_both_values() -> None:
    old = tiny_config(seed=1, training__num_steps=5, mesh__data=2)
    new = tiny_config(seed=1, training__num_steps=6, mesh__data=4)
    assert differences(old, new, ("mesh.",)) == ["training.num_steps: 5 -> 6"]


BAD: list[tuple[dict[str, Any], str]] = [
    ({"method": "cdd"}, "method is 'cdd', expected: denoising, guidance, cd"),
    ({"training__num_steps": 0}, "training.num_steps is 0, expected above 0"),
    ({"training__batch_size": -8}, "training.batch_size is -8, expected above 0"),
    ({"training__label_dropout": 1.0}, r"label_dropout is 1.0, expected in \[0, 1\)"),
    ({"training__warmup_steps": -1}, "warmup_steps is -1, expected at least 0"),
    ({"training__decay": "fast"}, "training.decay is 'fast'"),
    ({"training__learning_rate": float("nan")}, "learning_rate is nan"),
    ({"data__range": (1.0, -1.0)}, "data.range is"),
    ({"data__range": (1.0,)}, "data.range is"),
    ({"training__steps_per_call": 3}, "expected a multiple of .*steps_per_call = 3"),
    ({"model__name": "resnet"}, "model.name is 'resnet'"),
    ({"model__channels": (8, 8), "model__blocks": (1,)}, "2 and 1 entries"),
    (
        {"model__channels": (8,) * 5, "model__blocks": (1,) * 5},
        "image size 8 is not divisible by 16",
    ),
    (
        {"data__image_size": 7, "model__channels": (8, 8), "model__blocks": (1, 1)},
        "image size 7 is not divisible by 2",
    ),
    ({"method": "ct", "consistency__student_steps": 0}, "student_steps is 0, expected"),
    ({"method": "ct", "consistency__student_steps": -2}, "student_steps is -2"),
    (
        {"method": "ct", "consistency__student_steps": 8},
        "student_steps is 8, more than the 4 steps of the teacher's grid",
    ),
    (
        {"method": "ct", "consistency__teacher_steps_end": 1.0},
        "student_steps is 2, more than the 1 steps",
    ),
    ({"method": "ct", "consistency__multiscale": 4}, "consistency.multiscale is 4"),
    ({"method": "cd"}, "teacher.workdir is empty"),
    ({"sampling__method": "euler"}, "sampling.method is 'euler'"),
    ({"seed": -1}, "seed is -1, expected at least 0"),
    ({"training__learning_rate": 1e39}, "is 1e\\+39, expected a finite number"),
    ({"model__channels": (8.5,)}, "model.channels is .*, expected a tuple of integers"),
    ({"data__directory": "a" * 256}, "data.directory is .* longer than a name of 255"),
    ({"teacher__workdir": "a\0"}, "teacher.workdir is .* text without NUL"),
]


@pytest.mark.parametrize(("values", "said"), BAD)
def test_validation(values: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        validate(tiny_config(**values))
    assert len(str(caught.value).splitlines()) == 1


def test_what_is_sound_passes() -> None:
    validate(default_config())
    validate(tiny_config())
    validate(tiny_config(method="ct", consistency__student_steps=4))


def test_a_batch_must_divide() -> None:
    def config(size: int, parts: int) -> ConfigDict:
        return tiny_config(training__batch_size=size, training__accumulation=parts)

    check_batch(config(32, 2), data_parallel=8, num_processes=2)
    with pytest.raises(UserError, match=r"batch_size is 24, .* by 8 .* x 2 .* = 16"):
        check_batch(config(24, 2), data_parallel=8, num_processes=1)
    with pytest.raises(UserError, match=r"batch_size is 8, not divisible by 3 proc"):
        check_batch(config(8, 1), data_parallel=1, num_processes=3)
