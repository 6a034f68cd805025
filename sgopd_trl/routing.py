"""One object that holds a run's routing settings and applies Eq. 4 to 8 in the order the trainer needs them."""

from dataclasses import dataclass

import torch

from .advantages import (
    NEUTRAL,
    AgreeMode,
    DisagreeMode,
    Gate,
    NeutralMode,
    conflict_advantage,
    consensus_tokens,
    g_opd_advantage,
    reinforced_advantage,
    route,
    token_classes,
    two_level_strengths,
)


@dataclass(frozen=True)
class Router:
    """Routes every token to its advantage.

    Args:
        gate: which tokens count as consensus; `None` is no gate at all (G-OPD at `lambda_base` everywhere).
        lambda_high: strength on consensus tokens, Eq. (6).
        lambda_base: strength without a gate, and of the fallback `"preserve"`.
        disagree_mode, beta: fallback on conflict tokens, Eq. (7).
        neutral_mode: what tokens with a1 * a2 = 0 get: the fallback (Eq. 4 read literally) or plain OPD.
        cells: strengths of the four sign cells (++, +-, -+, --) of the two-level gate.
        agree_mode, verifier_weight: what consensus tokens get: Eq. (6), or a2 + verifier_weight * a1.
    """

    gate: Gate | None = "sign"
    lambda_high: float = 1.8
    lambda_base: float = 1.0
    disagree_mode: DisagreeMode = "interp"
    beta: float = 1.0
    neutral_mode: NeutralMode = "conflict"
    cells: tuple[float, float, float, float] | None = None
    agree_mode: AgreeMode = "extrapolate"
    verifier_weight: float = 1.0

    @property
    def uses_reference(self) -> bool:
        """Whether any token can be extrapolated, that is, whether a reference model is needed at all."""
        strengths = [self.lambda_base] if self.gate is None or self.disagree_mode == "preserve" else []
        if self.gate == "two_level":
            strengths += self.cells
        elif self.gate not in (None, "never"):
            strengths.append(self._consensus_strength)
        return any(lam != 1 for lam in strengths)

    @property
    def _consensus_strength(self) -> float:
        return self.lambda_high if self.agree_mode == "extrapolate" else 1.0

    def consensus(
        self, a1: torch.Tensor, a2: torch.Tensor, coin: torch.Tensor | None = None, share: float | None = None
    ) -> torch.Tensor:
        """Consensus tokens, (B, L) bool, Eq. (4). `coin` and `share` as in `consensus_tokens`."""
        return consensus_tokens(self.gate, a1, a2, coin, share)

    def strengths(self, a1: torch.Tensor, a2: torch.Tensor, consensus: torch.Tensor) -> torch.Tensor:
        """Extrapolation strength of each token, (B, L): exactly 1 where no reference log-probability is needed."""
        if self.gate is None:
            return torch.full_like(a2, self.lambda_base)
        conflict = torch.full_like(a2, self.lambda_base if self.disagree_mode == "preserve" else 1.0)
        neutral = token_classes(a1, a2) == NEUTRAL
        if self.neutral_mode == "opd":
            conflict = conflict.masked_fill(neutral, 1.0)
        if self.gate == "two_level":
            return torch.where(neutral, conflict, two_level_strengths(a1, a2, self.cells))
        return torch.where(consensus, torch.full_like(a2, self._consensus_strength), conflict)

    def may_extrapolate(self, a1: torch.Tensor) -> torch.Tensor:
        """Sequences of which a token could be extrapolated, (B,) bool, as far as a1 tells before a2 is known.

        Args:
            a1: (B,) or (B, L).
        """
        if a1.dim() == 2:
            return self.may_extrapolate(a1.flatten()).view_as(a1).any(1)
        a2 = torch.tensor([-1.0, 0.0, 1.0], device=a1.device).expand(len(a1), -1)
        # The coin may call any token consensus.
        consensus = torch.ones_like(a2, dtype=torch.bool) if self.gate == "random" else self.consensus(a1, a2)
        return (self.strengths(a1, a2, consensus) != 1).any(1)

    def advantages(
        self,
        a1: torch.Tensor,
        a2: torch.Tensor,
        consensus: torch.Tensor,
        teacher_logps: torch.Tensor,
        ref_logps: torch.Tensor | None = None,
        outcome: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Routed advantage of every token, (B, L), Eq. (8).

        Args:
            a1: (B,) or (B, L), the gate's: of the outcome, or certificates in its place. outcome: (B,), what the fallback
                `"grpo"` ascends; default: `a1`. a2, teacher_logps: (B, L). consensus: (B, L) bool. ref_logps: (B, L), read only where
                `strengths` differs from 1; may be `None` when `uses_reference` is false.
        """
        extrapolated = a2
        if self.uses_reference:
            extrapolated = g_opd_advantage(a2, teacher_logps, ref_logps, self.strengths(a1, a2, consensus))
        if self.gate is None:
            return extrapolated
        a_cons = extrapolated
        if self.agree_mode == "reinforce":
            a_cons = reinforced_advantage(a1, a2, self.verifier_weight)
        a_conf = conflict_advantage(self.disagree_mode, a1 if outcome is None else outcome, a2, extrapolated, self.beta)
        neutral = token_classes(a1, a2) == NEUTRAL
        if self.neutral_mode == "opd":
            a_conf = torch.where(neutral, a2, a_conf)
        return route(self._extrapolated(a1, a2, consensus), a_cons, a_conf)

    def vocabulary_weights(self, a1: torch.Tensor, a2: torch.Tensor, consensus: torch.Tensor) -> torch.Tensor:
        """What each token's expectation over the vocabulary, at its strength, is multiplied with, (B, L).

        `strengths` and this are Eq. (8) for the full-vocabulary reverse KL: beta for `"interp"`; 0 for the fallbacks that have
        no such form, `"mask"` and `"grpo"`.

        Args:
            as `advantages`.
        """
        if self.gate is None:
            return torch.ones_like(a2)
        fallback = {"interp": self.beta, "preserve": 1.0, "grpo": 0.0, "mask": 0.0}[self.disagree_mode]
        weights = torch.full_like(a2, fallback)
        if self.neutral_mode == "opd":
            weights = weights.masked_fill(token_classes(a1, a2) == NEUTRAL, 1.0)
        return weights.masked_fill(self._extrapolated(a1, a2, consensus), 1.0)

    def _extrapolated(self, a1: torch.Tensor, a2: torch.Tensor, consensus: torch.Tensor) -> torch.Tensor:
        """Tokens that do not take the fallback: the two-level gate extrapolates all four sign cells, each by its own."""
        return token_classes(a1, a2) != NEUTRAL if self.gate == "two_level" else consensus
