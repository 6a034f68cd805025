"""vLLM in this process."""

from collections.abc import Generator, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from ...teachers.protocol import SamplingSettings
from .protocol import EngineError, Finished, Request, Sample


class VLLMEngine:
    """All requests are vLLM's at once, each with a seed of its own; what has finished is handed over after every step.

    Args:
        model, revision, dtype, trust_remote_code: as for vLLM's `LLM`. tokenizer: the model's.
        max_model_len: tokens of prompt and completion. settings: further arguments of `LLM`.

    Raises:
        ImportError: when vLLM is not installed.
    """

    served = None

    def __init__(
        self,
        model: str,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_model_len: int,
        revision: str | None = None,
        dtype: str | None = None,
        trust_remote_code: bool = False,
        **settings: Any,
    ):
        try:
            from vllm import LLM
        except ImportError as error:
            raise ImportError(
                f"`--engine vllm` needs vLLM, which cannot be imported ({error}). Install it with `pip install "
                "'sgopd-trl[vllm]'`, or use --engine server or --engine transformers."
            ) from error
        self._ends = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        self._llm = LLM(
            model,
            revision=revision,
            tokenizer_revision=revision,
            dtype=dtype or "auto",
            trust_remote_code=trust_remote_code,
            max_model_len=max_model_len,
            **settings,
        )

    def generate(self, requests: Sequence[Request], settings: SamplingSettings) -> Generator[Finished, None, None]:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        engine = self._llm.llm_engine
        waiting = {str(place): request for place, request in enumerate(requests)}
        for name, request in waiting.items():
            engine.add_request(
                name,
                {"prompt_token_ids": list(request.prompt_ids)},
                # Complete: of the model's generation config only its ends of sequence are added
                SamplingParams(
                    temperature=settings.temperature,
                    top_p=settings.top_p,
                    top_k=settings.top_k,
                    max_tokens=settings.max_new_tokens,
                    seed=request.seed,
                    stop_token_ids=self._ends,
                    detokenize=False,
                    output_kind=RequestOutputKind.FINAL_ONLY,
                ),
            )
        try:
            while waiting:
                finished, strange = [], []
                for output in engine.step():
                    if not output.finished:
                        continue
                    request, completion = waiting.pop(output.request_id), output.outputs[0]
                    if completion.finish_reason in ("stop", "length"):
                        finished.append((request, Sample(list(completion.token_ids), completion.finish_reason)))
                    else:
                        strange.append(completion.finish_reason)
                if finished:
                    yield finished
                if strange:
                    raise EngineError(f"vLLM ended a completion with `finish_reason` {strange[0]!r}.")
        finally:
            engine.abort_request(list(waiting))

    def close(self) -> None:
        self._llm = None
