"""Our own train step, as `multistep-cm train` compiles it."""

import importlib.metadata
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from benchmarks.train_step.work import Side, Work
from multistep_cm.config import default_config
from multistep_cm.models.build import count_parameters
from multistep_cm.sharding.mesh import make_mesh
from multistep_cm.training import setup
from multistep_cm.training.speed import flops_per_image

WIDTHS = {"unet": (64, 128, 128), "uvit": (64, 256)}
LIBRARIES = ("jax", "jaxlib")
BLOCKS = {"unet": (4, 5, 6), "uvit": (2, 5)}
"""The UNet has about as many FLOPs as the peers': their skips are joined by wider
blocks, ours are added, so that it is deeper. The table says how many."""


def make_side(work: Work, path: str) -> Side:
    """Compile the step of this work, for one device."""
    config = make_config(work)
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    state = setup.init_state(config, mesh, None)
    parameters = count_parameters(state.params)
    teacher = jax.tree.map(jnp.copy, state.params)
    frozen = setup.freeze(config, mesh, teacher)
    start = time.perf_counter()
    compiled = setup.build_step(config, mesh, frozen)
    seconds = time.perf_counter() - start
    like = setup.abstract_batch(config, mesh)
    pixels = np.random.default_rng(0).integers(256, size=like["image"].shape)
    batch = {
        "image": jax.device_put(pixels.astype(np.uint8), like["image"].sharding),
        "label": jax.device_put(np.zeros(work.batch, np.int32), like["label"].sharding),
    }
    states = [state]
    del state

    def step() -> None:
        new, metrics = compiled(states.pop(), batch, frozen)
        states.append(jax.block_until_ready(new))
        jax.block_until_ready(metrics)

    costs = compiled.cost_analysis() or {}
    device = jax.devices()[0]
    facts = {
        "versions": {
            "jax": jax.__version__,
            "jaxlib": importlib.metadata.version("jaxlib"),
        },
        "device": device.device_kind,
        "compile_seconds": seconds,
        "flops": flops_per_image(config, mesh) * work.batch,
        "compiler_flops": costs.get("flops"),
        "peak_flops": product_peak(),
    }
    return Side(step, parameters, facts)


def make_config(work: Work) -> ConfigDict:
    """The config of this work: our defaults, at this shape, and the faster loop."""
    config = default_config()
    config.method = "ct" if work.method == "ct" else "cd"
    values: dict[str, Any] = {
        "data.image_size": work.size,
        "data.channels": 3,
        "data.num_classes": 0,
        "model.name": work.model,
        "model.channels": WIDTHS[work.model],
        "model.blocks": BLOCKS[work.model],
        "model.attention_resolutions": (16,),
        # Of the U-ViT 3 to 5 % of a step would go into the loop's stacks of results.
        "model.scan_blocks": work.model == "unet",
        "training.batch_size": work.batch,
    }
    if work.method == "heun":
        values["consistency.hop"] = "heun"
    config.update_from_flattened_dict(values)
    return config


def product_peak(size: int = 2048, repeats: int = 5) -> float:
    """FLOP/s and CPU-second of the fastest of some float32 matrix products."""
    a = jnp.ones((size, size), jnp.float32)
    multiply = jax.jit(jnp.matmul).lower(a, a).compile()
    jax.block_until_ready(multiply(a, a))
    fastest = float("inf")
    for _ in range(repeats):
        start = time.process_time()
        jax.block_until_ready(multiply(a, a))
        fastest = min(fastest, time.process_time() - start)
    return 2 * size**3 / fastest
