"""Which prompts the teacher gets, and how its rollouts are shared out."""

import pytest
import torch
from datasets import Dataset

from sgopd_trl.teacher_loss import teacher_cross_entropy
from sgopd_trl.teacher_sampling import TeacherRollout, draw_teacher_prompts, prompt_key, share_rollouts, teacher_batches


DATA = Dataset.from_dict({"prompt": ["a", "b", "c", "d", "e", "a"]})


def test_drawn_prompts_are_distinct_seeded_and_not_the_students():
    drawn = [row["prompt"] for row in draw_teacher_prompts(DATA, 3, {"b"}, seed=0, ordinal=1)]
    assert len(set(drawn)) == 3 and "b" not in drawn
    assert drawn == [row["prompt"] for row in draw_teacher_prompts(DATA, 3, {"b"}, seed=0, ordinal=1)]
    draws = {tuple(row["prompt"] for row in draw_teacher_prompts(DATA, 3, {"b"}, 0, n)) for n in range(1, 9)}
    assert len(draws) > 1


def test_too_few_prompts_are_named():
    with pytest.raises(ValueError, match="only 5 distinct"):
        draw_teacher_prompts(DATA, 5, {"b"}, seed=0, ordinal=1)


def test_equal_conversations_have_one_key():
    assert prompt_key([{"role": "user", "content": "x"}]) == prompt_key([{"content": "x", "role": "user"}])


def rollouts(lengths):
    return [TeacherRollout([7], list(range(2, 2 + length)), True) for length in lengths]


def test_rollouts_are_shared_longest_first_over_processes_then_micro_steps():
    table = share_rollouts(rollouts([1, 5, 3]), micro_steps=2, num_processes=2)
    lengths = [[[len(r.completion_ids) for r in cell] for cell in row] for row in table]
    assert lengths == [[[5], [3]], [[1], []]]
    assert share_rollouts([], 2, 2) == [[[], []], [[], []]]
    more = share_rollouts(rollouts([1, 1, 1]), micro_steps=1, num_processes=2)
    assert [len(cell) for cell in more[0]] == [2, 1]


@pytest.mark.parametrize(("micro_steps", "processes"), [(1, 1), (2, 1), (4, 1), (1, 2), (2, 2), (4, 4)])
@pytest.mark.parametrize("reduction", ["token_mean", "sequence_mean", "sum"])
def test_every_cut_adds_up_to_the_same_loss_with_the_same_number_of_passes(micro_steps, processes, reduction):
    """L_SLT of a stand-in model that gives token i the log-probability -i."""
    expected = {"token_mean": 2 + 3 + 2 + 3 + 4 + 2, "sequence_mean": 5 / 2 + 9 / 3 + 2, "sum": 16.0}[reduction]
    expected = expected / {"token_mean": 6, "sequence_mean": 3, "sum": 1}[reduction]
    per_process = [
        teacher_batches(
            rollouts([2, 3, 1]),
            micro_steps=micro_steps,
            num_processes=processes,
            process_index=index,
            reduction=reduction,
            pad_token_id=0,
            device=torch.device("cpu"),
        )
        for index in range(processes)
    ]
    total = 0.0
    for batches in per_process:
        assert len(batches) == micro_steps
        assert [b is None for b in batches] == [b is None for b in per_process[0]]
        for batch in filter(None, batches):
            length = batch["weights"].size(1)
            total += teacher_cross_entropy(-batch["input_ids"][:, -length:].float(), batch["weights"]).item()
    assert total == pytest.approx(expected)
