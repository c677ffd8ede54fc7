"""The seam of every training method."""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax

from multistep_cm.diffusion.parameterization import Conditioning

Params: TypeAlias = Any
"""A pytree of network parameters."""

Batch: TypeAlias = Mapping[str, Any]
"""`{"image": float32 [batch, height, width, channels], "cond": Conditioning}`."""

Metrics: TypeAlias = dict[str, jax.Array]
"""Arrays with a leading batch axis, among them `t` and `loss`."""

Predict: TypeAlias = Callable[
    [Params, jax.Array, jax.Array, Conditioning, jax.Array | None], jax.Array
]
"""`(params, z_t, t [batch], cond, dropout_key or None) -> x_hat`.

A Denoiser that is still waiting for its parameters; None runs without dropout."""

Loss: TypeAlias = Callable[
    [Params, Batch, jax.Array, jax.Array, Any], tuple[jax.Array, Metrics]
]
"""`(params, batch, keys [batch], step, frozen) -> (loss, metrics)`.

`keys` holds one random key for every example, so that a loss does not depend on how
the batch is cut. `frozen` is whatever the method reads and never trains, such as the
teacher's parameters. The loss is the mean over the batch, float32."""
