"""Routing of one optimizer step: Eq. 4 to 9 over all its micro-batches and processes."""

from typing import TYPE_CHECKING, Any

from .advantages import reverse_kl_advantage, sign_flips
from .diagnostics import token_metrics, token_sums
from .rollout_scoring import valid_tokens
from .stability import masked_sum, stability_weight, unit_mean


if TYPE_CHECKING:
    from .trainer import SGOPDTrainer


def route_step(trainer: "SGOPDTrainer", micro_batches: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The micro-batches of one optimizer step with their (B, L) advantages, exact over the whole step.

    Args:
        micro_batches: of this process, with what `RolloutScorer.score` has added.

    Returns:
        the micro-batches with what `FullVocabulary.take_over` gives, a1 as `outcome_advantages`, and `a2`.
    """
    router, tau = trainer.router, trainer.args.stability_tau
    prepared = []
    sums = 0
    for batch in micro_batches:
        mask = valid_tokens(batch)
        a2 = reverse_kl_advantage(batch["teacher_logps"], batch["student_logps"])
        phi = None if tau is None else stability_weight(a2, tau)
        sums = sums + token_sums(batch.get("gate_advantages", batch["advantages"]), a2, mask, phi)
        prepared.append((batch, mask, a2, phi))
    sums = trainer.accelerator.reduce(sums, reduction="sum")
    tokens, agree, *_, total_phi = sums.tolist()
    share = agree / max(tokens, 1)

    routed = []
    counts_flips = not trainer.full_vocabulary.takes_all_extrapolated  # otherwise no sampled token is extrapolated
    flips = 0
    for batch, mask, a2, phi in prepared:
        outcome = batch["advantages"]
        a1 = batch.get("gate_advantages", outcome)
        consensus = router.consensus(a1, a2, batch.get("gate_coin"), share)
        advantages = router.advantages(a1, a2, consensus, batch["teacher_logps"], batch["reference_logps"], outcome)
        if counts_flips:
            flips = flips + masked_sum(sign_flips(consensus, a2, advantages), mask)
        phi = None if phi is None else unit_mean(phi, total_phi, tokens)
        losses = trainer.full_vocabulary.take_over(a1, a2, consensus, advantages, phi)
        routed.append(batch | losses | {"outcome_advantages": outcome, "a2": a2})
    flips = trainer.accelerator.reduce(flips, reduction="sum").item() if counts_flips else None
    for name, value in token_metrics(sums, flips).items():
        trainer.step_log.value(name, value)
    return routed
