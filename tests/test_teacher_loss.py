"""L_SLT, Eq. 2, its reductions and CHORD's weight, by hand."""

import math

import pytest
import torch

from sgopd_trl.teacher_loss import chord_weight, teacher_cross_entropy, teacher_token_weights


LOGPS = torch.tensor([[-1.0, -2.0, -4.0], [-3.0, -9.0, -9.0]])
MASK = torch.tensor([[1, 1, 1], [1, 0, 0]])


@pytest.mark.parametrize(("reduction", "expected"), [("sum", 10.0), ("token_mean", 2.5), ("sequence_mean", 8 / 3)])
def test_reductions_by_hand_and_over_any_cut(reduction, expected):
    weights = teacher_token_weights(MASK, reduction, total_tokens=4, total_sequences=2)
    assert teacher_cross_entropy(LOGPS, weights).item() == pytest.approx(expected)
    cut = [
        teacher_cross_entropy(LOGPS[row], teacher_token_weights(MASK[row : row + 1], reduction, 4, 2)[0])
        for row in range(2)
    ]
    assert sum(cut).item() == pytest.approx(expected)


def test_chord_weight_by_hand_and_detached():
    logps = torch.log(torch.tensor([0.5, 0.9, 1.0])).requires_grad_()
    torch.testing.assert_close(chord_weight(logps).detach(), torch.tensor([0.25, 0.09, 0.0]))
    teacher_cross_entropy(logps, torch.ones(3), phi="chord").backward()
    # were p (1 - p) not detached, the gradient would differ from -p (1 - p)
    torch.testing.assert_close(logps.grad, torch.tensor([-0.25, -0.09, 0.0]))


def test_gradient_of_the_cross_entropy():
    logps = LOGPS.clone().requires_grad_()
    teacher_cross_entropy(logps, teacher_token_weights(MASK, "token_mean", 4, 2)).backward()
    torch.testing.assert_close(logps.grad, -MASK / 4)


def test_no_rollout_gives_zero():
    weights = teacher_token_weights(torch.zeros(1, 3), "token_mean", 0, 0)
    assert teacher_cross_entropy(LOGPS[:1], weights).item() == 0


def test_unknown_settings_are_refused():
    with pytest.raises(ValueError, match="'median'"):
        teacher_token_weights(MASK, "median", 4, 2)
    with pytest.raises(ValueError, match="'dft'"):
        teacher_cross_entropy(LOGPS, MASK.float(), phi="dft")
    assert math.isfinite(teacher_cross_entropy(LOGPS, MASK.float()).item())
