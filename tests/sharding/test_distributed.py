"""What a process says, reads and gathers."""

import json
from collections.abc import Callable

import jax
import numpy as np
import pytest

from multistep_cm.errors import UserError
from multistep_cm.sharding import agreement
from multistep_cm.sharding.agreement import (
    check_same,
    gather_text,
    main_first,
    together,
)
from multistep_cm.sharding.distributed import say, to_host
from multistep_cm.sharding.mesh import batch_sharding, make_mesh


def test_a_cut_array_comes_whole(capsys: pytest.CaptureFixture[str]) -> None:
    mesh = make_mesh({"data": 2, "fsdp": 4, "tensor": 1})
    values = np.arange(16.0).reshape(8, 2)
    array = jax.device_put(values, batch_sharding(mesh))
    np.testing.assert_array_equal(to_host(array), values)
    say("hello")
    assert capsys.readouterr().out == "hello\n"


def test_alone_nothing_is_gathered_and_errors_pass_through() -> None:
    assert gather_text("what") == ["what"]
    assert together(lambda: 3) == 3
    assert main_first(lambda: [1]) == [1]
    check_same({"a": 1}, "never said")

    def fail() -> None:
        raise UserError("no")

    for way in (together, main_first):
        with pytest.raises(UserError, match=r"^no$"):
            way(fail)


@pytest.fixture
def three(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Pretend to be process 0 of three, of which the others say what is given."""

    def pretend(*others: str) -> None:
        monkeypatch.setattr(agreement, "has_others", lambda: True)
        monkeypatch.setattr(agreement, "gather_text", lambda text: [text, *others])

    return pretend


def test_an_error_elsewhere_is_an_error_here(three: Callable[..., None]) -> None:
    three("", "no such file")
    with pytest.raises(UserError, match=r"^process 2: no such file$"):
        together(lambda: 3)
    three("", "")
    assert together(lambda: 3) == 3


def test_the_first_difference_is_named(three: Callable[..., None]) -> None:
    values = {"a": 1, "b": "x"}
    same = json.dumps({"a": "1", "b": "'x'"})
    three(same, same)
    check_same(values, "mend it")
    three(same, json.dumps({"a": "1", "b": "'y'"}))
    with pytest.raises(UserError) as caught:
        check_same(values, "mend it")
    assert str(caught.value) == "b is 'x' in process 0 and 'y' in process 2: mend it"
    three(same, json.dumps({"a": "1"}))
    with pytest.raises(UserError, match="'x' in process 0 and absent in process 2"):
        check_same(values, "mend it")
