"""The Inception Score (Salimans et al. 2016), from sums that can be merged."""

import numpy as np

SPLIT = 5000
"""Images of one score; the mean over the splits is reported."""


class ScoreSums:
    """The sums that make the score, one set for each split of 5000 images.

    With p_i = softmax(logits_i) of the images i of one split, in their order, and the
    mean q of these,

        score = exp(mean_i sum_y p_i log p_i - sum_y q log q),

    and the mean over the splits is reported. Sums are float64; the sums of several
    processes are added.
    """

    def __init__(self, count: int, classes: int, split: int) -> None:
        splits = -(-count // split)
        self.split = split
        self.counts = np.zeros(splits)
        self.negentropies = np.zeros(splits)
        self.probabilities = np.zeros((splits, classes))

    def add(self, indices: np.ndarray, logits: np.ndarray) -> None:
        """Counts the images of these indices [n], by their logits [n, classes]."""
        logits = logits.astype(np.float64)
        logs = logits - logits.max(axis=1, keepdims=True)
        logs -= np.log(np.exp(logs).sum(axis=1, keepdims=True))
        chances = np.exp(logs)
        splits = indices // self.split
        np.add.at(self.counts, splits, 1.0)
        np.add.at(self.negentropies, splits, (chances * logs).sum(axis=1))
        for number in np.unique(splits):
            self.probabilities[number] += chances[splits == number].sum(axis=0)

    def score(self) -> float:
        """The mean over the splits."""
        q = self.probabilities / self.counts[:, None]
        # A class that never occurs adds nothing.
        logs = np.log(np.maximum(q, np.finfo(np.float64).tiny))
        scores = np.exp(self.negentropies / self.counts - (q * logs).sum(axis=1))
        return float(scores.mean())
