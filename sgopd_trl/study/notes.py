"""What a reader of a study's table has to know beside it."""

from collections import Counter
from collections.abc import Sequence

from .results import RowResult


def notes(results: Sequence[RowResult]) -> list[str]:
    """Lines on what makes figures less than they seem: failures of the judge, truncated samples, runs of different code."""
    return [*_judge_failures(results), *_truncated(results), *_codes(results)]


def _judge_failures(results: Sequence[RowResult]) -> list[str]:
    return [
        f"{row.name}: the judge failed (timeout or error) on {failed} of {_total(row, 'samples')} samples, which count as "
        "wrong; verdicts.jsonl of its runs says why."
        for row in results
        if (failed := _total(row, "judge_failed"))
    ]


def _truncated(results: Sequence[RowResult]) -> list[str]:
    shares = [
        f"{row.name} {truncated / _total(row, 'samples'):.1%}"
        for row in results
        if (truncated := _total(row, "truncated"))
    ]
    return [f"Truncated samples, which count as wrong: {', '.join(shares)}."] if shares else []


def _codes(results: Sequence[RowResult]) -> list[str]:
    runs = Counter(code for row in results for code in row.codes.values())
    if len(runs) < 2:
        return []
    ((usual, _),) = runs.most_common(1)
    others = {row.name: sorted({_code(code) for code in row.codes.values() if code != usual}) for row in results}
    named = [f"{name} ({', '.join(codes)})" for name, codes in others.items() if codes]
    return [f"Not made by the code of most runs ({_code(usual)}): {', '.join(named)}. `code` in run.json tells it."]


def _code(code: str | None) -> str:
    return code or "not recorded"


def _total(row: RowResult, count: str) -> int:
    return sum(counts[count] for counts in row.counts.values())
