"""What a mixture refuses, each in one sentence."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from multistep_cm.truth import making

HALVES = [0.5, 0.5]
MEANS = [[0.0, 0.0], [1.0, 1.0]]
SKEW = np.array([[0.0, 0.1], [0.0, 0.0]])
EYES = np.stack([np.eye(2)] * 2)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: making.full([0.5, 0.6], MEANS, EYES), "sum 1.1 .* expected sum 1"),
        (lambda: making.full([1.5, -0.5], MEANS, EYES), "minimum -0.5, expected"),
        (lambda: making.full([np.nan, 1], MEANS, EYES), "weights have the sum nan"),
        (lambda: making.full([1.0], MEANS, EYES), r"weights have shape \(1,\)"),
        (lambda: making.full(HALVES, [0.0, 1.0], EYES), r"means have shape \(2,\)"),
        (lambda: making.full(HALVES, MEANS, EYES[:, :1]), r"expected \(2, 2, 2\)"),
        (lambda: making.full(HALVES, MEANS, -EYES), "covariance 0 has the eigenvalue"),
        (
            lambda: making.full(HALVES, MEANS, [np.eye(2), np.ones((2, 2))]),
            "covariance 1 has the eigenvalue",
        ),
        (
            lambda: making.full(HALVES, MEANS, EYES + SKEW),
            "not symmetric",
        ),
        (
            lambda: making.low_rank(HALVES, MEANS, np.ones((2, 3, 1)), 0.1),
            r"factors have shape \(2, 3, 1\), expected \(2, 2, rank\)",
        ),
        (
            lambda: making.low_rank(HALVES, MEANS, np.ones((2, 2, 3)), 0.1),
            "rank of at most 2",
        ),
        (
            lambda: making.low_rank(HALVES, MEANS, np.ones((2, 2, 1)), [0.1, 0.0]),
            "noise variance of component 1 is 0, expected a positive",
        ),
        (
            lambda: making.low_rank(HALVES, MEANS, np.ones((2, 2, 1)), [0.1]),
            r"noise has shape \(1,\)",
        ),
        (lambda: making.isotropic(HALVES, MEANS, -0.1), "deviation 0 is -0.1"),
        (lambda: making.isotropic(HALVES, [0.0, 1.0], 0.1), "means have shape"),
        (
            lambda: making.full(HALVES, MEANS, EYES, "float64"),
            "float64 is disabled in jax: set JAX_ENABLE_X64=1",
        ),
        (lambda: making.full(HALVES, MEANS, EYES, "float16"), "dtype is 'float16'"),
    ],
)
def test_bad_input(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_dtype(x64: None) -> None:
    assert making.full(HALVES, MEANS, EYES, "float64").means.dtype == jnp.float64
    assert making.full(HALVES, MEANS, EYES, "float32").means.dtype == jnp.float32


def test_a_component_of_weight_zero_is_allowed() -> None:
    mixture = making.isotropic([1.0, 0.0], MEANS, 0.1)
    assert float(mixture.log_weights[1]) == -np.inf
