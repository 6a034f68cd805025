r"""Token-level advantages: from log-probabilities to the routed advantage of Eq. 8.

Notation (all tensors in the reward convention: an advantage is to be *ascended*):

    S, T, R : (B, L) log-probability, in nats, of the sampled token under student, teacher and reference
    a1      : (B,)   group-normalised outcome advantage of GRPO (Section 3)
    a2      : (B, L) reverse-KL advantage, T - S
    lam     : (B, L) extrapolation strength lambda of each token; 1 where the reference plays no part

The functions are pure and carry no gradient: PPO's ratio, in TRL's loss, is the only path to the student.
"""

from typing import Literal

import torch


Gate = Literal["sign", "positive", "random", "two_level", "never"]
AgreeMode = Literal["extrapolate", "reinforce"]
DisagreeMode = Literal["interp", "preserve", "grpo", "mask"]
NeutralMode = Literal["conflict", "opd"]

GATES: tuple[str, ...] = ("sign", "positive", "random", "two_level", "never")
AGREE_MODES: tuple[str, ...] = ("extrapolate", "reinforce")
DISAGREE_MODES: tuple[str, ...] = ("interp", "preserve", "grpo", "mask")
NEUTRAL_MODES: tuple[str, ...] = ("conflict", "opd")

AGREE, DISAGREE, NEUTRAL = 1, -1, 0


def reverse_kl_advantage(teacher_logps: torch.Tensor, student_logps: torch.Tensor) -> torch.Tensor:
    """Reverse-KL advantage `a2 = T - S`, Eq. (1) in the reward convention. This function owns the sign of a2.

    Positive where the teacher likes the sampled token more than the student does. The paper prints `S - T`, a cost;
    ascending that drives the student away from the teacher (docs/method.md, deviation 1).

    Args:
        teacher_logps: (B, L) nats. student_logps: (B, L) nats.

    Returns:
        (B, L) nats, detached.
    """
    return (teacher_logps - student_logps).detach()


def g_opd_advantage(
    a2: torch.Tensor, teacher_logps: torch.Tensor, ref_logps: torch.Tensor, lam: torch.Tensor | float
) -> torch.Tensor:
    """G-OPD advantage `a2 + (lam - 1)(T - R)`, Eq. (5): OPD at `lam = 1`, ExOPD beyond.

    Args:
        a2, teacher_logps, ref_logps: (B, L) nats. lam: (B, L) or a scalar.

    Returns:
        (B, L) nats, detached.
    """
    return (a2 + (lam - 1) * (teacher_logps - ref_logps)).detach()


def token_classes(a1: torch.Tensor, a2: torch.Tensor) -> torch.Tensor:
    """Sign agreement of verifier and teacher, Eq. (4): `AGREE` (1), `DISAGREE` (-1) or `NEUTRAL` (0, either is 0).

    Signs are multiplied, not values, so that two small advantages do not underflow to "neutral".

    Args:
        a1: (B,) or (B, L). a2: (B, L).

    Returns:
        (B, L) in {-1, 0, 1}.
    """
    return torch.sign(_per_token(a1, a2)) * torch.sign(a2)


def consensus_tokens(
    gate: Gate | None,
    a1: torch.Tensor,
    a2: torch.Tensor,
    coin: torch.Tensor | None = None,
    share: torch.Tensor | float | None = None,
) -> torch.Tensor:
    """The gate `g_t`, Eq. (4), and its controls.

    `"sign"` and `"two_level"`: a1 * a2 > 0. `"positive"`: a1 > 0 and a2 > 0. `"random"`: `coin < share`, a control that
    extrapolates as many tokens as the sign gate, but not the same ones. `"never"`: none. `None` (no gate): every token.

    Args:
        a1: (B,) or (B, L). a2: (B, L). coin: (B, L) uniform in [0, 1), for `"random"`. share: consensus share of the
            sign gate over the whole optimizer step, for `"random"`.

    Returns:
        (B, L) bool.

    Raises:
        ValueError: for an unknown gate, or `"random"` without coin and share.
    """
    if gate is None:
        return torch.ones_like(a2, dtype=torch.bool)
    if gate in ("sign", "two_level"):
        return token_classes(a1, a2) == AGREE
    if gate == "positive":
        return (_per_token(a1, a2) > 0) & (a2 > 0)
    if gate == "random":
        if coin is None or share is None:
            raise ValueError("gate='random' needs `coin` (B, L) and `share`, the sign gate's consensus share.")
        return coin < share
    if gate == "never":
        return torch.zeros_like(a2, dtype=torch.bool)
    raise ValueError(f"Unknown gate {gate!r}. Expected None or one of {GATES}.")


def two_level_strengths(a1: torch.Tensor, a2: torch.Tensor, cells: tuple[float, float, float, float]) -> torch.Tensor:
    """Strength of each token by its sign cell: the two-level gate of Appendix H.

    Args:
        a1: (B,) or (B, L). a2: (B, L). cells: lambda of (a1 > 0, a2 > 0), (+, -), (-, +) and (-, -).

    Returns:
        (B, L); 1 where a1 or a2 is exactly 0.
    """
    a1 = _per_token(a1, a2)
    lam = torch.ones_like(a2)
    signs = ((a1 > 0, a2 > 0), (a1 > 0, a2 < 0), (a1 < 0, a2 > 0), (a1 < 0, a2 < 0))
    for (first, second), strength in zip(signs, cells, strict=True):
        lam = torch.where(first & second, strength, lam)
    return lam


def reinforced_advantage(a1: torch.Tensor, a2: torch.Tensor, weight: float) -> torch.Tensor:
    """Consensus advantage `a2 + weight * a1` of `agree_mode="reinforce"`, in the place of Eq. (6). Ours.

    Where the signs of a1 and a2 agree the sum has their sign too, whatever the weight: no sign flips.

    Args:
        a1: (B,) or (B, L), what the gate reads. a2: (B, L) nats. weight: nats for each unit of a1.

    Returns:
        (B, L) nats, detached.
    """
    return (a2 + weight * _per_token(a1, a2)).detach()


def conflict_advantage(
    mode: DisagreeMode, a1: torch.Tensor, a2: torch.Tensor, preserved: torch.Tensor, beta: float
) -> torch.Tensor:
    """Advantage of a conflict token, Eq. (7) and the fallbacks of Table 3.

    `"interp"`: beta * a2. `"preserve"`: `preserved`. `"grpo"`: a1. `"mask"`: 0.

    Args:
        a1: (B,) or (B, L). a2: (B, L). preserved: (B, L) G-OPD advantage at lambda_base.

    Returns:
        (B, L).

    Raises:
        ValueError: for an unknown mode.
    """
    if mode == "interp":
        return beta * a2
    if mode == "preserve":
        return preserved
    if mode == "grpo":
        return _per_token(a1, a2)
    if mode == "mask":
        return torch.zeros_like(a2)
    raise ValueError(f"Unknown disagree_mode {mode!r}. Expected one of {DISAGREE_MODES}.")


def route(consensus: torch.Tensor, a_cons: torch.Tensor, a_conf: torch.Tensor) -> torch.Tensor:
    """Routed advantage `g * A_cons + (1 - g) * A_conf`, Eq. (8), without letting a masked non-finite value through.

    Args:
        consensus: (B, L) bool. a_cons, a_conf: (B, L).

    Returns:
        (B, L).
    """
    return torch.where(consensus, a_cons, a_conf)


def sign_flips(consensus: torch.Tensor, a2: torch.Tensor, a_cons: torch.Tensor) -> torch.Tensor:
    """Consensus tokens whose extrapolated advantage points against a2 (a2 > 0 but T < R, or the reverse).

    Returns:
        (B, L) bool.
    """
    return consensus & (torch.sign(a_cons) * torch.sign(a2) < 0)


def _per_token(a1: torch.Tensor, a2: torch.Tensor) -> torch.Tensor:
    """a1 as (B, L): GRPO's constant along the sequence."""
    a1 = a1.detach()
    return (a1.unsqueeze(1) if a1.dim() == 1 else a1).expand_as(a2)
