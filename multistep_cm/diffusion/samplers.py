"""From noise to images: one scan for every sampler, a fixed number of network calls.

`num_steps` is the number of steps from t = 1 to t = 0. A step is one network call,
except for Heun, which calls twice in every step but the last (`network_calls`).

A multistep consistency student (algorithm 2) is sampled by `method="ddim"` on the
uniform grid with `num_steps = student_steps`: no noise, no aDDIM.
"""

from collections.abc import Callable
from typing import Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from multistep_cm.diffusion import ddim
from multistep_cm.diffusion.parameterization import Conditioning, Denoiser
from multistep_cm.diffusion.schedules import Schedule

Method: TypeAlias = Literal["ddim", "addim", "heun", "ancestral"]
Grid: TypeAlias = Literal["uniform", "karras"]
XVariance: TypeAlias = Callable[[jax.Array, jax.Array], ArrayLike]
"""`(t (), logsnr_t ()) -> x_var`, the variance that aDDIM puts back."""


def network_calls(method: Method, num_steps: int) -> int:
    """How often `sample` calls the denoiser: Heun 2 num_steps - 1, else num_steps."""
    return 2 * num_steps - 1 if method == "heun" else num_steps


def time_grid(
    schedule: Schedule, num_steps: int, grid: Grid = "uniform", rho: float = 7.0
) -> jax.Array:
    """The num_steps + 1 times from 1 to 0, decreasing.

    `uniform` is 1, (N-1)/N, .., 0. `karras` is uniform in (sigma / alpha)^(1 / rho)
    (Karras et al. 2022, eq. 5), mapped back to t by the schedule.
    Raises ValueError for num_steps < 1 or an unknown grid.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps is {num_steps}, expected at least 1")
    uniform = jnp.arange(num_steps, -1, -1) / num_steps
    if grid == "uniform":
        return uniform
    if grid != "karras":
        raise ValueError(f"grid is {grid!r}, expected 'uniform' or 'karras'")
    # (sigma / alpha)^(1 / rho) = exp(-logsnr / (2 rho)); the ends are exact.
    ends = jnp.exp(-schedule.logsnr(jnp.array([1.0, 0.0])) / (2 * rho))
    roots = ends[1] + uniform * (ends[0] - ends[1])
    inner = schedule.inverse(-2 * rho * jnp.log(roots))
    return inner.at[0].set(1.0).at[-1].set(0.0)


def sample(
    denoiser: Denoiser,
    schedule: Schedule,
    z_1: jax.Array,
    num_steps: int,
    method: Method = "ddim",
    *,
    cond: Conditioning | None = None,
    key: jax.Array | None = None,
    x_variance: XVariance | None = None,
    grid: Grid = "uniform",
) -> jax.Array:
    """Integrate from z_1 ~ N(0, I) at t = 1 down to t = 0.

    Args:
        denoiser: x_hat from (z_t, t [batch], cond).
        schedule: the noise schedule that the denoiser was trained with.
        z_1: starting noise, [batch, ...].
        num_steps: steps of the grid, at least 1.
        method: `ddim`, `addim` (algorithm 3), `heun` or `ancestral`.
        cond: conditioning arrays, passed on to the denoiser.
        key: random key, for `ancestral` only; [batch] of them, one for each example,
            make an example independent of its batch.
        x_variance: x_var for `addim` at each step; None is `0.1 / (2 + SNR)`.
        grid: spacing of the times.

    Returns:
        z_0, shape and dtype of `z_1`.

    Raises:
        ValueError: unknown method or grid, num_steps < 1, or no key for `ancestral`.
    """
    if method not in get_args(Method):
        raise ValueError(f"method is {method!r}, expected one of {get_args(Method)}")
    if method == "ancestral" and key is None:
        raise ValueError("ancestral sampling draws noise: pass key")
    cond = {} if cond is None else cond
    times = time_grid(schedule, num_steps, grid)

    def call(z: jax.Array, t: jax.Array) -> jax.Array:
        return denoiser(z, jnp.full(z.shape[0], t, times.dtype), cond)

    def step(z_t: jax.Array, t: jax.Array, s: jax.Array, index: jax.Array) -> jax.Array:
        logsnr_t, logsnr_s = schedule.logsnr(t), schedule.logsnr(s)
        x_hat = call(z_t, t)
        if method == "ancestral":
            assert key is not None
            noise = _fresh_noise(key, index, z_t)
            return ddim.ancestral_step(x_hat, z_t, logsnr_t, logsnr_s, noise)
        if method == "addim":
            known = ddim.x_variance_analytic(logsnr_t)
            x_var = known if x_variance is None else x_variance(t, logsnr_t)
            return ddim.addim_step(x_hat, z_t, logsnr_t, logsnr_s, x_var)
        if method == "heun":
            z_s = ddim.ddim_step(x_hat, z_t, logsnr_t, logsnr_s)
            x_hat_s = call(z_s, s)
            x_hat = ddim.heun_effective_x(x_hat, x_hat_s, logsnr_t, logsnr_s)
        return ddim.ddim_step(x_hat, z_t, logsnr_t, logsnr_s)

    def scan_step(
        z: jax.Array, inputs: tuple[jax.Array, jax.Array, jax.Array]
    ) -> tuple[jax.Array, None]:
        return step(z, *inputs), None

    indices = jnp.arange(num_steps)
    inputs = (times[:-1], times[1:], indices)
    if method not in ("heun", "ancestral"):
        return jax.lax.scan(scan_step, z_1, inputs)[0]
    # The last step of Heun is DDIM, and that of ancestral sampling adds no noise.
    first = jax.tree.map(lambda leaf: leaf[:-1], inputs)
    z = jax.lax.scan(scan_step, z_1, first)[0] if num_steps > 1 else z_1
    last_t = times[-2]
    logsnr_t, logsnr_s = schedule.logsnr(last_t), schedule.logsnr(times[-1])
    return ddim.ddim_step(call(z, last_t), z, logsnr_t, logsnr_s)


def _fresh_noise(key: jax.Array, index: jax.Array, like: jax.Array) -> jax.Array:
    """N(0, I) of this step, in the shape of `like`; `key` is one or [batch] keys."""
    if key.ndim:
        noise = jax.vmap(lambda k: _fresh_noise(k, index, like[0]))
        return noise(key)
    step_key = jax.random.fold_in(key, index)
    return jax.random.normal(step_key, like.shape, like.dtype)
