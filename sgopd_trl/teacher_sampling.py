"""Phased teacher sampling, the parts without a model: which prompts the teacher gets, and who trains on its rollouts."""

import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset

from .scoring import join_padded
from .seeded_sampling import rollout_seed
from .teacher_loss import TeacherReduction, teacher_token_weights


@dataclass(frozen=True)
class TeacherRollout:
    """One rollout of the teacher: token ids of prompt and completion, and the verifier's word on it."""

    prompt_ids: list[int]
    completion_ids: list[int]
    correct: bool


def prompt_key(prompt: str | list[dict[str, Any]]) -> str:
    """What two equal prompts share."""
    return prompt if isinstance(prompt, str) else json.dumps(prompt, sort_keys=True, default=str)


def draw_teacher_prompts(
    dataset: Dataset, count: int, student_prompts: Collection[str], seed: int, ordinal: int
) -> list[dict[str, Any]]:
    """B_T of Algorithm 1: `count` rows whose prompts are distinct from each other and from B_S.

    Depends on the seed and the number of the batch alone, so it is the same on every process and after a resume.

    Args:
        student_prompts: `prompt_key` of each prompt of B_S. seed: of the run. ordinal: number of the batch, from 1.

    Raises:
        ValueError: when the dataset has too few distinct prompts.
    """
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(rollout_seed(seed, "B_T", ordinal)))
    taken = set(student_prompts)
    rows: list[dict[str, Any]] = []
    for index in order.tolist():
        if len(rows) == count:
            break
        row = dataset[index]
        key = prompt_key(row["prompt"])
        if key not in taken:
            taken.add(key)
            rows.append(row)
    if len(rows) < count:
        raise ValueError(
            f"Phased teacher sampling needs {count} prompts beside the {len(student_prompts)} of the student's batch, "
            f"but the dataset has only {len(taken)} distinct ones. Add prompts, lower `teacher_sampling_ratio`, or set "
            "`teacher_sampling_enable=False`."
        )
    return rows


def share_rollouts(
    rollouts: list[TeacherRollout], micro_steps: int, num_processes: int
) -> list[list[list[TeacherRollout]]]:
    """Which rollouts each process trains on in each micro-step: `[micro_step][process]`.

    The longest first, one a process, micro-step by micro-step: processes that work at the same time get rollouts of
    about the same length, and micro-steps without any come last.
    """
    table: list[list[list[TeacherRollout]]] = [[[] for _ in range(num_processes)] for _ in range(micro_steps)]
    ordered = sorted(rollouts, key=lambda rollout: -len(rollout.prompt_ids + rollout.completion_ids))
    for number, rollout in enumerate(ordered):
        table[number // num_processes % micro_steps][number % num_processes].append(rollout)
    return table


def teacher_batches(
    rollouts: list[TeacherRollout],
    *,
    micro_steps: int,
    num_processes: int,
    process_index: int,
    reduction: TeacherReduction,
    pad_token_id: int,
    device: torch.device,
) -> list[dict[str, torch.Tensor] | None]:
    """This process's teacher batch of each micro-step of one optimizer step.

    Where any process has a rollout, all of them get a batch, if need be a rollout of weight zero: ZeRO-3 and FSDP need
    the same forward passes everywhere.

    Returns:
        for each micro-step `None` (no process has a rollout), or `input_ids`, `attention_mask` (b, p + l), and
        `weights` (b, l) of the completion tokens, which add up over micro-steps and processes to L_SLT's reduction.
    """
    tokens = sum(len(rollout.completion_ids) for rollout in rollouts)
    batches: list[dict[str, torch.Tensor] | None] = []
    for row in share_rollouts(rollouts, micro_steps, num_processes):
        if not any(row):
            batches.append(None)
            continue
        mine = row[process_index] or [min(sum(row, []), key=lambda r: len(r.prompt_ids + r.completion_ids))]
        prompts = [torch.tensor(rollout.prompt_ids) for rollout in mine]
        completions = [torch.tensor(rollout.completion_ids) for rollout in mine]
        input_ids, attention_mask = join_padded(prompts, completions, pad_token_id)
        completion_mask = attention_mask[:, -max(map(len, completions)) :]
        weights = teacher_token_weights(completion_mask, reduction, tokens, len(rollouts))
        batch = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "weights": weights if row[process_index] else torch.zeros_like(weights),
        }
        batches.append({name: tensor.to(device) for name, tensor in batch.items()})
    return batches
