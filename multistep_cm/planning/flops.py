"""Floating-point operations of the train step, counted by us, on its jaxpr.

Matrix products and convolutions only, 2 for each multiplication with its addition, as
papers count them: the rest is a few per cent and not what a TPU's peak is about. The
jaxpr is the program before XLA: of the whole global batch, loops with their lengths,
zeros of padding included (a 3x3 convolution costs 18 C_in C_out a pixel at edges too).
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import jax
from jax.interpreters import partial_eval

Jaxpr: TypeAlias = Any
"""A jaxpr; its type has moved between the versions of JAX."""


def count_flops(function: Any, *arguments: Any) -> int:
    """Of one call of a traceable function; arguments may be `ShapeDtypeStruct`s.

    What does not reach an output is not counted, because no compiler keeps it. Of the
    branches of a condition the dearest counts, of forms for platforms that for any; a
    loop of unknown length counts once.
    """
    closed = jax.make_jaxpr(function)(*arguments)
    live, _ = partial_eval.dce_jaxpr(closed.jaxpr, [True] * len(closed.out_avals))
    return jaxpr_flops(live)


def jaxpr_flops(jaxpr: Jaxpr) -> int:
    """The sum over equations, with those inside of them."""
    return sum(_equation_flops(equation) for equation in jaxpr.eqns)


def _equation_flops(equation: Any) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        return _dot_flops(equation)
    if name == "conv_general_dilated":
        return _convolution_flops(equation)
    inner = [jaxpr_flops(part) for part in _inner_jaxprs(params)]
    if name == "cond":
        # A form for one platform may compute something twice to be fast there.
        platforms = params.get("branches_platforms")
        if platforms and None in platforms:
            return inner[platforms.index(None)]
        return max(inner, default=0)
    if name == "scan":
        return int(params["length"]) * sum(inner)
    if name == "shard_map":
        return _num_parts(params) * sum(inner)
    return sum(inner)


def _dot_flops(equation: Any) -> int:
    """2 x outputs x contracted length."""
    left = equation.invars[0].aval.shape
    (contracted, _), _ = equation.params["dimension_numbers"]
    size = math.prod(equation.outvars[0].aval.shape)
    return 2 * size * math.prod(left[axis] for axis in contracted)


def _convolution_flops(equation: Any) -> int:
    """2 x outputs x window x input features of a group.

    An input that is dilated with zeros (the gradient of a strided convolution) is met
    by one of as many taps only.
    """
    kernel = equation.invars[1].aval.shape
    layout = equation.params["dimension_numbers"].rhs_spec  # (out, in, window ..)
    window = math.prod(kernel[axis] for axis in layout[2:])
    size = math.prod(equation.outvars[0].aval.shape)
    zeros = math.prod(equation.params["lhs_dilation"])
    return 2 * size * window * kernel[layout[1]] // zeros


def _inner_jaxprs(params: Mapping[str, Any]) -> Iterator[Jaxpr]:
    for value in params.values():
        for part in value if isinstance(value, tuple | list) else (value,):
            inner = getattr(part, "jaxpr", part)
            if hasattr(inner, "eqns"):
                yield inner


def _num_parts(params: Mapping[str, Any]) -> int:
    """Devices that run the body of a `shard_map`, whose shapes are of one part."""
    sizes = dict(params["mesh"].shape)
    axes = params.get("manual_axes") or sizes
    return math.prod(sizes[axis] for axis in axes)
