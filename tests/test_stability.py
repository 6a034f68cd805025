"""phi, Eq. 9, by hand; its mean over the step."""

import torch

from sgopd_trl.stability import masked_sum, stability_weight, unit_mean


def test_phi_by_hand():
    phi = stability_weight(torch.tensor([[0.0, 1.0, -2.0, 4.0, -8.0]]), tau=2.0)
    torch.testing.assert_close(phi, torch.tensor([[1.0, 1.0, 1.0, 0.5, 0.25]]))


def test_phi_is_detached():
    assert not stability_weight(torch.ones(1, 1, requires_grad=True), 0.5).requires_grad


def test_unit_mean_is_that_of_the_whole_step_however_it_is_cut():
    a2 = torch.tensor([[4.0, 1.0, 8.0], [1.0, 0.0, 0.0]])
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    phi = stability_weight(a2, 2.0)
    # valid phi: 1/2, 1, 1/4, 1 -> mean 11/16
    whole = unit_mean(phi, masked_sum(phi, mask), mask.sum())
    torch.testing.assert_close(whole, phi * 16 / 11)
    parts = [(phi[row : row + 1], mask[row : row + 1]) for row in range(2)]
    total = sum(masked_sum(*part) for part in parts)
    cut = torch.cat([unit_mean(part, total, mask.sum()) for part, _ in parts])
    assert torch.equal(whole, cut)
    torch.testing.assert_close(masked_sum(whole, mask) / mask.sum(), torch.tensor(1.0, dtype=torch.float64))


def test_padding_may_hold_anything():
    phi = torch.tensor([[1.0, torch.nan]])
    assert masked_sum(phi, torch.tensor([[1, 0]])).item() == 1.0


def test_no_valid_token_leaves_phi_alone():
    phi = torch.ones(1, 2)
    assert torch.equal(unit_mean(phi, 0.0, 0), phi)
