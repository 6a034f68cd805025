"""Losses over the vocabulary from last hidden states: the logits of a few tokens at a time, never all of them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from inspect import signature
from typing import Any

import torch
from accelerate.utils import is_peft_model
from transformers import PreTrainedModel


# (student's logits (n, V), then the other models' in order, the chunk's rows) -> losses (n,)
TokenLoss = Callable[..., torch.Tensor]

_LOGITS_PER_CHUNK = 2**25  # 128 MiB of float32 for each model


@dataclass(frozen=True)
class LmHead:
    """From last hidden states to logits at a temperature, as TRL's fused LM head computes them.

    Args:
        weight: (V', H), all rows of the head. bias: (V',) or `None`. vocab_size: V <= V', the rows that are used.
        temperature: divides the logits. scale, softcap: of models that transform their logits. fp32: project in float32.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None
    vocab_size: int
    temperature: float = 1.0
    scale: float = 1.0
    softcap: float | None = None
    fp32: bool = False

    @classmethod
    def of(cls, model: PreTrainedModel, vocab_size: int, temperature: float, fp32: bool) -> "LmHead":
        """The head of a causal language model (under PEFT: of the base model)."""
        head, config = model.get_output_embeddings(), model.config.get_text_config()
        scale, softcap = logit_scale(config), getattr(config, "final_logit_softcapping", None)
        return cls(head.weight, head.bias, vocab_size, temperature, scale, softcap, fp32)

    def cast_for(self, hidden: torch.Tensor) -> "LmHead":
        """The rows that are used, cast for these hidden states: (V, H) once, and not for every chunk of tokens.

        No copy is made where the weight is of that type already.
        """
        weight = _factor(self.weight[: self.vocab_size], self.compute_dtype(hidden))
        return replace(self, weight=weight, bias=None if self.bias is None else self.bias[: self.vocab_size].float())

    def project(self, hidden: torch.Tensor) -> torch.Tensor:
        """Outputs, (n, V) float32, for hidden states (n, H), of a head that `cast_for` has given."""
        outputs = _matmul(_factor(hidden, self.compute_dtype(hidden)), self.weight.t())
        return outputs if self.bias is None else outputs + self.bias

    def logits(self, outputs: torch.Tensor) -> torch.Tensor:
        """Logits at the temperature from the head's outputs."""
        outputs = outputs * self.scale
        if self.softcap is not None:
            outputs = self.softcap * torch.tanh(outputs / self.softcap)
        return outputs / self.temperature

    def compute_dtype(self, hidden: torch.Tensor) -> torch.dtype:
        """What the projection's factors are in: autocast's type where it is on, else the hidden states'."""
        if self.fp32:
            return torch.float32
        device = hidden.device.type
        return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype


def logit_scale(config: Any) -> float:
    """What a model's logits are multiplied with, by the names that TRL's `add_fused_lm_head` knows."""
    for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):
        if (value := getattr(config, name, None)) is not None:
            return value
    scaling = getattr(config, "logits_scaling", None)
    if scaling is None:
        return 1.0
    return scaling if config.model_type == "hyperclovax" else 1 / scaling


@contextmanager
def last_hidden_states(model: PreTrainedModel) -> Iterator[list[torch.Tensor]]:
    """The backbone's last hidden states (b, t, H) of every forward pass in the `with` block, with their graph.

    Args:
        model: causal language model or `PeftModel`, without the wrappers of DDP and DeepSpeed.
    """
    seen: list[torch.Tensor] = []
    backbone = (model.get_base_model() if is_peft_model(model) else model).base_model
    handle = backbone.register_forward_hook(lambda module, inputs, output: seen.append(output.last_hidden_state))
    try:
        yield seen
    finally:
        handle.remove()


@torch.no_grad()
def completion_states(
    wrapped: torch.nn.Module,
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    length: int,
) -> torch.Tensor:
    """Last hidden states, (b, length, H), at the positions that predict the last `length` tokens; no logits are made.

    Args:
        wrapped: what is called. model: the causal language model with TRL's fused LM head inside it.
        input_ids, attention_mask: (b, t).
    """
    base = model.get_base_model() if is_peft_model(model) else model
    if "logits_to_keep" in signature(base.forward).parameters:
        head = {"logits_to_keep": 1}
    else:  # no label, no logit
        head = {"fused_lm_head": True, "labels": torch.full_like(input_ids, -100)}
    with last_hidden_states(model) as seen:
        wrapped(input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **head)
    return seen[0][:, -length - 1 : -1]


def weighted_token_loss(
    token_loss: TokenLoss,
    hidden: torch.Tensor,
    head: LmHead,
    others: Sequence[tuple[torch.Tensor, LmHead]],
    weights: torch.Tensor,
    tokens_per_chunk: int | None = None,
) -> torch.Tensor:
    """Weighted sum of N tokens' losses over the vocabulary, with the gradients to the student's hidden states and head.

    The gradients are computed together with the loss, a chunk of tokens at a time. Besides the gradients themselves, (N, H)
    and (V', H) in float32, it takes O(chunk * V) memory and, while it runs, a copy (V, H) of each head whose weight is not
    in the type it is multiplied in (float32 weights under autocast). Nothing of the other models is kept for the backward
    pass.

    Args:
        token_loss: called with the logits (n, V) of the student and of each of the others, and with the slice of the N
            tokens that they are of.
        hidden: (N, H) of the student. head: the student's. others: hidden states (N, H_i) and head of each other model.
        weights: (N,), no gradient. tokens_per_chunk: default: as many as make 128 MiB of logits.

    Returns:
        scalar, float32.
    """
    if tokens_per_chunk is None:
        tokens_per_chunk = max(1, _LOGITS_PER_CHUNK // head.vocab_size)
    return _WeightedTokenLoss.apply(
        hidden, head.weight, head.bias, token_loss, head, others, weights, tokens_per_chunk, torch.is_grad_enabled()
    )


class _WeightedTokenLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, bias, token_loss, head, others, weights, tokens_per_chunk, with_gradients):
        needed = [with_gradients and need for need in ctx.needs_input_grad[:3]]
        float32 = {"dtype": torch.float32, "device": hidden.device}
        of_hidden, of_weight, of_bias = (
            torch.zeros(tensor.shape, **float32) if need else None
            for tensor, need in zip((hidden, weight, bias), needed, strict=True)
        )
        total = torch.zeros((), **float32)
        dtype = head.compute_dtype(hidden)
        head = head.cast_for(hidden)
        others = [(states, other.cast_for(states)) for states, other in others]
        for first in range(0, hidden.size(0), tokens_per_chunk):
            rows = slice(first, first + tokens_per_chunk)
            outputs = head.project(hidden[rows]).requires_grad_(any(needed))
            other_logits = [other.logits(other.project(states[rows])) for states, other in others]
            with torch.set_grad_enabled(any(needed)):
                losses = token_loss(head.logits(outputs), *other_logits, rows)
                loss = (losses * weights[rows]).sum()
            total += loss.detach()
            if not any(needed):
                continue
            (gradient,) = torch.autograd.grad(loss, outputs)
            if of_bias is not None:
                of_bias[: head.vocab_size] += gradient.sum(0)
            gradient = _factor(gradient, dtype)
            if of_hidden is not None:
                of_hidden[rows] = _matmul(gradient, head.weight)
            if of_weight is not None:
                _matmul(gradient.t(), _factor(hidden[rows], dtype), add_to=of_weight[: head.vocab_size])
        ctx.save_for_backward(of_hidden, of_weight, of_bias)
        ctx.dtypes = [None if tensor is None else tensor.dtype for tensor in (hidden, weight, bias)]
        return total

    @staticmethod
    def backward(ctx, gradient):
        # Scaled before the cast: a loss scaler's factor keeps small values from vanishing in float16.
        gradients = [
            None if saved is None else (saved * gradient).to(dtype)
            for saved, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ]
        return *gradients, None, None, None, None, None, None


_HALVES = (torch.float16, torch.bfloat16)


def _factor(matrix: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A factor of `_matmul`, rounded to `dtype`; in float32 where products of that type have no float32 outputs."""
    matrix = matrix.to(dtype)
    return matrix if matrix.is_cuda and dtype in _HALVES else matrix.float()


def _matmul(a: torch.Tensor, b: torch.Tensor, add_to: torch.Tensor | None = None) -> torch.Tensor:
    """a @ b of two `_factor`s, in float32 also where these are not: rounded logits would be noise in a divergence."""
    with torch.autocast(a.device.type, enabled=False):
        if a.dtype in _HALVES:
            if add_to is not None:
                return torch.addmm(add_to, a, b, out_dtype=torch.float32, out=add_to)
            return torch.mm(a, b, out_dtype=torch.float32)
        return a @ b if add_to is None else add_to.addmm_(a, b)
