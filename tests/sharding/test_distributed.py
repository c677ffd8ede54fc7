"""Stop requests, and what a process says and reads."""

import os
import signal
import threading

import jax
import numpy as np
import pytest

from multistep_cm.sharding.distributed import say, stop_requests, to_host
from multistep_cm.sharding.mesh import batch_sharding, make_mesh


def test_sigterm_becomes_a_question_and_its_handler_comes_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with stop_requests() as requested:
        assert not requested()
        os.kill(os.getpid(), signal.SIGTERM)
        assert requested()
        assert requested()
    assert signal.getsignal(signal.SIGTERM) is before


def test_each_use_starts_unasked() -> None:
    with stop_requests():
        os.kill(os.getpid(), signal.SIGTERM)
    with stop_requests() as requested:
        assert not requested()


def test_in_a_thread_the_answer_is_no() -> None:
    answers = []

    def work() -> None:
        with stop_requests() as requested:
            answers.append(requested())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert answers == [False]


def test_a_cut_array_comes_whole(capsys: pytest.CaptureFixture[str]) -> None:
    mesh = make_mesh({"data": 2, "fsdp": 4, "tensor": 1})
    values = np.arange(16.0).reshape(8, 2)
    array = jax.device_put(values, batch_sharding(mesh))
    np.testing.assert_array_equal(to_host(array), values)
    say("hello")
    assert capsys.readouterr().out == "hello\n"
