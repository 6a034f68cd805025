"""For how long, and how often, one request to the teacher's servers is repeated."""

import random

from tenacity import RetryCallState

from .completions import Unavailable
from .protocol import TeacherError
from .server_pool import ServerPool


_ERRORS_OF_ONE_REQUEST = 8  # answers "500" to one request, by servers that answer others
_LONGEST_PAUSE = 10.0  # seconds
_jitter = random.Random()  # of its own: checkpoints hold the state of Python's


def backoff(failures: int) -> float:
    """Seconds to wait after so many failures of a request, one at least: doubling from 0.5 to 10, less up to a half."""
    return min(0.5 * 2.0 ** min(failures - 1, 10), _LONGEST_PAUSE) * _jitter.uniform(0.5, 1.0)


class Patience:
    """What tenacity asks about one request: when to stop repeating it, how long to wait, and what to say.

    Args:
        pool: of the servers. timeout: seconds, from the request's first failure on.
    """

    def __init__(self, pool: ServerPool, timeout: float):
        self.pool = pool
        self.timeout = timeout
        self._failed_since: float | None = None
        self._errors_500 = 0

    def note(self, state: RetryCallState) -> None:
        """After every failure, before the other questions."""
        self._failed_since = self._failed_since or state.outcome_timestamp
        self._errors_500 += _error(state).status == 500

    def stop(self, state: RetryCallState) -> bool:
        return self._errors_500 >= _ERRORS_OF_ONE_REQUEST or self._left(state) <= 0

    def wait(self, state: RetryCallState) -> float:
        if self._another_is_there(state):
            return 0.0
        error = _error(state)
        pause = backoff(state.attempt_number) if error.retry_after is None else error.retry_after
        # The last attempt is made when the limit is reached, not after it
        return max(min(pause, self._left(state)), 0.1)

    def before_sleep(self, state: RetryCallState) -> None:
        if not self._another_is_there(state):
            waited = self.timeout - self._left(state)
            self.pool.report(
                f"{self.pool.words.model} does not answer ({_error(state)}), for {waited:.0f} s now. It is asked again until "
                f"{self.timeout:.0f} s."
            )

    def give_up(self, state: RetryCallState) -> None:
        """Raises a TeacherError with the cause of the last attempt."""
        error, words = _error(state), self.pool.words
        if self._errors_500 >= _ERRORS_OF_ONE_REQUEST:
            raise TeacherError(
                f"{words.model} answers other requests, but this one {self._errors_500} times with an error ({error})."
            ) from error
        raise TeacherError(
            f"{words.model} has not answered for {self.timeout - self._left(state):.0f} s ({words.retry_timeout} is "
            f"{self.timeout:.0f} s). {error}"
        ) from error

    def _left(self, state: RetryCallState) -> float:
        return self._failed_since + self.timeout - state.outcome_timestamp

    def _another_is_there(self, state: RetryCallState) -> bool:
        """Whether another server stands in at once."""
        others = state.attempt_number < len(self.pool.endpoints) and self.pool.others_there()
        return others and _error(state).status != 429


def _error(state: RetryCallState) -> Unavailable:
    return state.outcome.exception()
