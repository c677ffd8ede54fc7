"""Classifier-free guidance, everywhere and within an interval."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multistep_cm.diffusion import guidance
from multistep_cm.diffusion.guidance import Guidance
from multistep_cm.diffusion.parameterization import Conditioning
from multistep_cm.sharding.mesh import batch_sharding, make_mesh

NULL = 3
MEANS = jnp.array([1.0, 2.0, 4.0, 10.0])


def denoise(z_t: jax.Array, t: jax.Array, cond: Conditioning) -> jax.Array:
    return z_t * t[:, None] + MEANS[cond["label"]][:, None]


def test_extrapolates_from_the_unconditional() -> None:
    z_t = jnp.arange(6.0).reshape(3, 2)
    t = jnp.array([0.1, 0.5, 1.0])
    label = jnp.array([0, 1, 2])
    guided = guidance.guided_denoiser(denoise, 1.5, NULL)
    found = guided(z_t, t, {"label": label})
    expected = z_t * t[:, None] + (2.5 * MEANS[label] - 1.5 * MEANS[NULL])[:, None]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_scale_zero_is_the_denoiser_itself() -> None:
    assert guidance.guided_denoiser(denoise, 0.0, NULL, (0.2, 0.3)) is denoise


def test_null_label_is_left_alone() -> None:
    z_t, t = jnp.ones((2, 2)), jnp.array([0.2, 0.7])
    cond = {"label": jnp.array([NULL, NULL])}
    found = guidance.guided_denoiser(denoise, 4.0, NULL)(z_t, t, cond)
    np.testing.assert_allclose(found, denoise(z_t, t, cond), rtol=1e-6)


class Recorder:
    """`denoise`, which remembers the labels and texts that it was called with."""

    def __init__(self) -> None:
        self.calls: list[Conditioning] = []

    def __call__(self, z_t: jax.Array, t: jax.Array, cond: Conditioning) -> jax.Array:
        self.calls.append(cond)
        return denoise(z_t, t, cond)


def test_one_network_call_with_the_other_conditioning_kept() -> None:
    record = Recorder()
    guided = guidance.guided_denoiser(record, 2.0, NULL)
    cond = {"label": jnp.array([0, 1]), "text": jnp.array([7.0, 8.0])}
    assert guided(jnp.ones((2, 2)), jnp.ones(2), cond).shape == (2, 2)
    assert len(record.calls) == 1
    np.testing.assert_array_equal(record.calls[0]["label"], [0, NULL, 1, NULL])
    np.testing.assert_array_equal(record.calls[0]["text"], [7, 7, 8, 8])


def test_needs_a_label() -> None:
    guided = guidance.guided_denoiser(denoise, 1.0, NULL)
    with pytest.raises(ValueError, match="guidance needs a label"):
        guided(jnp.ones((2, 2)), jnp.ones(2), {})


def test_pairs_are_with_the_label_and_without() -> None:
    z_t = jnp.arange(12.0).reshape(3, 2, 2)
    t, label = jnp.array([0.1, 0.5, 1.0]), jnp.array([0, 1, NULL])

    def images(z_t: jax.Array, t: jax.Array, cond: Conditioning) -> jax.Array:
        return z_t * (t + MEANS[cond["label"]])[:, None, None]

    pair = guidance.predict_pair(images, Guidance(1.0, NULL), z_t, t, {"label": label})
    np.testing.assert_array_equal(pair[0], images(z_t, t, {"label": label}))
    null = {"label": jnp.full(3, NULL)}
    np.testing.assert_array_equal(pair[1], images(z_t, t, null))


def test_the_interval_is_of_each_example_and_holds_its_ends() -> None:
    t = jnp.array([0.0, 0.25, 0.5, 0.75, 1.0])
    label = jnp.array([0, 1, 2, 0, 1])
    z_t, cond = jnp.ones((5, 2)), {"label": label}
    some = Guidance(2.0, NULL, (0.25, 0.75))
    unguided, guided = guidance.predict_guided(denoise, some, z_t, t, cond)
    everywhere = guidance.guided_denoiser(denoise, 2.0, NULL)(z_t, t, cond)
    np.testing.assert_array_equal(unguided, denoise(z_t, t, cond))
    np.testing.assert_array_equal(guided[1:4], everywhere[1:4])
    np.testing.assert_array_equal(guided[::4], unguided[::4])
    assert (everywhere != unguided).all()


@pytest.mark.parametrize(("t", "inside"), [(0.6, True), (0.61, False), (0.1, False)])
def test_no_pair_is_made_outside_of_the_interval(t: float, inside: bool) -> None:
    """The network's batch is doubled within the interval only."""

    def batch_size(z_t: jax.Array, t: jax.Array, cond: Conditioning) -> jax.Array:
        return jnp.full_like(z_t, z_t.shape[0])

    some = guidance.guided_denoiser(batch_size, 1.0, NULL, (0.2, 0.6))
    cond = {"label": jnp.arange(3)}
    found = jax.jit(some)(jnp.ones((3, 2)), jnp.full(3, t), cond)
    np.testing.assert_array_equal(found, 6 if inside else 3)


def test_pairs_move_nothing_between_devices() -> None:
    """Whole batches behind each other would: this is why they are interleaved."""
    mesh = make_mesh({"data": 8, "fsdp": 1, "tensor": 1})
    split = batch_sharding(mesh)
    shapes = (
        jax.ShapeDtypeStruct((16, 4), jnp.float32, sharding=split),
        jax.ShapeDtypeStruct((16,), jnp.float32, sharding=split),
        jax.ShapeDtypeStruct((16,), jnp.int32, sharding=split),
    )

    def collectives(function: Any) -> set[str]:
        jitted = jax.jit(function, out_shardings=split)
        text = jitted.lower(*shapes).compile().as_text() or ""
        names = "all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter"
        return set(re.findall(rf" ({names})[.\w-]*\(", text))

    def interleaved(z_t: jax.Array, t: jax.Array, label: jax.Array) -> jax.Array:
        guided = guidance.guided_denoiser(denoise, 2.0, NULL)
        return guided(z_t, t, {"label": label})

    def behind(z_t: jax.Array, t: jax.Array, label: jax.Array) -> jax.Array:
        labels = jnp.concatenate([label, jnp.full_like(label, NULL)])
        z_both, t_both = jnp.concatenate([z_t, z_t]), jnp.concatenate([t, t])
        x, x_null = jnp.split(denoise(z_both, t_both, {"label": labels}), 2)
        return guidance.guided(x, x_null, 2.0)

    assert collectives(interleaved) == set()
    assert collectives(behind)  # so the test can tell


def captioned(z_t: jax.Array, t: jax.Array, cond: Conditioning) -> jax.Array:
    """Sees how much of its caption is not masked, and must not be told the scale."""
    assert "guidance" not in cond
    seen = jnp.where(cond["text_mask"], cond["text"], 0).sum(1)
    return z_t * t[:, None] + seen[:, None]


def test_captions_are_guided_away_from_none() -> None:
    z_t, t = jnp.ones((2, 3)), jnp.array([0.2, 0.7])
    cond = {
        "text": jnp.array([[1.0, 2.0], [4.0, 8.0]]),
        "text_mask": jnp.array([[True, False], [True, True]]),
    }
    found = guidance.guided_denoiser(captioned, 2.0, NULL)(z_t, t, cond)
    expected = t[:, None] + 3 * jnp.array([[1.0], [12.0]]) + jnp.zeros((2, 3))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_each_example_has_its_own_scale() -> None:
    z_t, t = jnp.ones((3, 2)), jnp.array([0.2, 0.5, 0.9])
    cond = {
        "text": jnp.ones((3, 1)),
        "text_mask": jnp.ones((3, 1), bool),
        "guidance": jnp.array([0.0, 1.0, 3.0]),
    }
    within = Guidance(0.0, NULL, (0.0, 0.6))
    conditional, found = guidance.predict_guided(captioned, within, z_t, t, cond)
    np.testing.assert_allclose(conditional[:, 0], t + 1, rtol=1e-6)
    np.testing.assert_allclose(found[:, 0], t + jnp.array([1.0, 2.0, 1.0]), rtol=1e-6)


def test_nothing_to_guide_to() -> None:
    with pytest.raises(ValueError, match="needs a label or caption"):
        guidance.guided_denoiser(captioned, 1.0, NULL)(
            jnp.ones((1, 1)), jnp.ones(1), {}
        )
