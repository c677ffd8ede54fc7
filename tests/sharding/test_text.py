"""A student that reads captions and its scale, on one device and cut over eight."""

import jax
import numpy as np
import pytest

from multistep_cm.sharding import rules
from multistep_cm.sharding.mesh import make_mesh
from multistep_cm.training import setup
from multistep_cm.training.teacher import teacher_config
from tests.training.test_text import text_config
from tests.training.tiny import noisy_params, random_batch


def losses(sizes: tuple[int, int, int]) -> list[float]:
    """Of three steps of CD on a mesh of (data, fsdp, tensor)."""
    data, fsdp, tensor = sizes
    config = text_config(
        method="cd",
        model__blocks=(1,),
        consistency__guidance_range=(0.0, 3.0),
        mesh__data=data,
        mesh__fsdp=fsdp,
        mesh__tensor=tensor,
        training__warmup_steps=0,
        training__decay="constant",
        training__epsilon=1e-3,
    )
    mesh = make_mesh(config.mesh, jax.devices()[: data * fsdp * tensor])
    teacher = noisy_params(teacher_config(config), mesh, seed=1)
    state = setup.init_state(config, mesh, teacher)
    frozen = setup.freeze(config, mesh, teacher)
    compiled = setup.build_step(config, mesh, frozen)
    like = setup.abstract_batch(config, mesh)
    found = []
    for step in range(3):
        rng = np.random.default_rng(step)
        batch = random_batch(config, seed=step)
        batch["text"] = rng.integers(256, size=like["text"].shape, dtype=np.uint8)
        batch["text_mask"] = rng.random(like["text"].shape) < 0.5
        placed = {k: jax.device_put(batch[k], like[k].sharding) for k in like}
        state, metrics = compiled(state, placed, frozen)
        found.append(float(metrics["loss"]))
    return found


@pytest.mark.slow
def test_captions_train_the_same_on_every_mesh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "SMALLEST_CUT", 128)
    one = losses((1, 1, 1))
    assert len(set(one)) == 3
    np.testing.assert_allclose(losses((2, 2, 2)), one, rtol=2e-5)
