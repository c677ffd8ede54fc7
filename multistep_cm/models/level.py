"""Equal blocks one after another: what every network is made of."""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import flax.linen as nn
import jax

from multistep_cm.models.keeping import KEPT

REMAT_POLICIES: Mapping[str, Any] = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "partial": jax.checkpoint_policies.save_only_these_names(KEPT),
}
"""What a rematerialised block keeps for its backward pass: nothing but its input, or
also the results of its matrix products with weights (convolutions are not kept), or
what it names `KEPT`, so that norms, MLPs and scores of attention are computed again."""

Direction = Literal["down", "middle", "up"]
Ready = Callable[[Any], Any]
"""From a block's parameters as they are kept to those that it computes with."""

Condition = Any
"""What every block is told beside x; most blocks take a `layers.Condition`."""

Skips = Any  # one array with a leading axis (scanned), or a tuple of arrays


class Level(nn.Module):
    """Equal blocks one after another, as a scan over stacked parameters or unrolled.

    The blocks of an upward level run from the last to the first. `ready` is applied to
    the parameters of each block right before it runs. `is_unrolled` writes the rounds
    of a scan out: more to compile, but nothing goes into arrays of all blocks and back.
    """

    make_block: Callable[..., nn.Module]
    count: int
    direction: Direction
    remat: str
    scan: bool
    ready: Ready | None = None
    is_unrolled: bool = False

    @nn.compact
    def __call__(
        self, x: jax.Array, condition: Condition, skips: Skips = None
    ) -> tuple[jax.Array, Skips]:
        """Returns x after all blocks, and the skips when the direction is down."""
        is_up = self.direction == "up"

        def run(block: nn.Module, *inputs: Any) -> jax.Array:
            return block(*inputs)

        if self.ready is not None and not self.is_initializing():
            run = nn.map_variables(run, "params", self.ready)

        def body(
            block: nn.Module, x: jax.Array, condition: Condition, skip: Any
        ) -> tuple[jax.Array, jax.Array | None]:
            x = run(block, x, condition, skip)
            return x, x if self.direction == "down" else None

        loops = self.scan and not self.is_unrolled
        if self.remat != "none":
            policy = REMAT_POLICIES[self.remat]
            body = nn.remat(body, policy=policy, prevent_cse=not loops)
        if self.scan:
            scanned = nn.scan(
                body,
                variable_axes={"params": 0},
                split_rngs={"params": True, "dropout": True},
                in_axes=(nn.broadcast, 0 if is_up else nn.broadcast),
                length=self.count,
                unroll=self.count if self.is_unrolled else 1,
                reverse=is_up,
            )
            return scanned(self.make_block(name="blocks"), x, condition, skips)
        outputs = []
        for j in reversed(range(self.count)) if is_up else range(self.count):
            block = self.make_block(name=f"block_{j}")
            x, output = body(block, x, condition, skips[j] if is_up else None)
            outputs.append(output)
        return x, tuple(outputs) if self.direction == "down" else None
