"""The student's log-probabilities, kept while transformers samples: one float a token instead of a forward pass."""

import torch
from transformers import PreTrainedModel


class SamplingLogps:
    """Context manager that records the log-probability of each token `model.generate` samples.

    It reads the logits of every decoding step through a forward hook and, one step later, the token that was drawn. The
    values are those of the untruncated distribution at `temperature`, as a fresh forward pass gives them: top-k, top-p
    and penalties shape what is sampled, not what is scored.

    Args:
        model: the causal language model that runs (under PEFT: the base model inside the wrapper).
        temperature: the sampling temperature.
    """

    def __init__(self, model: PreTrainedModel, temperature: float):
        self.model = model
        self.temperature = temperature
        self._logps: list[torch.Tensor] = []
        self._pending: tuple[torch.Tensor, torch.Tensor] | None = None
        self._aligned = True

    def __enter__(self) -> "SamplingLogps":
        self._handle = self.model.register_forward_hook(self._hook, with_kwargs=True)
        return self

    def __exit__(self, *_) -> None:
        self._handle.remove()

    def _hook(self, module, args, kwargs, output) -> None:
        input_ids = kwargs.get("input_ids")
        if input_ids is None or getattr(output, "logits", None) is None:
            self._aligned = False
            return
        if self._pending is not None:
            if input_ids.size(1) != 1 or input_ids.size(0) != self._pending[0].size(0):
                self._aligned = False  # not one token a row and step: no plain sampling loop
                return
            self._take(input_ids[:, 0])
        logits = output.logits[:, -1].float() / self.temperature
        self._pending = (logits, logits.logsumexp(-1))

    def _take(self, tokens: torch.Tensor) -> None:
        logits, log_z = self._pending
        self._logps.append(logits.gather(1, tokens.unsqueeze(1)).squeeze(1) - log_z)
        self._pending = None

    def logps(self, completion_ids: list[list[int]]) -> list[list[float]] | None:
        """Log-probabilities, in nats, of the completions that `generate` returned, or `None` if it did not sample plainly.

        Args:
            completion_ids: B lists of token ids, cut after the end-of-sequence token.
        """
        steps = max(len(ids) for ids in completion_ids)
        if self._pending is not None and len(self._logps) == steps - 1:
            # The last drawn token is never fed back; rows that ended earlier are cut below.
            last = [ids[-1] for ids in completion_ids]
            self._take(torch.tensor(last, device=self._pending[0].device))
        if not self._aligned or len(self._logps) < steps:
            return None
        table = torch.stack(self._logps, dim=1).tolist()
        if len(table) != len(completion_ids):
            return None
        return [row[: len(ids)] for row, ids in zip(table, completion_ids, strict=True)]
