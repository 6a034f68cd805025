"""Verdicts on samples, by a verifier or by a plain reward function."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

from ..verifiers import Status, Verdict, Verifier


logger = logging.getLogger(__name__)

_SHOWN = 8
_RIGHT = 0.5  # a reward above it means correct, as `correct_reward_threshold` has it in training


class Judge:
    """Judges completions of a benchmark's problems.

    Args:
        verifier: a `Verifier`, whose six verdicts are kept; or a TRL reward function, whose reward means correct or wrong.
    """

    def __init__(self, verifier: Verifier | Callable[..., list[float | None]]):
        self.verifier = verifier
        self.tells_unparsed = isinstance(verifier, Verifier)

    def check(self, benchmark: str, rows: Sequence[dict[str, Any]]) -> None:
        """Looks at the golds, as a training run does. A malformed answer is named in a warning, and judged by as what it
        seems to mean.

        Raises:
            ValueError: when there are none, or when malformed ones are no answers (unit tests).
        """
        if not isinstance(self.verifier, Verifier):
            return
        column = self.verifier.gold_column
        if column not in rows[0]:
            raise ValueError(
                f"The verifier {self.verifier.__name__!r} needs a column {column!r}; {benchmark} has none."
            )
        found = [(place, self.verifier.gold_problem(row[column])) for place, row in enumerate(rows)]
        malformed = [
            f"problem {place}: {rows[place][column]!r:.200} ({problem})"
            for place, problem in found
            if problem is not None
        ]
        if not malformed:
            return
        message = (
            f"{benchmark}: {len(malformed)} of {len(rows)} gold answers are malformed: {'; '.join(malformed[:_SHOWN])}."
        )
        if not self.verifier.golds_are_answers:
            raise ValueError(f"{message} Correct or drop these rows, or choose the verifier that fits them.")
        logger.warning(f"{message} They are judged by as what they seem to mean.")

    def __call__(self, rows: Sequence[dict[str, Any]], texts: Sequence[str], ids: Sequence[list[int]]) -> list[Verdict]:
        """n verdicts. A judge that fails is a verdict, too.

        Args:
            rows: of the problems, one a completion. texts, ids: the completions, without special tokens and with them.

        Raises:
            ValueError: when a reward function returns the wrong number of rewards. Whatever it raises itself.
        """
        if isinstance(self.verifier, Verifier):
            return self.verifier.verify_all(texts, [row[self.verifier.gold_column] for row in rows])
        if not rows:
            return []
        messages = isinstance(rows[0]["prompt"], list)
        rewards = self.verifier(
            prompts=[row["prompt"] for row in rows],
            completions=[[{"role": "assistant", "content": text}] for text in texts] if messages else list(texts),
            completion_ids=list(ids),
            **{name: [row[name] for row in rows] for name in rows[0] if name != "prompt"},
        )
        if len(rewards) != len(texts):
            raise ValueError(f"The reward function returned {len(rewards)} rewards for {len(texts)} completions.")
        return [_verdict(reward) for reward in rewards]


def _verdict(reward: float | None) -> Verdict:
    if reward is None or reward != reward:
        return Verdict(Status.ERROR, detail=f"the reward function returned {reward}")
    return Verdict(Status.CORRECT if reward > _RIGHT else Status.WRONG)
