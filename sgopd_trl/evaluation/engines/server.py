"""The model behind one or more vLLM servers."""

import asyncio
import os
import queue
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from typing import Any

from transformers import PreTrainedTokenizerBase

from ...teachers.completions import choices, generation_request, rollout_ids
from ...teachers.protocol import SamplingSettings, TeacherError
from ...teachers.server import ServerTeacher
from ...teachers.words import Words
from .protocol import EngineError, Finished, Request, Sample


_WORDS = Words(
    model="The model",
    url="--server_url",
    name="--server_model",
    retry_timeout="--retry_timeout",
    lengths="--max_new_tokens",
    answers="a completion of {rollout}",
    tokenizer="that of --model",
    serve="Serve that model, or correct --model",
)


class ServerEngine:
    """Asks one completion a request, each with a seed of its own.

    Several addresses share the load and stand in for each other; a failing one is asked again until `retry_timeout`.

    Args:
        urls: as http://host:8000. tokenizer: of the model that is evaluated, which the servers must serve.
        longest_prompt, max_new_tokens: tokens, which must fit into the servers' context.
        model: name the servers give it; default: the only one they serve.
        concurrency: requests at a time. request_timeout: seconds to wait for one answer.
        retry_timeout: seconds, from a request's first failure on, to repeat it for.

    Raises:
        ValueError: with what is wrong: not reachable, model not served, another tokenizer, context too short.
    """

    def __init__(
        self,
        urls: Sequence[str],
        tokenizer: PreTrainedTokenizerBase,
        *,
        longest_prompt: int,
        max_new_tokens: int,
        model: str | None = None,
        concurrency: int = 128,
        request_timeout: float = 3600.0,
        retry_timeout: float = 540.0,
    ):
        if concurrency < 1:
            raise ValueError(f"`concurrency` must be at least 1, got {concurrency}.")
        for name, value in {"request_timeout": request_timeout, "retry_timeout": retry_timeout}.items():
            if value <= 0:
                raise ValueError(f"`{name}` must be positive, got {value}.")
        self._server = _Server(
            urls,
            eos_token_ids=[] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id],
            model=model,
            api_key=os.environ.get("VLLM_API_KEY"),
            concurrency=concurrency,
            request_timeout=request_timeout,
            retry_timeout=retry_timeout,
            words=_WORDS,
        )
        self._server.check_start(
            tokenizer, longest_prompt=longest_prompt, max_completion_length=1, max_rollout_length=max_new_tokens
        )
        self.served = {"id": self._server.served.id, "root": self._server.served.root}

    def generate(self, requests: Sequence[Request], settings: SamplingSettings) -> Generator[Finished, None, None]:
        finished: queue.SimpleQueue[tuple[Request, Sample] | None] = queue.SimpleQueue()
        asked = self._server.ask(requests, settings, lambda place, sample: finished.put((requests[place], sample)))
        asked.add_done_callback(lambda _: finished.put(None))
        try:
            while True:
                ready = [finished.get()]
                while not finished.empty():
                    ready.append(finished.get())
                if samples := [item for item in ready if item is not None]:
                    yield samples
                if ready[-1] is None:
                    asked.result()
                    return
        except TeacherError as error:
            raise EngineError(str(error)) from error
        finally:
            asked.cancel()  # the servers are not left to work for nobody

    def close(self) -> None:
        self._server.close()


class _Server(ServerTeacher):
    """The teachers' client of vLLM's servers, asked for completions and for why they have ended."""

    def ask(
        self, requests: Sequence[Request], settings: SamplingSettings, finished: Callable[[int, Sample], None]
    ) -> Future[list[Sample]]:
        def parse(answer: Any) -> Sample:
            (choice,) = choices(answer, self.model, 1)
            return Sample(rollout_ids(choice, None), choice["finish_reason"])

        bodies = [
            generation_request(self.model, request.prompt_ids, request.seed, settings, self.eos_token_ids)
            for request in requests
        ]
        answers = self._ask_all([(body, parse) for body in bodies], finished)
        return asyncio.run_coroutine_threadsafe(answers, self._loop)
