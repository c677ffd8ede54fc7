"""A program under a mesh holds the form for its platform, others hold every form."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from multistep_cm.models.platforms import by_platform
from multistep_cm.sharding.mesh import make_mesh


def form(x: jax.Array) -> jax.Array:
    """Another function for each platform."""
    return by_platform(x, cpu=jnp.sin, tpu=jnp.tan, default=jnp.cos)


def mesh_of(platform: str) -> AbstractMesh:
    """A mesh of one device of this platform."""
    device = AbstractDevice(device_kind="any", num_cores=None, platform=platform)
    return AbstractMesh((1,), ("data",), (AxisType.Auto,), abstract_device=device)


@pytest.mark.parametrize(
    ("platform", "kept"), [("cpu", "sin"), ("tpu", "tan"), ("gpu", "cos")]
)
def test_only_the_platforms_own_form_is_traced(platform: str, kept: str) -> None:
    with jax.sharding.use_abstract_mesh(mesh_of(platform)):
        text = str(jax.make_jaxpr(form)(1.0))
    assert {name for name in ("sin", "tan", "cos") if f" {name} " in text} == {kept}


def test_without_a_mesh_every_form_is_traced() -> None:
    text = str(jax.make_jaxpr(form)(1.0))
    assert all(f" {name} " in text for name in ("sin", "tan", "cos"))


def test_both_ways_have_one_result() -> None:
    x, mesh = jnp.linspace(-1, 1, 5), make_mesh({"data": -1, "fsdp": 1, "tensor": 1})
    with jax.set_mesh(mesh):
        known = jax.jit(form)(x)
    assert (known == jnp.sin(x)).all()
    assert (jax.jit(form)(x) == jnp.sin(x)).all()
