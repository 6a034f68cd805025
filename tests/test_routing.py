"""The router against hand-computed advantages, and its reductions to OPD, ExOPD and GRPO."""

import pytest
import torch
from test_advantages import A1, A2, R, T

from sgopd_trl.advantages import sign_flips
from sgopd_trl.routing import Router


def advantages(router: Router, coin=None, share=None) -> torch.Tensor:
    return router.advantages(A1, A2, router.consensus(A1, A2, coin, share), T, R)


EX = torch.tensor([[1.3, -1.4, 0.0], [0.3, -1.8, 0.8]])  # A_gopd(1.8)
EX_BASE = torch.tensor([[0.75, -1.125, 0.0], [0.4375, -1.25, 0.25]])  # A_gopd(1.25)


@pytest.mark.parametrize(
    ("router", "expected"),
    [
        # the paper's default: consensus extrapolated, conflict and neutral OPD
        (Router(), [[1.3, -1.0, 0.0], [0.5, -1.8, 0.0]]),
        (Router(beta=0.7), [[1.3, -0.7, 0.0], [0.35, -1.8, 0.0]]),
        (Router(disagree_mode="mask"), [[1.3, 0.0, 0.0], [0.0, -1.8, 0.0]]),
        # neutral tokens (a2 = 0) count as conflict unless they are told apart
        (Router(disagree_mode="grpo"), [[1.3, 0.5, 0.5], [-1.0, -1.8, -1.0]]),
        (Router(disagree_mode="grpo", neutral_mode="opd"), [[1.3, 0.5, 0.0], [-1.0, -1.8, 0.0]]),
        (Router(disagree_mode="preserve", lambda_base=1.25), [[1.3, -1.125, 0.0], [0.4375, -1.8, 0.25]]),
        (
            Router(disagree_mode="preserve", lambda_base=1.25, neutral_mode="opd"),
            [[1.3, -1.125, 0.0], [0.4375, -1.8, 0.0]],
        ),
        (Router(gate="positive"), [[1.3, -1.0, 0.0], [0.5, -1.0, 0.0]]),
        # four cells: ++ 1.8, +- 1.25, -+ 1.0, -- 1.8
        (Router(gate="two_level", cells=(1.8, 1.25, 1.0, 1.8)), [[1.3, -1.125, 0.0], [0.5, -1.8, 0.0]]),
        # a2 + 2 a1 where the signs agree; no reference is read
        (Router(agree_mode="reinforce", verifier_weight=2.0), [[1.5, -1.0, 0.0], [0.5, -3.0, 0.0]]),
        (Router(agree_mode="reinforce", disagree_mode="mask"), [[1.0, 0.0, 0.0], [0.0, -2.0, 0.0]]),
        (Router(agree_mode="reinforce", gate="positive"), [[1.0, -1.0, 0.0], [0.5, -1.0, 0.0]]),
        (Router(gate="never", beta=0.7), [[0.35, -0.7, 0.0], [0.35, -0.7, 0.0]]),
    ],
)
def test_routed_advantages_by_hand(router, expected):
    torch.testing.assert_close(advantages(router), torch.tensor(expected))


def test_random_gate_extrapolates_where_the_coin_says():
    coin = torch.tensor([[0.9, 0.1, 0.9], [0.1, 0.9, 0.9]])
    expected = torch.where(coin < 0.5, EX, A2)
    torch.testing.assert_close(advantages(Router(gate="random"), coin, 0.5), expected)


@pytest.mark.parametrize("gate", [None, "sign", "positive", "random", "two_level", "never"])
@pytest.mark.parametrize("disagree_mode", ["interp", "preserve", "grpo", "mask"])
@pytest.mark.parametrize("neutral_mode", ["conflict", "opd"])
def test_every_extrapolated_token_has_a_weight_over_the_vocabulary(gate, disagree_mode, neutral_mode):
    """So that with the full-vocabulary reverse KL no sampled token's reference is read."""
    router = Router(gate, 1.8, 1.25, disagree_mode, beta=0.0, neutral_mode=neutral_mode, cells=(1.5, 1.2, 1.1, 1.3))
    consensus = router.consensus(A1, A2, torch.tensor([[0.9, 0.1, 0.9], [0.1, 0.9, 0.1]]), 0.5)
    weights, strengths = router.vocabulary_weights(A1, A2, consensus), router.strengths(A1, A2, consensus)
    assert (weights[strengths != 1] == 1).all()
    left = router.advantages(A1, A2, consensus, T, R).masked_fill(weights != 0, 0.0)
    assert torch.equal(left, router.advantages(A1, A2, consensus, T, T).masked_fill(weights != 0, 0.0))


def test_reductions():
    assert torch.equal(advantages(Router(gate=None)), A2)  # no gate at lambda 1: OPD
    torch.testing.assert_close(advantages(Router(gate=None, lambda_base=1.25)), EX_BASE)  # lambda > 1: ExOPD
    assert torch.equal(advantages(Router(lambda_high=1.0)), A2)  # nothing to extrapolate: OPD
    assert torch.equal(advantages(Router(gate="never", disagree_mode="grpo")), A1.unsqueeze(1).expand(2, 3))  # GRPO


def test_reference_is_used_only_where_a_strength_differs_from_one():
    assert not Router(gate=None).uses_reference
    assert not Router(lambda_high=1.0).uses_reference
    assert not Router(gate="never").uses_reference
    assert not Router(agree_mode="reinforce").uses_reference
    assert Router(agree_mode="reinforce", disagree_mode="preserve", lambda_base=1.25).uses_reference
    assert Router(gate="never", disagree_mode="preserve", lambda_base=1.25).uses_reference
    assert Router(gate=None, lambda_base=1.25).uses_reference
    assert Router(gate="two_level", cells=(1.0, 1.0, 1.0, 1.5)).uses_reference
    router = Router()
    strengths = router.strengths(A1, A2, router.consensus(A1, A2))
    torch.testing.assert_close(strengths, torch.tensor([[1.8, 1.0, 1.0], [1.0, 1.8, 1.0]]))
    # a group whose rewards are all equal has no consensus token, so its reference is never asked
    zero = torch.zeros(2)
    assert (router.strengths(zero, A2, router.consensus(zero, A2)) == 1).all()


def test_reinforced_consensus_never_flips_its_sign():
    generator = torch.Generator().manual_seed(0)
    a1, a2 = torch.randn(64, generator=generator), 0.1 * torch.randn(64, 16, generator=generator)
    router = Router(agree_mode="reinforce", verifier_weight=3.0)
    consensus = router.consensus(a1, a2)
    routed = router.advantages(a1, a2, consensus, a2)
    assert consensus.any() and not consensus.all()
    assert not sign_flips(consensus, a2, routed).any()
    assert torch.equal(routed[~consensus], a2[~consensus])


def test_reinforced_consensus_reads_certificates_where_the_gate_does():
    certificates = torch.tensor([[1.0, -1.0, 1.0], [1.0, 0.0, -1.0]])
    router = Router(agree_mode="reinforce", disagree_mode="mask", neutral_mode="opd")
    routed = router.advantages(certificates, A2, router.consensus(certificates, A2), T, outcome=A1)
    torch.testing.assert_close(routed, torch.tensor([[1.5, -2.0, 0.0], [1.5, -1.0, 0.0]]))


def test_neutral_modes_agree_at_beta_one():
    zero = torch.tensor([0.0, -1.0])
    routers = [Router(neutral_mode=mode) for mode in ("conflict", "opd")]
    first, second = (router.advantages(zero, A2, router.consensus(zero, A2), T, R) for router in routers)
    assert torch.equal(first, second)
