"""Means over seeds, and differences paired by seed with Student's t intervals. Numbers in, numbers out."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


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
    half = t_quantile(0.5 + level / 2, centre.n - 1) * centre.error
    return Difference(centre.value, centre.value - half, centre.value + half, centre.n)


def t_quantile(p: float, df: int) -> float:
    """The quantile of Student's t distribution with a whole number of degrees of freedom.

    Raises:
        ValueError: p is not above 0 and below 1, or df is below 1.
    """
    if not 0 < p < 1 or df < 1:
        raise ValueError(f"need 0 < p < 1 and df >= 1, got p = {p} and df = {df}")
    low, high = -math.pi / 2, math.pi / 2  # of the angle atan(t / sqrt(df)), in which the function is smooth
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_cdf(middle, df) < p else (low, middle)
    return math.sqrt(df) * math.tan((low + high) / 2)


def _t_cdf(angle: float, df: int) -> float:
    """P(T <= sqrt(df) tan(angle)), by the finite sums of Abramowitz and Stegun, 26.7.3 and 26.7.4."""
    sine, cosine = math.sin(angle), math.cos(angle)
    term = cosine if df % 2 else 1.0
    total = term if df > 1 else 0.0
    for k in range(3 if df % 2 else 2, df, 2):
        term *= cosine**2 * (k - 1) / k
        total += term
    between = 2 / math.pi * (angle + sine * total) if df % 2 else sine * total  # P(-t <= T <= t), signed
    return (1 + between) / 2
