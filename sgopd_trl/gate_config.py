"""The settings of `SGOPDConfig` that decide what each token gets: the sign-consistency gate, Eq. (4) to (9)."""

import math
from dataclasses import dataclass, field

from .advantages import AGREE_MODES, DISAGREE_MODES, GATES, NEUTRAL_MODES
from .routing import Router


@dataclass
class GateConfig:
    """Which tokens count as consensus, and what these and the others get; docs/method.md has the equations."""

    sign_gated_extrapolation: bool = field(
        default=True,
        metadata={
            "help": "Route tokens by the gate of Eq. (4). Off: G-OPD at `lambda_base` on every token, which is OPD at 1 "
            "and ExOPD beyond."
        },
    )
    gate: str = field(
        default="sign",
        metadata={
            "help": "Which tokens count as consensus. 'sign': a1 * a2 > 0 (Eq. 4). 'positive': a1 > 0 and a2 > 0. "
            "'random': a seeded coin with the sign gate's share, a control. 'two_level': four sign cells with "
            "`gate_cell_lambdas` (Appendix H). 'never': none, so that every token takes the fallback.",
            "choices": list(GATES),
        },
    )
    lambda_high: float = field(
        default=1.8,
        metadata={"help": "lambda_high: extrapolation strength on consensus tokens, Eq. (6). Table 3: 1.8."},
    )
    lambda_base: float = field(
        default=1.0,
        metadata={
            "help": "lambda_base: strength without a gate, and of `disagree_mode='preserve'`. Ours: 1.0, plain OPD."
        },
    )
    gate_cell_lambdas: list[float] | None = field(
        default=None,
        metadata={
            "help": "Strengths of the sign cells (a1 a2) ++, +-, -+, -- of gate='two_level' (Appendix H), which "
            "does not read lambda_high then. Ours: lambda_high, lambda_base, lambda_base, lambda_high."
        },
    )
    agree_mode: str = field(
        default="extrapolate",
        metadata={
            "help": "What consensus tokens get. 'extrapolate': G-OPD at lambda_high (Eq. 6). 'reinforce': a2 + "
            "`verifier_weight` * a1, the verifier's own gradient where the teacher agrees with it; no reference is "
            "needed. Ours (docs/experiments.md).",
            "choices": list(AGREE_MODES),
        },
    )
    verifier_weight: float = field(
        default=1.0,
        metadata={"help": "Weight of a1, in nats for each unit, with agree_mode='reinforce'. Ours: 1."},
    )
    disagree_mode: str = field(
        default="interp",
        metadata={
            "help": "Fallback on conflict tokens. 'interp': beta * a2 (Eq. 7). 'preserve': G-OPD at lambda_base. "
            "'grpo': a1. 'mask': 0. Table 3: 'interp'.",
            "choices": list(DISAGREE_MODES),
        },
    )
    disagree_interp_beta: float = field(
        default=1.0,
        metadata={"help": "beta of disagree_mode='interp', in [0, 1], Eq. (7). Table 3: 1. Not TRL's KL `beta`."},
    )
    neutral_mode: str = field(
        default="conflict",
        metadata={
            "help": "Tokens with a1 * a2 = 0. 'conflict': the fallback, as Eq. (4) reads. 'opd': a2, as Figure 7's "
            "'unaffected by the gate'. The same thing at beta = 1.",
            "choices": list(NEUTRAL_MODES),
        },
    )
    stability_tau: float | None = field(
        default=10.0,
        metadata={"help": "tau, in nats, of the stability weight phi of Eq. (9); None switches phi off. Ours: 10."},
    )

    def check_gate(self) -> None:
        """Called once all settings are known.

        Raises:
            ValueError: for a value that is out of range, and for settings that do not go together.
        """
        for name, allowed in (
            ("gate", GATES),
            ("agree_mode", AGREE_MODES),
            ("disagree_mode", DISAGREE_MODES),
            ("neutral_mode", NEUTRAL_MODES),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"`{name}` must be one of {list(allowed)}, got {getattr(self, name)!r}.")
        for name, ok, expected in (
            ("lambda_high", self.lambda_high >= 1, ">= 1"),
            ("lambda_base", self.lambda_base >= 1, ">= 1"),
            ("verifier_weight", self.verifier_weight > 0, "> 0"),
            ("disagree_interp_beta", 0 <= self.disagree_interp_beta <= 1, "in [0, 1]"),
            ("stability_tau", self.stability_tau is None or self.stability_tau > 0, "None or > 0"),
        ):
            if not ok:
                raise ValueError(f"`{name}` must be {expected}, got {getattr(self, name)!r}.")
        cells = self.gate_cell_lambdas
        if cells is not None and (len(cells) != 4 or not all(1 <= lam < math.inf for lam in cells)):
            raise ValueError(f"`gate_cell_lambdas` must be four finite values >= 1, got {cells!r}.")
        self._check_effect()
        if self.agree_mode == "reinforce":
            self._check_reinforce()

    def _check_effect(self) -> None:
        """A setting that would have no effect is refused: a run would be taken for what it is not."""
        if self.gate != "sign" and not self.sign_gated_extrapolation:
            raise ValueError(
                f"`gate` = {self.gate!r} has no effect with `sign_gated_extrapolation=False`, which is G-OPD on every token. "
                "Set `sign_gated_extrapolation=True`, or leave `gate` at 'sign'."
            )
        if self.gate_cell_lambdas is not None and self.gate != "two_level":
            raise ValueError(
                f"`gate_cell_lambdas` = {self.gate_cell_lambdas!r} needs `gate='two_level'`, got {self.gate!r}. Set that, or "
                "leave `gate_cell_lambdas` out."
            )
        if self.verifier_weight != 1 and self.agree_mode != "reinforce":
            raise ValueError(
                f"`verifier_weight` = {self.verifier_weight!r} needs `agree_mode='reinforce'`, got {self.agree_mode!r}. Set "
                "that, or leave `verifier_weight` at 1."
            )

    def _check_reinforce(self) -> None:
        for name, ok, expected in (
            ("sign_gated_extrapolation", self.sign_gated_extrapolation, "True: without the gate no token is consensus"),
            ("gate", self.gate not in ("two_level", "never"), "'sign', 'positive' or 'random'"),
            ("reverse_kl", self.reverse_kl == "sampled_token", "'sampled_token': a1 belongs to the sampled token"),
        ):
            if not ok:
                raise ValueError(
                    f"With `agree_mode='reinforce'`, `{name}` must be {expected}, got {getattr(self, name)!r}."
                )

    def router(self) -> Router:
        """The routing these settings describe (Eq. 4 to 8)."""
        cells = self.gate_cell_lambdas or [self.lambda_high, self.lambda_base, self.lambda_base, self.lambda_high]
        return Router(
            gate=self.gate if self.sign_gated_extrapolation else None,
            lambda_high=self.lambda_high,
            lambda_base=self.lambda_base,
            disagree_mode=self.disagree_mode,
            beta=self.disagree_interp_beta,
            neutral_mode=self.neutral_mode,
            cells=tuple(cells),
            agree_mode=self.agree_mode,
            verifier_weight=self.verifier_weight,
        )
