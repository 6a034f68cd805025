"""`Verifier`: a judge of single completions as a TRL reward function, with its verdicts counted and its failures kept."""

import json
import logging
import os
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from .verdict import Status, Verdict
from .workers import Outcome, Workers


logger = logging.getLogger(__name__)

Judge = Callable[[str, Any], Verdict | bool | float]

FAILURES = (Status.TIMEOUT, Status.ERROR)  # the judge's, not the completion's
WINDOW = 1000  # verdicts over which their share is taken


class VerifierFailure(RuntimeError):
    """The judge fails too often for its verdicts to be trained on."""


class Verifier:
    """A TRL reward function: 1.0 for a correct completion, else 0.0. Works in any TRL trainer.

    A judge that times out or fails has not found a completion wrong: such verdicts are logged, their completions are kept
    in a file, and past a share of them the run stops.

    Args:
        judge: verdict of a completion (text) and its gold answer.
        name: under which the verdicts are logged, as `verdicts/<name>/correct` and so on: shares of each step.
        settings: keyword arguments of the judge. about: what else its verdicts depend on.
        gold_column: column of the dataset with the gold answer.
        gold_problem: why a gold answer cannot serve, or `None`; default: none is looked at.
        golds_are_answers: whether a gold answer, given as a completion, is correct.
        workers: processes to judge in; `None` judges in this process, without a deadline.
        threads: to judge in where there are no workers, for a judge that waits for processes of its own.
        max_failure_share: of `timeout` and `error` among the last 1,000 verdicts; above it the run stops.
        failures_file: JSON lines of the completions the judge has failed on; default: `verifier_failures.jsonl` in
            `SGOPDTrainer`'s output folder, or in the working directory.

    Raises:
        ValueError: for a share that is none.
    """

    def __init__(
        self,
        judge: Judge,
        *,
        name: str,
        settings: dict[str, Any] | None = None,
        about: dict[str, Any] | None = None,
        gold_column: str = "solution",
        gold_problem: Callable[[Any], str | None] | None = None,
        golds_are_answers: bool = True,
        workers: Workers | None = None,
        threads: int = 1,
        max_failure_share: float = 0.01,
        failures_file: str | None = None,
    ):
        self.__name__ = name  # TRL logs rewards under it
        self.judge = judge
        self.settings = dict(settings or {})
        self.about = dict(about or {})
        self.gold_column = gold_column
        self.gold_problem = gold_problem or _no_problem
        self.golds_are_answers = golds_are_answers
        self.workers = workers
        self.threads = threads
        self.allow_failures(max_failure_share)
        self.failures_file = failures_file
        self.stops_at_once = True  # a trainer of several processes asks all of them instead
        self.failed: list[bool] = []  # on which completions of the last batch
        self._folder = ""
        self._recent: deque[bool] = deque(maxlen=WINDOW)

    def verify(self, completion: str, gold: Any) -> Verdict:
        """The verdict on one completion. A failing judge is a verdict, not an exception."""
        return self.verify_all([completion], [gold])[0]

    def verify_all(self, completions: Sequence[str], golds: Sequence[Any]) -> list[Verdict]:
        """n verdicts, in order."""
        calls = list(zip(completions, golds, strict=True))
        if self.workers is None and self.threads > 1:
            with ThreadPoolExecutor(self.threads) as pool:
                return list(pool.map(lambda call: self._in_process(*call), calls))
        if self.workers is None:
            return [self._in_process(*call) for call in calls]
        outcomes = self.workers.map(_judged, [(self.judge, self.settings, *call) for call in calls])
        return [_verdict(outcome) for outcome in outcomes]

    def __call__(self, completions: list[Any], log_metric: Callable[[str, float], None] | None = None, **columns: Any):
        """Rewards of a batch, as TRL asks for them.

        Args:
            completions: B texts, or lists of messages whose last one is the assistant's.
            log_metric: TRL's. columns: TRL's other arguments, the gold answers among them.

        Returns:
            B rewards, 0.0 or 1.0.

        Raises:
            ValueError: when the gold column is missing. VerifierFailure: when the judge fails too often.
        """
        if self.gold_column not in columns:
            raise ValueError(
                f"The verifier {self.__name__!r} needs the gold answers in a column {self.gold_column!r}; the dataset has "
                f"{sorted(columns)}. Rename the column, or give the verifier its `gold_column`."
            )
        texts = [completion_text(completion) for completion in completions]
        verdicts = self.verify_all(texts, columns[self.gold_column])
        counts = Counter(verdict.status for verdict in verdicts)
        if log_metric is not None:
            for status in Status:
                log_metric(f"verdicts/{self.__name__}/{status}", counts[status] / max(len(verdicts), 1))
        self._keep_failures(texts, columns[self.gold_column], verdicts)
        if self.stops_at_once and (problem := self.failing()):
            raise VerifierFailure(problem)
        return [verdict.reward for verdict in verdicts]

    def failing(self) -> str | None:
        """Why the run must stop, if it must."""
        failures = sum(self._recent)
        if failures <= self.max_failure_share * WINDOW:
            return None
        return (
            f"The verifier {self.__name__!r} has failed (timeout or error) on {failures} of the last {len(self._recent)} "
            f"completions; `max_failure_share` allows {self.max_failure_share:.1%} of {WINDOW}. They are in "
            f"{self._failures_path()}: correct the verifier, or raise its timeout or the share."
        )

    def allow_failures(self, share: float) -> None:
        """Sets `max_failure_share`.

        Raises:
            ValueError: for a share that is none.
        """
        if not 0 <= share <= 1:
            raise ValueError(f"`max_failure_share` must be in [0, 1], got {share!r}.")
        self.max_failure_share = share

    def belong_to(self, folder: str) -> None:
        """Makes this the verifier of a run of `SGOPDTrainer`, which asks all its processes whether to stop.

        Args:
            folder: for `failures_file` where it is `None`.
        """
        self._folder, self.stops_at_once = folder, False
        self.forget()

    def forget(self) -> None:
        """Forgets the failures so far."""
        self._recent.clear()

    def identity(self) -> dict[str, Any]:
        """What its verdicts depend on, as JSON values."""
        settings = {key: repr(value) for key, value in sorted((self.settings | self.about).items())}
        judge = self.judge if hasattr(self.judge, "__qualname__") else type(self.judge)
        return {"judge": f"{judge.__module__}.{judge.__qualname__}", "settings": settings}

    def _in_process(self, completion: str, gold: Any) -> Verdict:
        try:
            return _judged(self.judge, self.settings, completion, gold)
        except MemoryError:
            return Verdict(Status.REFUSED, detail="out of memory")
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # math-verify's TimeoutException is no Exception, nor is SystemExit
            return Verdict(Status.ERROR, detail=f"{type(error).__name__}: {error}"[:500])

    def _failures_path(self) -> Path:
        return Path(self.failures_file or os.path.join(self._folder, "verifier_failures.jsonl"))

    def _keep_failures(self, texts: Sequence[str], golds: Sequence[Any], verdicts: Sequence[Verdict]) -> None:
        self.failed = [verdict.status in FAILURES for verdict in verdicts]
        self._recent.extend(self.failed)
        failed = [
            {
                "verifier": self.__name__,
                "status": verdict.status,
                "detail": verdict.detail,
                "gold": gold,
                "completion": text,
            }
            for text, gold, verdict in zip(texts, golds, verdicts, strict=True)
            if verdict.status in FAILURES
        ]
        if not failed:
            return
        path = self._failures_path()
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:  # one write a batch: lines of several processes do not mix
            file.write("".join(json.dumps(line, default=str) + "\n" for line in failed))
        logger.warning(
            f"The verifier {self.__name__!r} failed on {len(failed)} of {len(texts)} completions, the first with "
            f"{failed[0]['status']} ({failed[0]['detail']}). They get reward 0 and are kept in {path}."
        )


def completion_text(completion: str | list[dict[str, Any]]) -> str:
    """The text of a completion: itself, or its last message's."""
    return completion if isinstance(completion, str) else completion[-1]["content"] or ""


def _no_problem(gold: Any) -> None:
    return None


def _judged(judge: Judge, settings: dict[str, Any], completion: str, gold: Any) -> Verdict:
    answer = judge(completion, gold, **settings)
    if isinstance(answer, Verdict):
        return answer
    if isinstance(answer, bool | int | float) and answer in (0, 1):
        return Verdict(Status.CORRECT if answer else Status.WRONG)
    raise TypeError(f"the judge must return a Verdict, True or False, got {answer!r}")


def _verdict(outcome: Outcome) -> Verdict:
    if outcome.kind == "done":
        return outcome.value
    status = {"timeout": Status.TIMEOUT, "memory": Status.REFUSED}.get(outcome.kind, Status.ERROR)
    return Verdict(status, detail=outcome.detail)
