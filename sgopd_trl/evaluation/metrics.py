"""avg@k and pass@k of each problem, and bootstrap intervals over problems. Pure functions of arrays.

Notation: P problems, n samples of each, c of which are correct; B bootstrap replicates.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np


_CHUNK = 2**22  # numbers that a bootstrap draws at a time


@dataclass(frozen=True)
class Interval:
    """An estimate and the percentile interval of its bootstrap replicates."""

    mean: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


def avg_at_k(correct: Sequence[Sequence[bool]]) -> float:
    """Mean accuracy over problems and their samples.

    Args:
        correct: (problems, samples) booleans; every problem has the same number of samples.

    Raises:
        ValueError: there are no problems or no samples, or the rows differ in length.
    """
    return float(accuracies(correct).mean())


def pass_at_k(correct: Sequence[Sequence[bool]], k: int) -> float:
    """Unbiased estimate of the probability that at least one of k samples solves a problem, averaged over problems.

    With c correct samples of n, a problem counts 1 - C(n - c, k) / C(n, k) (Chen et al., 2021, arXiv:2107.03374).

    Args:
        correct: (problems, n) booleans; every problem has the same number of samples.
        k: 1 to n.

    Raises:
        ValueError: k is out of range, there are no problems or no samples, or the rows differ in length.
    """
    return float(pass_probabilities(correct, k).mean())


def accuracies(correct: Sequence[Sequence[bool]]) -> np.ndarray:
    """(P,) share of each problem's samples that are correct, c / n. Arguments and errors are those of `avg_at_k`."""
    counts, samples = _counts(correct)
    return counts / samples


def pass_probabilities(correct: Sequence[Sequence[bool]], k: int) -> np.ndarray:
    """(P,) each problem's 1 - C(n - c, k) / C(n, k). Arguments and errors are those of `pass_at_k`."""
    counts, samples = _counts(correct)
    if not 1 <= k <= samples:
        raise ValueError(f"k must be between 1 and the {samples} samples of each problem, got {k}")
    by_count = [1 - math.comb(samples - c, k) / math.comb(samples, k) for c in range(samples + 1)]
    return np.array(by_count)[counts]


def replicates(values: np.ndarray, count: int, seed: Sequence[int]) -> np.ndarray:
    """Means of `count` resamples of the problems, drawn with replacement.

    Args:
        values: (P, m), m numbers of each problem; they are drawn together. count: B. seed: of the draws.

    Returns:
        (B, m).
    """
    rng = np.random.default_rng(list(seed))
    size = len(values)
    chunk = max(1, _CHUNK // size)
    means = [
        values[rng.integers(size, size=(min(chunk, count - start), size))].mean(1) for start in range(0, count, chunk)
    ]
    return np.concatenate(means)


def interval(mean: float, drawn: np.ndarray, confidence: float) -> Interval:
    """The percentile interval of (B,) replicates around an estimate."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return Interval(float(mean), float(low), float(high))


def bootstrap(
    groups: Sequence[np.ndarray], *, count: int = 10_000, confidence: float = 0.95, seed: int = 0
) -> tuple[list[list[Interval]], list[Interval]]:
    """Intervals for the mean over each benchmark's problems, and for the arithmetic mean over the benchmarks.

    Problems are resampled within each benchmark, never across: the paper's AVG weighs benchmarks, not problems.

    Args:
        groups: for each benchmark (P_b, m), m numbers of each problem.
        count: B. confidence: of the intervals, in (0, 1). seed: of the draws.

    Returns:
        for each benchmark m intervals, and m intervals of the mean over benchmarks.
    """
    groups = [np.asarray(values, dtype=np.float64) for values in groups]
    drawn = [replicates(values, count, (seed, place)) for place, values in enumerate(groups)]
    means = [values.mean(0) for values in groups]
    each = [
        [interval(*pair, confidence) for pair in zip(mean, draws.T, strict=True)]
        for mean, draws in zip(means, drawn, strict=True)
    ]
    average = [interval(*pair, confidence) for pair in zip(np.mean(means, 0), np.mean(drawn, 0).T, strict=True)]
    return each, average


def _counts(correct: Sequence[Sequence[bool]]) -> tuple[np.ndarray, int]:
    """(P,) correct samples of each problem, and n."""
    lengths = {len(row) for row in correct}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(f"every problem needs the same, positive number of samples, got rows of {sorted(lengths)}")
    return np.asarray(correct, dtype=bool).sum(1), lengths.pop()
