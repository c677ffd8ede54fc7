"""What a bfloat16 network leaves in float32 products: next to nothing."""

from collections.abc import Iterator
from typing import Any

import jax
import pytest
from jax.extend.core import ClosedJaxpr, Jaxpr

from multistep_cm.planning.making import with_teacher
from multistep_cm.sharding.mesh import make_mesh
from multistep_cm.training import setup
from multistep_cm.training.compilation import abstract_frozen
from tests.training.tiny import tiny_config

BATCH = 6
"""No other size of the network."""
PRODUCTS = ("dot_general", "conv_general_dilated")


def products(jaxpr: Jaxpr) -> Iterator[tuple[Any, Any]]:
    """Both operands of every matrix product and convolution, in what it calls too."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in PRODUCTS:
            left, right = equation.invars
            yield left.aval, right.aval
        for value in equation.params.values():
            for part in value if isinstance(value, (tuple, list)) else (value,):
                if isinstance(part, ClosedJaxpr):
                    yield from products(part.jaxpr)
                elif isinstance(part, Jaxpr):
                    yield from products(part)


def large_float32_products(dtype: str, name: str) -> tuple[int, int]:
    """Of a CD step: products of two float32 arrays that are neither of one row for an
    image nor of the image's own channels; and products in all."""
    config = with_teacher(
        tiny_config(
            None,
            method="cd",
            model__name=name,
            model__dtype=dtype,
            model__channels=(16, 32),
            model__blocks=(1, 2),
            model__attention_resolutions=(4,),
            model__head_dim=16,
            training__batch_size=BATCH,
        )
    )
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        traced = jax.make_jaxpr(setup.make_step(config, mesh))(
            setup.abstract_state(config, mesh),
            setup.abstract_batch(config, mesh),
            abstract_frozen(config, mesh),
        )
    found = [*products(traced.jaxpr)]
    large = [
        (left, right)
        for left, right in found
        if left.dtype == right.dtype == "float32"
        and not (left.ndim == 2 and BATCH in left.shape)
        and config.data.channels
        not in (left.shape[-1], right.shape[-1], right.shape[-2])
    ]
    return len(large), len(found)


@pytest.mark.parametrize("name", ["unet", "uvit"])
def test_bfloat16_networks_multiply_in_bfloat16(name: str) -> None:
    large, all_products = large_float32_products("bfloat16", name)
    assert large == 0
    assert all_products > 100
    assert large_float32_products("float32", name)[0] > 50
