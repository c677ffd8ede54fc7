"""Gaussian mixtures as data: density, draws, and the exact denoiser.

If x ~ sum_k w_k N(mu_k, C_k) then z_t = alpha_t x + sigma_t eps is again a mixture, and
`E[x | z_t]`, `Var[x | z_t]` and the score are closed forms. Every C_k is kept by its
eigenvectors, so a function costs the same at any noise level and never solves a system:

    C = basis diag(variances) basis^T + rest (I - basis basis^T)

A full covariance has a complete basis; one of low rank has few columns and the noise
variance `rest` in all other directions. Points are [batch, ...], flattened to the
mixture's dimension; log-SNR is a scalar or [batch]. Results have the dtype of the
points, float64 too.
"""

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from multistep_cm.diffusion.parameterization import Conditioning, Denoiser
from multistep_cm.diffusion.schedules import Schedule, alpha_of, sigma_of


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["log_weights", "means", "bases", "variances", "rest"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class Mixture:
    """K Gaussians in d dimensions; made by `full`, `low_rank` or `isotropic`.

    Attributes:
        log_weights: [K].
        means: [K, d].
        bases: orthonormal columns, [K, d, r].
        variances: along the columns, [K, r], positive.
        rest: variance in every direction outside the basis, [K], positive.
    """

    log_weights: jax.Array
    means: jax.Array
    bases: jax.Array
    variances: jax.Array
    rest: jax.Array

    @property
    def dimension(self) -> int:
        """d."""
        return self.means.shape[1]


class _Parts(NamedTuple):
    """The points seen from every component of the noisy mixture."""

    log_joint: jax.Array  # log w_k + log N(z; k), [batch, K]
    delta: jax.Array  # z - alpha mu_k, [batch, K, d]
    inner: jax.Array  # delta in the basis, divided by its variances, [batch, K, r]
    outer: jax.Array  # the rest of delta, divided by its variance, [batch, K, d]
    inner_variance: jax.Array  # alpha^2 variances + sigma^2, [batch, K, r]
    outer_variance: jax.Array  # alpha^2 rest + sigma^2, [batch, K]


_contract = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


def _parts(
    mixture: Mixture, z: jax.Array, alpha: jax.Array, noise: jax.Array
) -> _Parts:
    """`z` [batch, d]; `alpha` and the noise variance () or [batch]."""
    alpha = jnp.broadcast_to(alpha, z.shape[:1])[:, None]
    noise = jnp.broadcast_to(noise, z.shape[:1])[:, None]
    delta = z[:, None] - alpha[..., None] * mixture.means
    inner = _contract("bkd,kdr->bkr", delta, mixture.bases)
    # Subtracted as a vector: a difference of squares would cancel when the basis is
    # complete and the noise small.
    outer = delta - _contract("bkr,kdr->bkd", inner, mixture.bases)
    inner_variance = alpha[..., None] ** 2 * mixture.variances + noise[..., None]
    outer_variance = alpha**2 * mixture.rest + noise
    dimension, rank = mixture.bases.shape[1:]
    square = (inner**2 / inner_variance).sum(-1) + (outer**2).sum(-1) / outer_variance
    log_volume = jnp.log(inner_variance).sum(-1)
    log_volume += (dimension - rank) * jnp.log(outer_variance)
    log_joint = mixture.log_weights - 0.5 * (
        square + log_volume + dimension * math.log(2 * math.pi)
    )
    inner, outer = inner / inner_variance, outer / outer_variance[..., None]
    return _Parts(log_joint, delta, inner, outer, inner_variance, outer_variance)


def _noisy_parts(mixture: Mixture, z_t: jax.Array, logsnr: ArrayLike) -> _Parts:
    points = flatten_points(mixture.dimension, z_t)
    sigma = sigma_of(logsnr)
    return _parts(mixture, points, alpha_of(logsnr), jnp.square(sigma))


def flatten_points(dimension: int, z: jax.Array) -> jax.Array:
    """[batch, ...] to [batch, d]; ValueError when the sizes do not agree."""
    size = math.prod(z.shape[1:])
    if z.ndim < 2 or size != dimension:
        raise ValueError(
            f"points of shape {z.shape} have {size if z.ndim > 1 else 'no'} "
            f"dimensions each, the distribution has {dimension}: "
            "expected [batch, ...] with as many"
        )
    return z.reshape(z.shape[0], dimension)


def log_density(mixture: Mixture, x: jax.Array) -> jax.Array:
    """log p(x) of the data, [batch]."""
    points = flatten_points(mixture.dimension, x)
    one, zero = jnp.ones((), x.dtype), jnp.zeros((), x.dtype)
    log_joint = _parts(mixture, points, one, zero).log_joint
    return jax.nn.logsumexp(log_joint, axis=1).astype(x.dtype)


def noisy_log_density(mixture: Mixture, z_t: jax.Array, logsnr: ArrayLike) -> jax.Array:
    """log q(z_t), the marginal at this noise level, [batch]."""
    log_joint = _noisy_parts(mixture, z_t, logsnr).log_joint
    return jax.nn.logsumexp(log_joint, axis=1).astype(z_t.dtype)


def score(mixture: Mixture, z_t: jax.Array, logsnr: ArrayLike) -> jax.Array:
    """grad log q(z_t), of the shape of `z_t`."""
    parts = _noisy_parts(mixture, z_t, logsnr)
    share = jax.nn.softmax(parts.log_joint, axis=1)
    pull = parts.outer + _contract("bkr,kdr->bkd", parts.inner, mixture.bases)
    total = -_contract("bk,bkd->bd", share, pull)
    return total.reshape(z_t.shape).astype(z_t.dtype)


def posterior_mean(mixture: Mixture, z_t: jax.Array, logsnr: ArrayLike) -> jax.Array:
    """E[x | z_t], the best possible x_hat, of the shape of `z_t`."""
    parts = _noisy_parts(mixture, z_t, logsnr)
    share = jax.nn.softmax(parts.log_joint, axis=1)
    means = _component_means(mixture, parts, logsnr)
    return _contract("bk,bkd->bd", share, means).reshape(z_t.shape).astype(z_t.dtype)


def _component_means(mixture: Mixture, parts: _Parts, logsnr: ArrayLike) -> jax.Array:
    """E[x | z_t, k] = mu_k + alpha C_k (alpha^2 C_k + sigma^2)^-1 delta_k."""
    moved = mixture.rest[:, None] * parts.outer + _contract(
        "bkr,kdr->bkd", mixture.variances * parts.inner, mixture.bases
    )
    alpha = jnp.broadcast_to(alpha_of(logsnr), parts.delta.shape[:1])
    return mixture.means + alpha[:, None, None] * moved


def denoiser(mixture: Mixture, schedule: Schedule) -> Denoiser:
    """The exact posterior mean as a `Denoiser`; it ignores the conditioning."""

    def denoise(z_t: jax.Array, t: jax.Array, cond: Conditioning) -> jax.Array:
        return posterior_mean(mixture, z_t, schedule.logsnr(t))

    return denoise


def product_denoiser(mixture: Mixture, schedule: Schedule) -> Denoiser:
    """The exact denoiser where every coordinate is its own draw of a 1-D `mixture`."""

    def denoise(z_t: jax.Array, t: jax.Array, cond: Conditioning) -> jax.Array:
        size = math.prod(z_t.shape[1:])
        logsnr = jnp.repeat(schedule.logsnr(t), size)
        return posterior_mean(mixture, z_t.reshape(-1, 1), logsnr).reshape(z_t.shape)

    return denoise


def posterior_covariance(
    mixture: Mixture, z_t: jax.Array, logsnr: ArrayLike
) -> jax.Array:
    """Var[x | z_t], [batch, d, d]."""
    parts = _noisy_parts(mixture, z_t, logsnr)
    share = jax.nn.softmax(parts.log_joint, axis=1)
    inner, outer = _component_variances(mixture, parts, logsnr)
    basis = mixture.bases
    within = _contract(
        "bk,bkr,kdr,ker->bde", share, inner - outer[..., None], basis, basis
    )
    eye = jnp.eye(mixture.dimension, dtype=within.dtype)
    within += (share * outer).sum(1)[:, None, None] * eye
    means = _component_means(mixture, parts, logsnr)
    spread = means - _contract("bk,bkd->bd", share, means)[:, None]
    between = _contract("bk,bkd,bke->bde", share, spread, spread)
    return (within + between).astype(z_t.dtype)


def posterior_trace(mixture: Mixture, z_t: jax.Array, logsnr: ArrayLike) -> jax.Array:
    """tr Var[x | z_t] = E[||x - x_hat||^2 | z_t], [batch]."""
    parts = _noisy_parts(mixture, z_t, logsnr)
    share = jax.nn.softmax(parts.log_joint, axis=1)
    inner, outer = _component_variances(mixture, parts, logsnr)
    dimension, rank = mixture.bases.shape[1:]
    within = inner.sum(-1) + (dimension - rank) * outer
    means = _component_means(mixture, parts, logsnr)
    spread = means - _contract("bk,bkd->bd", share, means)[:, None]
    trace = (share * (within + (spread**2).sum(-1))).sum(1)
    return trace.astype(z_t.dtype)


def _component_variances(
    mixture: Mixture, parts: _Parts, logsnr: ArrayLike
) -> tuple[jax.Array, jax.Array]:
    """Eigenvalues of Var[x | z_t, k] in the basis [batch, K, r] and outside of it."""
    noise = jnp.square(sigma_of(logsnr))
    noise = jnp.broadcast_to(noise, parts.delta.shape[:1])[:, None]
    inner = mixture.variances * noise[..., None] / parts.inner_variance
    return inner, mixture.rest * noise / parts.outer_variance


def marginal(mixture: Mixture, logsnr: ArrayLike) -> Mixture:
    """The distribution of z_t at one (scalar) log-SNR, as a mixture."""
    alpha, sigma = alpha_of(logsnr), sigma_of(logsnr)
    dtype = mixture.means.dtype
    return dataclasses.replace(
        mixture,
        means=(alpha * mixture.means).astype(dtype),
        variances=(alpha**2 * mixture.variances + sigma**2).astype(dtype),
        rest=(alpha**2 * mixture.rest + sigma**2).astype(dtype),
    )


def draw(mixture: Mixture, key: jax.Array, number: int) -> jax.Array:
    """Samples, [number, d], in the dtype of the mixture."""
    component_key, inner_key, outer_key = jax.random.split(key, 3)
    dimension, rank = mixture.bases.shape[1:]
    dtype = mixture.means.dtype
    component = jax.random.categorical(
        component_key, mixture.log_weights, shape=(number,)
    )
    inner = jax.random.normal(inner_key, (number, rank), dtype)
    outer = jax.random.normal(outer_key, (number, dimension), dtype)

    def place(x: jax.Array, one: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        """Fill in the samples of one component."""
        index, mean, basis, variances, rest = one
        outside = outer - _contract("be,er,dr->bd", outer, basis, basis)
        along = _contract("br,dr->bd", inner * variances**0.5, basis)
        here = mean + along + outside * rest**0.5
        return jnp.where((component == index)[:, None], here, x), None

    # One component at a time: a basis for every sample would not fit in memory.
    components = (
        jnp.arange(mixture.means.shape[0]),
        mixture.means,
        mixture.bases,
        mixture.variances,
        mixture.rest,
    )
    return jax.lax.scan(place, jnp.zeros_like(outer), components)[0]


def moments(mixture: Mixture) -> tuple[jax.Array, jax.Array]:
    """Mean [d] and covariance [d, d] of the data."""
    weights = jnp.exp(mixture.log_weights)
    mean = weights @ mixture.means
    spread = mixture.means - mean
    basis = mixture.bases
    covariance = _contract(
        "k,kr,kdr,ker->de",
        weights,
        mixture.variances - mixture.rest[:, None],
        basis,
        basis,
    )
    covariance += weights @ mixture.rest * jnp.eye(mixture.dimension, dtype=mean.dtype)
    return mean, covariance + _contract("k,kd,ke->de", weights, spread, spread)
