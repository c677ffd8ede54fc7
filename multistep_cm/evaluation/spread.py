"""How far a Fréchet distance would move with other samples, from these samples alone.

To first order the distance of N(m, S) to a fixed N(m_r, S_r) moves with m and S by

    2 (m - m_r) . dm + tr((I - G) dS),   G = S_r^1/2 (S_r^1/2 S S_r^1/2)^-1/2 S_r^1/2,

where G is the linear map that carries N(m, S) onto N(m_r, S_r). So a sample x pulls by

    phi(x) = 2 (m - m_r) . (x - m) + (x - m)^T (I - G) (x - m),

and the distance of n independent samples has the standard deviation of phi over the
samples divided by sqrt(n): the infinitesimal jackknife (Jaeckel 1972), the limit that a
bootstrap over the samples tends to, at the price of one distance and without chance.

Where the distance is little more than the bias of a finite n, the first order is not
all, and this is too large, by a third or so.
"""

import numpy as np

from multistep_cm.evaluation.frechet import Moments


def frechet_deviation(features: np.ndarray, reference: Moments) -> float:
    """The standard deviation of the distance of `features` to `reference`, estimated.

    It is that over sets of as many samples; the real images stay the same.

    Args:
      features: of the samples, [count, dimension], any real dtype, count > 1.
      reference: moments of the real images.
    """
    features = np.asarray(features, np.float64)
    moments = Moments.of(features)
    root = reference.root
    values, vectors = np.linalg.eigh(root @ moments.covariance @ root)
    # Samples do not vary where an eigenvalue is 0: G may be anything there.
    smallest = len(values) * np.finfo(np.float64).eps * values.max()
    inverse = np.where(values > smallest, values, np.inf) ** -0.5
    carried = root @ vectors
    transport = (carried * inverse) @ carried.T
    centred = features - moments.mean
    pull = 2.0 * centred @ (moments.mean - reference.mean)
    pull += np.square(centred).sum(axis=1)
    pull -= np.einsum("ni,ni->n", centred @ transport, centred)
    return float(pull.std(ddof=1) / np.sqrt(len(features)))
