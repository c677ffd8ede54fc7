"""Noise schedules: log-SNR as a function of time, and back.

`z_t = alpha_t x + sigma_t eps`, variance preserving, `t in [0, 1]`, `z_0 ~ x` and
`z_1 ~ N(0, I)`. All schedules here are the cosine schedule plus a shift that is
linear in t (Multistep Consistency Models, section "noise schedule"; simple diffusion,
Hoogeboom et al. 2023):

    logsnr_cos(t)      = -2 log tan(a + t (b - a))
    logsnr_shift(t; d) = logsnr_cos(t) + 2 log(d / image_size)
    logsnr(t)          = t logsnr_shift(t; high) + (1 - t) logsnr_shift(t; low)
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

MOST_LOGSNR = 80.0
"""In size: sigma_t^2 = exp(-80) can still be divided by in float32."""


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A noise schedule as a value: `logsnr_cos(t) + (1 - t) shift_low + t shift_high`.

    Make one with `cosine`, `shifted_cosine` or `interpolated_cosine`. Times are in
    [0, 1], of any shape; results have the shape of the argument and float32, or
    float64 when the argument is float64. All functions are finite on the closed
    interval.
    """

    logsnr_min: float = -15.0
    logsnr_max: float = 15.0
    shift_low: float = 0.0
    shift_high: float = 0.0

    def __post_init__(self) -> None:
        if not self.logsnr_min < self.logsnr_max:
            raise ValueError(
                f"logsnr_min = {self.logsnr_min} must be below "
                f"logsnr_max = {self.logsnr_max}"
            )
        ends = (self.logsnr_max + self.shift_low, self.logsnr_min + self.shift_high)
        if not max(map(abs, (self.logsnr_min, self.logsnr_max, *ends))) <= MOST_LOGSNR:
            raise ValueError(
                f"log-SNR from {ends[0]:.4g} to {ends[1]:.4g} (before a shift from "
                f"{self.logsnr_max:.4g} to {self.logsnr_min:.4g}) must stay within "
                f"{MOST_LOGSNR:g}, beyond which float32 has no numbers for it"
            )
        # |d logsnr_cos / dt| is smallest, 4 (b - a), in the middle of the range.
        start, end = self._angles()
        if self.shift_high - self.shift_low >= 4 * (end - start):
            raise ValueError(
                f"the shift from {self.shift_low:.3g} to {self.shift_high:.3g} makes "
                "log-SNR grow with t; noise_high / noise_low must stay below about "
                f"{math.exp(2 * (end - start)):.3g}"
            )

    def _angles(self) -> tuple[float, float]:
        start = math.atan(math.exp(-0.5 * self.logsnr_max))
        end = math.atan(math.exp(-0.5 * self.logsnr_min))
        return start, end

    def logsnr(self, t: ArrayLike) -> jax.Array:
        """log(alpha_t^2 / sigma_t^2), strictly decreasing in t."""
        t = _as_float(t)
        start, end = self._angles()
        # tan(u) = sin(u) / sin(pi/2 - u): the second sine keeps full precision near
        # t = 1, where tan(u) in float32 loses four digits.
        u = start + t * (end - start)
        complement = (0.5 * math.pi - end) + (1 - t) * (end - start)
        cosine_part = 2 * (jnp.log(jnp.sin(complement)) - jnp.log(jnp.sin(u)))
        return cosine_part + (1 - t) * self.shift_low + t * self.shift_high

    def alpha(self, t: ArrayLike) -> jax.Array:
        """Signal scale alpha_t in (0, 1)."""
        return alpha_of(self.logsnr(t))

    def sigma(self, t: ArrayLike) -> jax.Array:
        """Noise scale sigma_t in (0, 1)."""
        return sigma_of(self.logsnr(t))

    def inverse(self, logsnr: ArrayLike) -> jax.Array:
        """The time in [0, 1] with this log-SNR; clipped at the ends of the range."""
        logsnr = _as_float(logsnr)
        if self.shift_low == self.shift_high:
            start, end = self._angles()
            angle = jnp.arctan(jnp.exp(-0.5 * (logsnr - self.shift_low)))
            return jnp.clip((angle - start) / (end - start), 0.0, 1.0)
        return self._inverse_by_bisection(logsnr)

    def _inverse_by_bisection(self, logsnr: jax.Array) -> jax.Array:
        def halve(_: int, ends: tuple[jax.Array, jax.Array]) -> tuple:
            low, high = ends
            middle = 0.5 * (low + high)
            too_clean = self.logsnr(middle) > logsnr
            return jnp.where(too_clean, middle, low), jnp.where(too_clean, high, middle)

        halvings = jnp.finfo(logsnr.dtype).nmant + 4
        ends = (jnp.zeros_like(logsnr), jnp.ones_like(logsnr))
        low, high = jax.lax.fori_loop(0, halvings, halve, ends)
        return 0.5 * (low + high)


def cosine(logsnr_min: float = -15.0, logsnr_max: float = 15.0) -> Schedule:
    """The cosine schedule, truncated to [logsnr_min, logsnr_max]."""
    return Schedule(logsnr_min, logsnr_max)


def shifted_cosine(
    noise_resolution: float,
    image_size: float,
    logsnr_min: float = -15.0,
    logsnr_max: float = 15.0,
) -> Schedule:
    """The cosine schedule of `noise_resolution` images, used at `image_size` pixels."""
    shift = _shift(noise_resolution, image_size)
    return Schedule(logsnr_min, logsnr_max, shift, shift)


def interpolated_cosine(
    noise_low: float,
    noise_high: float,
    image_size: float,
    logsnr_min: float = -15.0,
    logsnr_max: float = 15.0,
) -> Schedule:
    """From the schedule of `noise_low` at t = 0 to that of `noise_high` at t = 1.

    The paper uses 32 -> 64 for ImageNet64, 32 -> 128 for ImageNet128 and 32 -> 512
    for 512-pixel text-to-image.
    """
    low, high = _shift(noise_low, image_size), _shift(noise_high, image_size)
    return Schedule(logsnr_min, logsnr_max, low, high)


def alpha_of(logsnr: ArrayLike) -> jax.Array:
    """alpha = sqrt(sigmoid(logsnr)), without loss of relative precision."""
    return jnp.exp(0.5 * jax.nn.log_sigmoid(_as_float(logsnr)))


def sigma_of(logsnr: ArrayLike) -> jax.Array:
    """sigma = sqrt(sigmoid(-logsnr)), without loss of relative precision."""
    return jnp.exp(0.5 * jax.nn.log_sigmoid(-_as_float(logsnr)))


def _shift(noise_resolution: float, image_size: float) -> float:
    if noise_resolution <= 0 or image_size <= 0:
        raise ValueError(
            f"noise resolution {noise_resolution} and image size {image_size} "
            "must be positive"
        )
    return 2 * math.log(noise_resolution / image_size)


def _as_float(value: ArrayLike) -> jax.Array:
    """At least float32: schedule mathematics never runs in bf16 or integers."""
    value = jnp.asarray(value)
    return value.astype(jnp.promote_types(value.dtype, jnp.float32))
