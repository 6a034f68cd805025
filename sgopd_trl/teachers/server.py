"""A teacher behind one or more vLLM servers."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_delay, wait_random_exponential
from transformers import PreTrainedTokenizerBase
from trl.trainer.utils import start_event_loop_in_daemon

from ..scoring import plan_batches
from .completions import (
    BrokenAnswer,
    choices,
    completion_logps,
    generation_request,
    rollout_ids,
    scoring_request,
)
from .endpoint import Endpoint, Unavailable
from .identity import identity_entry
from .protocol import SamplingSettings, TeacherError
from .server_checks import ServedModel, check_served_model, check_servers


if TYPE_CHECKING:
    from ..trainer import SGOPDTrainer


logger = logging.getLogger(__name__)

T = TypeVar("T")

_ASIDE = 30.0  # seconds that others stand in for a server that has failed
_REPORT = 30.0  # seconds between two warnings
_ERRORS_OF_ONE_REQUEST = 8  # answers "500" to one request, while the server answers others
_BACKOFF = wait_random_exponential(multiplier=0.5, max=10.0)


class ServerTeacher:
    """The teacher served by vLLM's OpenAI-compatible API; several addresses share the load and stand in for each other.

    A server that fails is asked again until `retry_timeout`, and checked to be the same model when it is back.

    Args:
        urls: as http://host:8000. eos_token_ids: end rollouts, beside the served model's own.
        model: name the server gives it; default: the only one it serves. api_key: sent as a bearer token.
        concurrency: requests at a time. tokens_per_request: of scoring; a longer sequence gets a request of its own.
        request_timeout: seconds to wait for one answer. retry_timeout: seconds to repeat a request for.
        name: of the teacher among several. model_name, revision, config_hash: its identity, as far as it is known.
    """

    runs_elsewhere = True

    def __init__(
        self,
        urls: Sequence[str],
        *,
        eos_token_ids: Sequence[int],
        model: str | None = None,
        api_key: str | None = None,
        concurrency: int = 16,
        tokens_per_request: int = 16384,
        request_timeout: float = 600.0,
        retry_timeout: float = 900.0,
        name: str = "teacher",
        model_name: str | None = None,
        revision: str | None = None,
        config_hash: str | None = None,
    ):
        self.eos_token_ids = list(eos_token_ids)
        self.model = model
        self.tokens_per_request = tokens_per_request
        self.retry_timeout = retry_timeout
        self.name = name
        self.model_name, self.revision, self.config_hash = model_name, revision, config_hash
        self.endpoints = [Endpoint(url, api_key, request_timeout) for url in urls]
        self.served: ServedModel | None = None
        self.vocab_size: int | None = None
        # A daemon: neither Ctrl-C nor the end of the program waits for a request.
        _, self._loop, ready = start_event_loop_in_daemon("teacher-server")
        ready.wait()
        self._limit_concurrency(concurrency)
        self._reported_at = float("-inf")
        self._trouble_since: float | None = None

    def _limit_concurrency(self, concurrency: int) -> None:
        self.concurrency = concurrency
        self._slots = asyncio.Semaphore(concurrency)

    def check_start(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        longest_prompt: int,
        max_completion_length: int,
        max_rollout_length: int | None = None,
    ) -> None:
        """Makes sure that the servers are fit for a run, and remembers the model behind them.

        Args:
            tokenizer: the student's. longest_prompt, max_completion_length, max_rollout_length: tokens.

        Raises:
            ValueError: with what is wrong: not reachable, model not served, another tokenizer, context too short, no
                normalised log-probabilities.
        """
        self.served = self._run(
            check_servers(
                self.endpoints, self.model, tokenizer, longest_prompt, max_completion_length, max_rollout_length
            )
        )
        self.model = self.served.id
        self.vocab_size = len(tokenizer)

    def prepare(self, trainer: "SGOPDTrainer") -> None:
        """Shares the concurrency among the processes, and ends rollouts where the student's end."""
        self.eos_token_ids = sorted({*self.eos_token_ids, *trainer.eos_token_ids})
        self._limit_concurrency(max(1, self.concurrency // trainer.accelerator.num_processes))

    def identity(self) -> dict[str, dict[str, str | None]]:
        model = self.model_name or (self.served and self.served.root) or self.model
        return {self.name: identity_entry(model, self.revision, self.config_hash)}

    def score(
        self,
        prompt_ids: Sequence[Sequence[int]],
        completion_ids: Sequence[Sequence[int]],
        *,
        temperature: float,
        names: Sequence[str | None] | None = None,
    ) -> list[torch.Tensor]:
        if temperature != 1:
            raise ValueError(
                f"vLLM's `prompt_logprobs` are those of temperature 1 whatever is asked for, got {temperature}. Sample the "
                "student at temperature 1, or load the teacher in process."
            )
        wanted = [row for row, ids in enumerate(completion_ids) if len(ids) > 0]
        sequences = {row: [*prompt_ids[row], *completion_ids[row]] for row in wanted}
        lengths = [len(sequences[row]) for row in wanted]
        plan = plan_batches([0] * len(wanted), lengths, self.tokens_per_request)
        requests = []
        for indices in plan:
            rows = [wanted[index] for index in indices]

            def parse(answer: Any, rows: list[int] = rows) -> list[list[float]]:
                found = choices(answer, self.model, len(rows))
                return [
                    completion_logps(choice, sequences[row], len(prompt_ids[row]))
                    for choice, row in zip(found, rows, strict=True)
                ]

            requests.append((rows, scoring_request(self.model, [sequences[row] for row in rows]), parse))
        scores = [torch.zeros(0) for _ in completion_ids]
        answers = self._run(self._ask_all([(body, parse) for _, body, parse in requests]))
        for (rows, *_), values in zip(requests, answers, strict=True):
            for row, logps in zip(rows, values, strict=True):
                scores[row] = torch.tensor(logps, dtype=torch.float32)
        return scores

    def generate(
        self,
        prompt_ids: Sequence[Sequence[int]],
        seeds: Sequence[int],
        settings: SamplingSettings,
        *,
        names: Sequence[str | None] | None = None,
    ) -> list[list[int]]:
        def parse(answer: Any) -> list[int]:
            return rollout_ids(choices(answer, self.model, 1)[0], self.vocab_size)

        requests = [
            (generation_request(self.model, ids, seed, settings, self.eos_token_ids), parse)
            for ids, seed in zip(prompt_ids, seeds, strict=True)
        ]
        return self._run(self._ask_all(requests))

    def close(self) -> None:
        """Gives up what is under way."""
        self._run(self._close())

    async def _close(self) -> None:
        await asyncio.gather(*(endpoint.close() for endpoint in self.endpoints))

    def _run(self, coroutine: Any) -> Any:
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except BaseException:  # Ctrl-C: the servers are not left to work for nobody
            future.cancel()
            raise

    async def _ask_all(self, requests: list[tuple[dict[str, Any], Callable[[Any], T]]]) -> list[T]:
        for endpoint in self.endpoints:  # a server may have been started again since the last call
            endpoint.verified = False
        tasks = [asyncio.ensure_future(self._ask(body, parse)) for body, parse in requests]
        try:
            return await asyncio.gather(*tasks)
        except BaseException:
            for task in tasks:
                task.cancel()
            raise

    async def _ask(self, body: dict[str, Any], parse: Callable[[Any], T]) -> T:
        """One request, repeated at whichever server is there until it is answered.

        Raises:
            TeacherError: for what will not pass, and after `retry_timeout`.
        """
        errors_500 = 0
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(Unavailable),
            stop=stop_after_delay(self.retry_timeout),
            wait=self._wait,
            before_sleep=lambda state: self._report(state.outcome.exception()),
            retry_error_callback=lambda state: self._give_up(state.seconds_since_start),
        )
        async with self._slots:
            async for attempt in retrying:
                with attempt:
                    endpoint = self._choose()
                    try:
                        await self._verify(endpoint)
                        answer = parse(await endpoint.post("/v1/completions", body))
                    except BrokenAnswer as error:
                        endpoint.set_aside(f"a broken answer: {error}")
                        raise Unavailable(endpoint.cause) from error
                    except Unavailable as error:
                        errors_500 += error.status == 500 and endpoint.verified
                        if errors_500 >= _ERRORS_OF_ONE_REQUEST:
                            raise TeacherError(
                                f"{endpoint.url} answers other requests, but this one {errors_500} times with {error}"
                            ) from error
                        if error.status != 429:
                            endpoint.set_aside(str(error))
                        raise
                    except TeacherError as error:
                        raise TeacherError(f"The teacher at {endpoint.url}: {error}.") from error
                    endpoint.failed_at = None
                    self._recovered()
                    return answer

    def _choose(self) -> Endpoint:
        """The least busy server; one that has failed rests for a while where there are others."""
        now = time.monotonic()
        rested = [e for e in self.endpoints if e.failed_at is None or now - e.failed_at > _ASIDE]
        if rested:
            return min(rested, key=lambda e: e.in_flight)
        return min(self.endpoints, key=lambda e: e.failed_at)

    async def _verify(self, endpoint: Endpoint) -> None:
        """The model behind an address must be the one that was there at the start."""
        failed_at = endpoint.failed_at
        async with endpoint.lock:
            if endpoint.verified:
                return
            if endpoint.failed_at != failed_at:  # somebody else has just tried
                raise Unavailable(endpoint.cause)
            if self.served is None:
                raise TeacherError("`check_start` comes before the first request")
            await check_served_model(endpoint, self.served)
            endpoint.verified = True

    def _wait(self, state: RetryCallState) -> float:
        error = state.outcome.exception()
        if error.status != 429 and any(endpoint.failed_at is None for endpoint in self.endpoints):
            return 0.0  # another server stands in at once
        pause = error.retry_after if error.retry_after is not None else _BACKOFF(state)
        # The last attempt is made when the limit is reached, not after it
        return min(pause, max(self.retry_timeout - state.seconds_since_start, 0.1))

    def _report(self, error: BaseException) -> None:
        now = time.monotonic()
        self._trouble_since = self._trouble_since or now
        if now - self._reported_at >= _REPORT:
            self._reported_at = now
            causes = "; ".join(f"{e.url}: {e.cause}" for e in self.endpoints if e.failed_at is not None) or str(error)
            logger.warning(
                f"The teacher does not answer ({causes}), for {now - self._trouble_since:.0f} s now. It is asked again "
                f"until {self.retry_timeout:.0f} s."
            )

    def _recovered(self) -> None:
        if self._trouble_since is not None and all(endpoint.failed_at is None for endpoint in self.endpoints):
            logger.warning(f"The teacher answers again, after {time.monotonic() - self._trouble_since:.0f} s.")
            self._trouble_since, self._reported_at = None, float("-inf")

    def _give_up(self, seconds: float) -> None:
        causes = "; ".join(f"{e.url}: {e.cause}" for e in self.endpoints if e.cause)
        raise TeacherError(
            f"The teacher has not answered for {seconds:.0f} s (`teacher_server_retry_timeout` is "
            f"{self.retry_timeout:.0f} s). {causes or 'No server had room (HTTP 429).'}"
        )
