"""Length-ordered scoring: the plan, and that a plan never changes a log-probability."""

import pytest
import tiny
import torch
from accelerate import Accelerator
from reference import sequence_logps

from sgopd_trl.scoring import plan_batches, score_sequences, stack_scores


def test_plan_by_hand():
    # widths: max prompt + max completion; the budget counts padding
    assert plan_batches([2, 2, 2, 2], [8, 1, 4, 2], 16) == [[0], [2, 3], [1]]
    assert plan_batches([2, 2, 2, 2], [8, 1, 4, 2], 1000) == [[0, 2, 3, 1]]
    assert plan_batches([3], [50], 16) == [[0]]  # over the budget: alone
    assert plan_batches([], [], 16) == []


def test_plan_keeps_to_the_budget_and_to_every_row():
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(1, 40, (200,), generator=generator).tolist()
    completions = torch.randint(1, 400, (200,), generator=generator).tolist()
    plan = plan_batches(prompts, completions, 900)
    assert sorted(row for batch in plan for row in batch) == list(range(200))
    for batch in plan:
        width = max(prompts[row] for row in batch) + max(completions[row] for row in batch)
        assert len(batch) * width <= 900 or len(batch) == 1


@pytest.mark.parametrize("tokens_per_batch", [1, 40, 10_000])
def test_scores_are_those_of_unpadded_sequences(tokens_per_batch):
    from trl.trainer.utils import add_fused_lm_head

    model = tiny.make_model(None, seed=0)
    prompts = [[5, 6, 7], [9], [5, 5, 5, 5, 5], [8, 9]]
    completions = [[4, 3], [10, 11, 12, 13, 1], [], [2, 2, 2]]
    expected = [sequence_logps(model, *pair).detach() for pair in zip(prompts, completions, strict=True)]
    add_fused_lm_head(model)
    passes = []

    def logps(input_ids, attention_mask, length):
        passes.append(tuple(input_ids.shape))
        labels = input_ids.masked_fill(attention_mask == 0, -100)
        output = model(input_ids=input_ids, attention_mask=attention_mask, labels=labels, fused_lm_head=True)
        return output.log_probs[:, -length:]

    scored = score_sequences(logps, prompts, completions, tokens_per_batch, Accelerator(cpu=True))
    for values, ours in zip(expected, scored, strict=True):
        torch.testing.assert_close(ours, values, atol=1e-5, rtol=1e-5)
    assert all(rows * width <= tokens_per_batch or rows == 1 for rows, width in passes)
    assert sum(rows for rows, _ in passes) == 3  # nothing is asked for the empty one
    like = torch.zeros(4, 6)
    stacked = stack_scores(scored, like)
    assert stacked.shape == like.shape and (stacked[2] == 0).all()
    torch.testing.assert_close(stacked[0], torch.cat([expected[0], torch.zeros(4)]), atol=1e-5, rtol=1e-5)
