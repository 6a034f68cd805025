"""Means over seeds, and differences paired by seed with Student's t intervals. Numbers in, numbers out."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy.special import stdtrit


@dataclass(frozen=True)
class Mean:
    """A mean over n runs, and its standard error: None for a single run."""

    value: float
    error: float | None
    n: int


@dataclass(frozen=True)
class Difference:
    """A mean of n paired differences, and its interval: None for a single pair."""

    value: float
    low: float | None
    high: float | None
    n: int

    @property
    def decided(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.low is not None and not self.low <= 0 <= self.high


def mean(values: Sequence[float]) -> Mean:
    """Mean and standard error s / sqrt(n), with the sample's standard deviation s.

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("a mean needs at least one value")
    n = len(values)
    error = statistics.stdev(values) / math.sqrt(n) if n > 1 else None
    return Mean(statistics.fmean(values), error, n)


def paired_difference(
    values: Mapping[int, float], baseline: Mapping[int, float], level: float = 0.95
) -> Difference | None:
    """Mean difference to the baseline over the seeds that both have, with Student's t interval; None without any.

    Args:
        values, baseline: by seed. level: of the interval.
    """
    differences = [values[seed] - baseline[seed] for seed in sorted(values.keys() & baseline.keys())]
    if not differences:
        return None
    centre = mean(differences)
    if centre.error is None:
        return Difference(centre.value, None, None, 1)
    half = float(stdtrit(centre.n - 1, 0.5 + level / 2)) * centre.error  # the quantile of Student's t
    return Difference(centre.value, centre.value - half, centre.value + half, centre.n)
