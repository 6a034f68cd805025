"""Several servers of one model: which of them is asked next, and what is said about those that do not answer."""

import asyncio
import logging
import time
from collections.abc import Sequence

from .completions import Unavailable
from .endpoint import Endpoint
from .protocol import TeacherError
from .server_checks import ServedModel, check_served_model
from .words import TEACHER, Words


logger = logging.getLogger(__name__)

ASIDE = 30.0  # seconds that others stand in for a server that has failed
_REPORT = 30.0  # seconds between two warnings
_GRACE = 1.0  # seconds that the first server found right waits for the others, to share the load from the beginning


class ServerPool:
    """Chooses among a teacher's servers, and checks each before it is used.

    Everything but the constructor and `rotate` belongs to one event loop.

    Args:
        words: of messages.
    """

    def __init__(self, endpoints: Sequence[Endpoint], words: Words = TEACHER):
        self.endpoints = list(endpoints)
        self.words = words
        self.served: ServedModel | None = None
        self._chosen = 0
        self._trouble_since: float | None = None
        self._reported = False  # the trouble there is now
        self._reported_at = float("-inf")

    def rotate(self, count: int) -> None:
        """Begins with another server, so that the processes do not all begin with the same."""
        count %= len(self.endpoints)
        self.endpoints = self.endpoints[count:] + self.endpoints[:count]

    def check_again(self) -> None:
        """Every server is checked before it is used again: it may have been started again since."""
        for endpoint in self.endpoints:
            endpoint.verified = False

    async def choose(self) -> Endpoint:
        """The least busy server that serves the right model; of several, the one that was not asked for longest.

        One that has failed rests for a while where there are others. Checks are not waited for where a checked server
        is there.

        Raises:
            Unavailable: when no server is there, with the causes. TeacherError: when one serves another model.
        """
        while True:
            now = time.monotonic()
            rested = [e for e in self.endpoints if e.failed_at is None or now - e.failed_at > ASIDE] or self.endpoints
            checks = [self._check(endpoint) for endpoint in rested if not endpoint.verified]
            if len(checks) == len(rested):
                await self._first_checked(rested, checks)
            self._raise_refusal()
            checked = [endpoint for endpoint in rested if endpoint.verified]
            if checked:
                break
            failed = [endpoint for endpoint in rested if endpoint.error is not None]
            if failed:
                last = max(failed, key=lambda e: e.failed_at).error
                raise Unavailable(_causes(failed), retry_after=last.retry_after) from last
        self._report_absent()
        endpoint = min(checked, key=lambda e: (e.in_flight, e.chosen))
        self._chosen += 1
        endpoint.chosen = self._chosen
        return endpoint

    def _check(self, endpoint: Endpoint) -> asyncio.Task[None]:
        """The check of a server that is under way, or a new one. It belongs to no request: others wait for it, too."""
        if endpoint.check is None or endpoint.check.done():
            endpoint.check = asyncio.create_task(self._make_check(endpoint))
        return endpoint.check

    async def _make_check(self, endpoint: Endpoint) -> None:
        try:
            await check_served_model(endpoint, self.served, self.words)
            endpoint.verified = True
        except Unavailable as error:
            self.failed(endpoint, error)
        except Exception as error:  # raised again by whoever chooses next
            endpoint.refusal = error

    async def _first_checked(self, endpoints: Sequence[Endpoint], checks: Sequence[asyncio.Task[None]]) -> None:
        pending = set(checks)
        while pending and not any(endpoint.verified for endpoint in endpoints):
            _, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        if pending:
            await asyncio.wait(pending, timeout=_GRACE)

    def _raise_refusal(self) -> None:
        for endpoint in self.endpoints:
            if endpoint.refusal is not None:
                error, endpoint.refusal = endpoint.refusal, None
                if isinstance(error, TeacherError):
                    raise TeacherError(f"{self.words.model} at {endpoint.url}: {error}.") from error
                raise error

    def failed(self, endpoint: Endpoint, error: Unavailable) -> None:
        """Takes note that a server has not answered. One without room (HTTP 429) is well."""
        self._trouble_since = self._trouble_since or time.monotonic()
        if error.status != 429 or not endpoint.verified:
            endpoint.set_aside(error)

    def answered(self, endpoint: Endpoint) -> None:
        """Takes note that a server has answered a request."""
        endpoint.recovered()
        if self._trouble_since is not None and all(e.failed_at is None for e in self.endpoints):
            if self._reported:
                logger.warning(
                    f"{self.words.model} answers again, after {time.monotonic() - self._trouble_since:.0f} s."
                )
            self._trouble_since, self._reported = None, False

    def others_there(self) -> bool:
        """Whether there may be a server that stands in for one that has just failed."""
        return any(endpoint.failed_at is None for endpoint in self.endpoints)

    def report(self, text: str) -> None:
        """Warns, but not more often than every `_REPORT` seconds."""
        now = time.monotonic()
        if now - self._reported_at >= _REPORT:
            self._reported_at, self._reported = now, True
            logger.warning(text)

    def _report_absent(self) -> None:
        absent = [endpoint for endpoint in self.endpoints if endpoint.failed_at is not None and not endpoint.verified]
        if absent:
            others = ", ".join(endpoint.url for endpoint in self.endpoints if endpoint.verified)
            self.report(
                f"Not all servers answer ({_causes(absent)}). Standing in: {others}. The others are tried "
                f"again every {ASIDE:.0f} s."
            )


def _causes(endpoints: Sequence[Endpoint]) -> str:
    return "; ".join(f"{endpoint.url}: {endpoint.error}" for endpoint in endpoints)
