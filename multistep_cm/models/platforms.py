"""Which form of a layer a program holds, by the platform that it is for."""

from collections.abc import Callable
from typing import Any

import jax


def by_platform(
    *operands: Any, default: Callable[..., Any], **forms: Callable[..., Any]
) -> Any:
    """The form for the platform, else `default`, of the operands.

    Under a mesh (`jax.sharding.use_abstract_mesh`) only the form of its platform is
    traced, which takes a third off the tracing of a network; elsewhere all are, and
    the compiler takes its own.
    """
    # None without a mesh, and from a JAX whose devices do not say it.
    device = jax.sharding.get_abstract_mesh().abstract_device
    platform = getattr(device, "platform", None)
    if platform is None:
        return jax.lax.platform_dependent(*operands, default=default, **forms)
    return forms.get(platform, default)(*operands)
