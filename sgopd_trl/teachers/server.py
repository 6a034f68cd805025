"""A teacher behind one or more vLLM servers."""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from tenacity import AsyncRetrying, retry_if_exception_type
from transformers import PreTrainedTokenizerBase
from trl.trainer.utils import start_event_loop_in_daemon

from ..scoring import plan_batches
from .completions import (
    Unavailable,
    choices,
    completion_logps,
    generation_request,
    rollout_ids,
    scoring_request,
)
from .endpoint import Endpoint
from .identity import identity_entry
from .patience import Patience
from .protocol import SamplingSettings, TeacherError
from .server_checks import Lengths, ServedModel, check_servers
from .server_pool import ServerPool
from .words import TEACHER, Words


if TYPE_CHECKING:
    from ..trainer import SGOPDTrainer


T = TypeVar("T")


class ServerTeacher:
    """The teacher served by vLLM's OpenAI-compatible API; several addresses share the load and stand in for each other.

    A server that fails is asked again until `retry_timeout`, and checked to be the same model when it is back.

    Args:
        urls: as http://host:8000. eos_token_ids: end rollouts, beside the served model's own.
        model: name the server gives it; default: the only one it serves. api_key: sent as a bearer token.
        concurrency: requests at a time. tokens_per_request: of scoring; a longer sequence gets a request of its own.
        request_timeout: seconds to wait for one answer, with the check of the server before it.
        retry_timeout: seconds, from a request's first failure on, to repeat it for.
        words: of messages. name: of the teacher among several. about: its `identity_entry`, as far as it is known; default: what is served.
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
        retry_timeout: float = 540.0,
        words: Words = TEACHER,
        name: str = "teacher",
        about: dict[str, str | None] | None = None,
    ):
        self.eos_token_ids = list(eos_token_ids)
        self.model = model
        self.tokens_per_request = tokens_per_request
        self.request_timeout, self.retry_timeout = request_timeout, retry_timeout
        self.name = name
        self.about = about
        self.pool = ServerPool([Endpoint(url, api_key, request_timeout) for url in urls], words)
        self.vocab_size: int | None = None
        # A daemon: neither Ctrl-C nor the end of the program waits for a request.
        _, self._loop, ready = start_event_loop_in_daemon("teacher-server")
        ready.wait()
        self._limit_concurrency(concurrency)

    @property
    def served(self) -> ServedModel | None:
        """The model behind the servers, once `check_start` has seen it."""
        return self.pool.served

    def _limit_concurrency(self, concurrency: int) -> None:
        self.concurrency = concurrency
        self._slots = asyncio.Semaphore(concurrency)

    def check_start(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        longest_prompt: int,
        max_completion_length: int,
        max_rollout_length: int = 0,
    ) -> None:
        """Makes sure that the servers are fit for a run, and remembers the model behind them.

        Args:
            tokenizer: the student's. longest_prompt, max_completion_length: tokens.
            max_rollout_length: tokens; 0 for a run that asks for no rollouts.

        Raises:
            ValueError: with what is wrong: not reachable, model not served, another tokenizer, context too short, no
                normalised log-probabilities.
        """
        lengths = Lengths(longest_prompt, max_completion_length, max_rollout_length)
        self.pool.served = self._run(
            check_servers(self.pool.endpoints, self.model, tokenizer, lengths, self.pool.words)
        )
        self.model = self.pool.served.id
        self.vocab_size = len(tokenizer)

    def prepare(self, trainer: "SGOPDTrainer") -> None:
        """Shares concurrency and servers among the processes, and ends rollouts where the student's end."""
        self.eos_token_ids = sorted({*self.eos_token_ids, *trainer.eos_token_ids})
        self._limit_concurrency(max(1, self.concurrency // trainer.accelerator.num_processes))
        self.pool.rotate(trainer.accelerator.process_index)

    def identity(self) -> dict[str, dict[str, str | None]]:
        return {self.name: self.about or identity_entry((self.served and self.served.root) or self.model)}

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
        finished: Callable[[int, list[int]], None] | None = None,
    ) -> list[list[int]]:
        def parse(answer: Any) -> list[int]:
            return rollout_ids(choices(answer, self.model, 1)[0], self.vocab_size)

        requests = [
            (generation_request(self.model, ids, seed, settings, self.eos_token_ids), parse)
            for ids, seed in zip(prompt_ids, seeds, strict=True)
        ]
        return self._run(self._ask_all(requests, finished))

    def close(self) -> None:
        """Gives up what is under way."""
        self._run(self._close())

    async def _close(self) -> None:
        await asyncio.gather(*(endpoint.close() for endpoint in self.pool.endpoints))

    def _run(self, coroutine: Any) -> Any:
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except BaseException:  # Ctrl-C: the servers are not left to work for nobody
            future.cancel()
            raise

    async def _ask_all(
        self,
        requests: list[tuple[dict[str, Any], Callable[[Any], T]]],
        finished: Callable[[int, T], None] | None = None,
    ) -> list[T]:
        """All answers, in order; `finished` gets each, with its place, as soon as it is there."""
        if self.served is None:
            raise TeacherError("`check_start` comes before the first request")
        self.pool.check_again()

        async def ask(place: int, body: dict[str, Any], parse: Callable[[Any], T]) -> T:
            answer = await self._ask(body, parse)
            if finished is not None:
                finished(place, answer)
            return answer

        tasks = [asyncio.ensure_future(ask(place, *request)) for place, request in enumerate(requests)]
        try:
            return await asyncio.gather(*tasks)
        except BaseException:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)  # nothing is finished after this call has failed
            raise

    async def _ask(self, body: dict[str, Any], parse: Callable[[Any], T]) -> T:
        """One request, repeated at whichever server is there until it is answered.

        Raises:
            TeacherError: for what will not pass, and `retry_timeout` after the first failure.
        """
        patience = Patience(self.pool, self.retry_timeout)
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(Unavailable),
            after=patience.note,
            stop=patience.stop,
            wait=patience.wait,
            before_sleep=patience.before_sleep,
            retry_error_callback=patience.give_up,
        )
        async with self._slots:
            return await retrying(self._attempt, body, parse)

    async def _attempt(self, body: dict[str, Any], parse: Callable[[Any], T]) -> T:
        """One request to one server.

        Raises:
            Unavailable: naming the server, with the status of its answer to this very request. TeacherError: for what
                will not pass.
        """
        start = time.monotonic()
        endpoint = await self.pool.choose()
        endpoint.in_flight += 1
        try:
            left = self.request_timeout - (time.monotonic() - start)
            answer = parse(await endpoint.post("/v1/completions", body, max(left, self.request_timeout / 2)))
        except Unavailable as error:
            self.pool.failed(endpoint, error)
            raise Unavailable(f"{endpoint.url}: {error}", error.status, error.retry_after) from error
        except TeacherError as error:
            raise TeacherError(f"{self.pool.words.model} at {endpoint.url}: {error}.") from error
        finally:
            endpoint.in_flight -= 1
        self.pool.answered(endpoint)
        return answer
