"""What a verifier says of one completion."""

from dataclasses import dataclass
from enum import StrEnum


class Status(StrEnum):
    """The six verdicts. Only `CORRECT` is worth 1."""

    CORRECT = "correct"
    WRONG = "wrong"
    NO_ANSWER = "no_answer"  # nothing in the completion that could be judged
    REFUSED = "refused"  # too large to judge
    TIMEOUT = "timeout"  # the judge did not finish in time
    ERROR = "error"  # the judge failed


@dataclass(frozen=True)
class Verdict:
    """A verdict and what it rests on.

    Args:
        status: see `Status`.
        answer: what was taken from the completion as its answer, if anything.
        detail: why, in a few words, where the status alone does not say it.
    """

    status: Status
    answer: str | None = None
    detail: str = ""

    @property
    def correct(self) -> bool:
        return self.status is Status.CORRECT

    @property
    def reward(self) -> float:
        """1.0 where the completion is correct, else 0.0."""
        return float(self.correct)
