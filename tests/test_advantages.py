"""Eq. 1 and 4 to 8 against cases computed by hand."""

import pytest
import torch

from sgopd_trl.advantages import (
    conflict_advantage,
    consensus_tokens,
    g_opd_advantage,
    reverse_kl_advantage,
    route,
    sign_flips,
    token_classes,
    two_level_strengths,
)


# Two sequences of three tokens: the first was right (a1 > 0), the second wrong.
S = torch.tensor([[-1.0, -2.0, -1.0], [-1.0, -2.0, -1.0]])
T = torch.tensor([[-0.5, -3.0, -1.0], [-0.5, -3.0, -1.0]])
R = torch.tensor([[-1.5, -2.5, -1.0], [-0.25, -2.0, -2.0]])
A1 = torch.tensor([0.5, -1.0])
A2 = torch.tensor([[0.5, -1.0, 0.0], [0.5, -1.0, 0.0]])


def test_a2_is_positive_where_the_teacher_likes_the_token_more():
    assert torch.equal(reverse_kl_advantage(T, S), A2)


def test_g_opd_by_hand_and_its_reductions():
    by_hand = torch.tensor([[1.3, -1.4, 0.0], [0.3, -1.8, 0.8]])  # a2 + 0.8 (T - R)
    torch.testing.assert_close(g_opd_advantage(A2, T, R, 1.8), by_hand)
    assert torch.equal(g_opd_advantage(A2, T, R, 1.0), A2)  # OPD
    torch.testing.assert_close(g_opd_advantage(A2, T, S, 2.0), 2 * A2)  # R = S: ExOPD scales a2 by lambda


def test_classes_by_hand_and_without_underflow():
    assert token_classes(A1, A2).tolist() == [[1, -1, 0], [-1, 1, 0]]
    tiny = torch.full((1, 1), 1e-30)
    assert token_classes(torch.tensor([1e-30]), tiny).item() == 1
    assert token_classes(torch.zeros(1), tiny).item() == 0


@pytest.mark.parametrize(
    ("gate", "expected"),
    [
        (None, [[True, True, True], [True, True, True]]),
        ("sign", [[True, False, False], [False, True, False]]),
        ("two_level", [[True, False, False], [False, True, False]]),
        ("positive", [[True, False, False], [False, False, False]]),
        ("never", [[False, False, False], [False, False, False]]),
    ],
)
def test_gates_by_hand(gate, expected):
    assert consensus_tokens(gate, A1, A2).tolist() == expected


def test_random_gate_follows_its_coin_and_share():
    coin = torch.tensor([[0.1, 0.5, 0.9], [0.3, 0.29, 0.31]])
    assert consensus_tokens("random", A1, A2, coin, 0.3).tolist() == [[True, False, False], [False, True, False]]
    with pytest.raises(ValueError, match="coin"):
        consensus_tokens("random", A1, A2)
    with pytest.raises(ValueError, match="'majority'"):
        consensus_tokens("majority", A1, A2)


def test_two_level_strengths_by_hand():
    lam = two_level_strengths(A1, A2, (1.1, 1.2, 1.3, 1.4))
    torch.testing.assert_close(lam, torch.tensor([[1.1, 1.2, 1.0], [1.3, 1.4, 1.0]]))


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("interp", [[0.35, -0.7, 0.0], [0.35, -0.7, 0.0]]),
        ("preserve", [[9.0, 9.0, 9.0], [9.0, 9.0, 9.0]]),
        ("grpo", [[0.5, 0.5, 0.5], [-1.0, -1.0, -1.0]]),
        ("mask", [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]),
    ],
)
def test_conflict_modes_by_hand(mode, expected):
    fallback = conflict_advantage(mode, A1, A2, torch.full_like(A2, 9.0), beta=0.7)
    torch.testing.assert_close(fallback, torch.tensor(expected))


def test_unknown_conflict_mode_is_refused():
    with pytest.raises(ValueError, match="'average'"):
        conflict_advantage("average", A1, A2, A2, 1.0)


def test_route_takes_consensus_or_conflict_and_no_nan_through_the_other():
    consensus = torch.tensor([[True, False]])
    routed = route(consensus, torch.tensor([[1.0, torch.nan]]), torch.tensor([[torch.nan, 2.0]]))
    assert routed.tolist() == [[1.0, 2.0]]


def test_sign_flips_by_hand():
    a_cons = torch.tensor([[-0.1, -1.0, 3.0]])
    assert sign_flips(torch.tensor([[True, True, False]]), torch.tensor([[0.5, -0.5, -3.0]]), a_cons).tolist() == [
        [True, False, False]
    ]


def test_no_gradient_flows_through_advantages():
    student = S.clone().requires_grad_()
    teacher = T.clone().requires_grad_()
    a1 = A1.clone().requires_grad_()
    a2 = reverse_kl_advantage(teacher, student)
    assert not a2.requires_grad
    assert not g_opd_advantage(a2, teacher, R.clone().requires_grad_(), 1.8).requires_grad
    assert not consensus_tokens("sign", a1, a2).requires_grad
    assert not conflict_advantage("grpo", a1, a2, a2, 1.0).requires_grad
