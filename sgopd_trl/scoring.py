"""Log-probabilities of whole rollouts: in order of length, in forward passes bounded by a token budget."""

from collections.abc import Callable, Sequence

import torch
from accelerate import Accelerator


# (input_ids (b, p + l), attention_mask (b, p + l), l) -> log-probabilities (b, l), nats
LogpsFunction = Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor]


def plan_batches(
    prompt_lengths: Sequence[int], completion_lengths: Sequence[int], tokens_per_batch: int
) -> list[list[int]]:
    """Rows in order of length, longest first, cut so that a padded batch stays within the token budget.

    Prompts are padded on the left and completions on the right, so a batch is as wide as its longest prompt plus its
    longest completion. A row over the budget gets a batch of its own.

    Args:
        prompt_lengths, completion_lengths: (B,) tokens. tokens_per_batch: budget, padding included.

    Returns:
        lists of row indices, each row once.
    """
    order = sorted(range(len(prompt_lengths)), key=lambda i: -(prompt_lengths[i] + completion_lengths[i]))
    batches: list[list[int]] = []
    width = 0
    prompt = completion = 0
    for row in order:
        prompt = max(prompt, prompt_lengths[row])
        completion = max(completion, completion_lengths[row])
        width = prompt + completion
        if batches and (len(batches[-1]) + 1) * width <= tokens_per_batch:
            batches[-1].append(row)
        else:
            batches.append([row])
            prompt, completion = prompt_lengths[row], completion_lengths[row]
    return batches


def score_rollouts(
    logps_function: LogpsFunction,
    batch: dict[str, torch.Tensor],
    rows: torch.Tensor,
    tokens_per_batch: int,
    accelerator: Accelerator,
) -> torch.Tensor:
    """Log-probability of every completion token of the chosen rows, without gradients.

    Every process runs the same number of forward passes, repeating its cheapest where it has fewer: under ZeRO-3 and
    FSDP each pass gathers weights from all processes.

    Args:
        logps_function: one forward pass.
        batch: `prompt_ids`, `prompt_mask` (B, P), left-padded; `completion_ids`, `completion_mask` (B, L),
            right-padded.
        rows: (B,) bool, the rows to score.
        tokens_per_batch: token budget of one pass.
        accelerator: tells the other processes' number of passes.

    Returns:
        (B, L) nats, float32; 0 on rows that were not asked for and on padding.
    """
    prompt_ids, completion_ids = batch["prompt_ids"], batch["completion_ids"]
    logps = torch.zeros(completion_ids.shape, dtype=torch.float32, device=completion_ids.device)
    prompt_lengths = batch["prompt_mask"].sum(1)
    completion_lengths = batch["completion_mask"].sum(1)
    wanted = (rows & (completion_lengths > 0)).nonzero().squeeze(1)
    lengths = torch.stack([prompt_lengths, completion_lengths])[:, wanted].tolist()
    plan = [wanted[indices] for indices in plan_batches(*lengths, tokens_per_batch)]

    passes = len(plan)
    if accelerator.num_processes > 1:
        passes = int(accelerator.gather(torch.tensor([passes], device=logps.device)).max())
    cheapest = plan[-1] if plan else (prompt_lengths + completion_lengths).argmin().unsqueeze(0)
    for number in range(passes):
        chosen = plan[number] if number < len(plan) else cheapest
        prompt = int(prompt_lengths[chosen].max())
        completion = max(int(completion_lengths[chosen].max()), 1)
        start = prompt_ids.size(1) - prompt
        input_ids = torch.cat([prompt_ids[chosen, start:], completion_ids[chosen, :completion]], dim=1)
        attention_mask = torch.cat(
            [batch["prompt_mask"][chosen, start:], batch["completion_mask"][chosen, :completion]], dim=1
        )
        with torch.no_grad():
            scored = logps_function(input_ids, attention_mask, completion)
        if number < len(plan):
            logps[chosen, :completion] = scored.float()
    return logps * batch["completion_mask"]
