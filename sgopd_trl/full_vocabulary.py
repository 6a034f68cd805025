"""The tokens whose loss is an expectation over the vocabulary: full-vocabulary reverse KL, and AOPD's forward KL."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.utils import maybe_gather_lm_head_ctx

from .lm_head import LmHead, TokenLoss, completion_states, last_hidden_states, weighted_token_loss
from .rollout_scoring import valid_tokens
from .teachers import Teacher
from .teachers.build import Specs, TeacherSpec
from .teachers.in_process import InProcessTeacher
from .teachers.routed import RoutedTeacher
from .vocabulary_loss import forward_kl_loss, reverse_kl_loss


if TYPE_CHECKING:
    from .config import SGOPDConfig
    from .trainer import SGOPDTrainer


def check_whole_distributions(specs: Specs, args: "SGOPDConfig") -> None:
    """Losses over the vocabulary need teachers whose whole distributions are at hand.

    Raises:
        ValueError: for a teacher that does not run in this process.
    """
    if args.vocabulary_setting is None:
        return
    for name, spec in specs.items():
        loaded_here = spec.server_url is None if isinstance(spec, TeacherSpec) else isinstance(spec, InProcessTeacher)
        if not loaded_here:
            where = f"served at {spec.server_url}" if isinstance(spec, TeacherSpec) else f"a {type(spec).__name__}"
            raise ValueError(
                f"`{args.vocabulary_setting}` needs the teacher's whole distribution, but {name!r} is {where}, which gives "
                "the sampled token's log-probability alone. Load the teacher in this process "
                "(`teacher_model_name_or_path`, without a server), or take the default."
            )


class FullVocabulary:
    """Takes over the tokens of a trainer whose loss is over the vocabulary, and computes it.

    The student's last hidden states are those of TRL's own forward pass; teacher and reference (where a token is
    extrapolated) run over the same micro-batch. All LM heads are applied to a chunk of tokens at a time.

    Raises:
        ValueError: under FSDP.
    """

    def __init__(self, trainer: "SGOPDTrainer"):
        self.trainer = trainer
        setting = trainer.args.vocabulary_setting
        self.enabled = setting is not None
        if not self.enabled:
            return
        if trainer.is_fsdp_enabled:
            raise ValueError(f"`{setting}` does not work under FSDP. Use DDP, ZeRO-2 or ZeRO-3.")
        self.teachers = _in_process(trainer.teacher)
        models = [trainer.model, *(teacher.frozen.model for teacher in self.teachers)]
        if self._other_reference is not None:
            models.append(self._other_reference)
        # What all have in common; rows beyond it only pad a head.
        rows = [trainer.accelerator.unwrap_model(m).get_output_embeddings().out_features for m in models]
        self.vocab_size = min(max(trainer._tokenizer.get_vocab().values()) + 1, *rows)

    @property
    def takes_all_extrapolated(self) -> bool:
        """Whether no policy gradient is left that reads the reference's log-probability of the sampled token.

        The full-vocabulary reverse KL takes over every token whose strength is not 1. AOPD leaves those with a2 > 0.
        """
        return self.trainer.args.reverse_kl == "full_vocabulary"

    def teacher_index(self, names: Sequence[str], device: torch.device) -> torch.Tensor:
        """Each row's teacher among `teachers`, (B,), from the names in its column."""
        teacher = self.trainer.teacher
        known = list(teacher.teachers) if isinstance(teacher, RoutedTeacher) else list(dict.fromkeys(names))
        return torch.tensor([known.index(name) for name in names], device=device)

    def take_over(
        self,
        a1: torch.Tensor,
        a2: torch.Tensor,
        consensus: torch.Tensor,
        advantages: torch.Tensor,
        phi: torch.Tensor | None,
    ) -> dict[str, torch.Tensor]:
        """Advantages without those of the tokens that are taken over, and these tokens' weights and strengths.

        Args:
            a1, a2, consensus: as `Router.advantages`. advantages: (B, L), phi not yet in them. phi: (B, L), normalised.

        Returns:
            `advantages`, and where this is enabled `vocabulary_weights` and `vocabulary_strengths`, each (B, L).
        """
        advantages = advantages if phi is None else advantages * phi
        if not self.enabled:
            return {"advantages": advantages}
        router = self.trainer.router
        if self.trainer.args.negative_advantage_mode == "forward_kl":
            weights, strengths = (a2 <= 0).to(a2.dtype), torch.ones_like(a2)
        else:
            weights, strengths = router.vocabulary_weights(a1, a2, consensus), router.strengths(a1, a2, consensus)
        return {
            "advantages": advantages.masked_fill(weights != 0, 0.0),
            "vocabulary_weights": weights if phi is None else weights * phi,
            "vocabulary_strengths": strengths,
        }

    @contextmanager
    def watch(self, model: torch.nn.Module) -> Iterator[list[torch.Tensor]]:
        """Collects the student's last hidden states, with their graph, in the `with` block of its forward pass."""
        if not self.enabled:
            yield []
            return
        with last_hidden_states(self.trainer.accelerator.unwrap_model(model)) as states:
            yield states

    def loss(self, model: torch.nn.Module, inputs: dict[str, Any], states: list[torch.Tensor]) -> torch.Tensor | float:
        """The taken-over tokens' share of the micro-batch's loss: as `loss_type="grpo"`, the mean over sequences of the mean
        over tokens, divided by the number of accumulated micro-batches.

        The importance weights of PPO and of the vLLM correction play no part: they belong to the sampled token, and here the
        expectation is over the tokens, under the policy as it is.

        Args:
            model: the student as it was called. inputs: the micro-batch. states: what `watch` has collected.
        """
        if not self.enabled:
            return 0.0
        trainer = self.trainer
        mask = valid_tokens(inputs)
        steps = trainer.current_gradient_accumulation_steps if trainer.model.training else 1
        weights = inputs["vocabulary_weights"] / (mask.sum(1, keepdim=True).clamp(min=1) * mask.size(0) * steps)
        weights = torch.where(mask.bool(), weights, 0)
        student_states = states[0][:, -mask.size(1) - 1 : -1]
        total: torch.Tensor | float = 0.0
        with trainer.accelerator.autocast():
            for number, teacher in enumerate(self.teachers):
                own = (inputs["teacher_index"] == number).unsqueeze(1)
                total = total + self._with_teacher(teacher, model, inputs, student_states, torch.where(own, weights, 0))
        return total

    def _with_teacher(
        self,
        teacher: InProcessTeacher,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        student_states: torch.Tensor,
        weights: torch.Tensor,
    ) -> torch.Tensor | float:
        """Weighted losses against one teacher; `weights` (B, L) is 0 for tokens that are not its."""
        rows = self._rows((weights != 0).any(1))
        if not len(rows):
            return 0.0
        weights, strengths = weights[rows], inputs["vocabulary_strengths"][rows]
        plain, extrapolated = (weights != 0) & (strengths == 1), (weights != 0) & (strengths != 1)
        ids, attention = (
            torch.cat([inputs[f"prompt_{part}"][rows], inputs[f"completion_{part}"][rows]], dim=1)
            for part in ("ids", "mask")
        )
        total: torch.Tensor | float = 0.0
        with teacher.frozen.on_device:
            head = self._head(model)
            others = [self._states_and_head(teacher.frozen.model, ids, attention, weights.size(1))]
            asked = self._rows(extrapolated.any(1)) if self.trainer.router.uses_reference else []
            if len(asked):
                states, reference_head = self._reference(ids[asked], attention[asked], weights.size(1))
                _check_finite(states[extrapolated[asked]])
                states = states.new_zeros(len(rows), *states.shape[1:]).index_copy(0, asked, states)
                others.append((states, reference_head))
            with _gathered(head, *(other for _, other in others)):
                for tokens, models in ((plain, others[:1]), (extrapolated, others)):
                    if tokens.any():
                        total = total + weighted_token_loss(
                            self._token_loss(strengths[tokens]),
                            student_states[rows][tokens],
                            head,
                            [(states[tokens], other) for states, other in models],
                            weights[tokens],
                        )
        return total

    def _token_loss(self, strengths: torch.Tensor) -> TokenLoss:
        """The formula, for tokens with these strengths (N,); it is given the reference's logits where they are not 1."""
        args = self.trainer.args
        if args.negative_advantage_mode == "forward_kl":
            return lambda student, teacher, rows: forward_kl_loss(student, teacher, args.forward_kl_top_k)

        def token_loss(student: torch.Tensor, teacher: torch.Tensor, *reference_and_rows: Any) -> torch.Tensor:
            *reference, rows = reference_and_rows
            extrapolation = (reference[0], strengths[rows]) if reference else (None, None)
            return reverse_kl_loss(student, teacher, *extrapolation, args.reverse_kl_top_k)

        return token_loss

    def _rows(self, needed: torch.Tensor) -> torch.Tensor:
        """Indices of the rows a model runs over; under ZeRO-3 all processes run it, if need be over a row without use."""
        rows = needed.nonzero().squeeze(1)
        if not len(rows) and self.trainer._dist.is_zero3:
            rows = rows.new_zeros(1)
        return rows

    def _head(self, model: torch.nn.Module) -> LmHead:
        trainer = self.trainer
        model = trainer.accelerator.unwrap_model(model)
        return LmHead.of(model, self.vocab_size, trainer.temperature, trainer.args.cast_lm_head_to_fp32)

    def _states_and_head(self, model: torch.nn.Module, *inputs: Any) -> tuple[torch.Tensor, LmHead]:
        return completion_states(model, self.trainer.accelerator.unwrap_model(model), *inputs), self._head(model)

    @property
    def _other_reference(self) -> torch.nn.Module | None:
        """The reference where it is a model of its own: ours, or the one that TRL has for its KL term."""
        trainer = self.trainer
        if not trainer.router.uses_reference:
            return None
        return trainer.reference.model if trainer.reference is not None else trainer.ref_model

    def _reference(self, ids: torch.Tensor, *inputs: Any) -> tuple[torch.Tensor, LmHead]:
        if self._other_reference is not None:
            _check_tokens(ids, self.trainer.accelerator.unwrap_model(self._other_reference))
            return self._states_and_head(self._other_reference, ids, *inputs)
        trainer = self.trainer
        with (
            trainer.scorer.student_as_reference(),
            disable_gradient_checkpointing(trainer.model, trainer.args.gradient_checkpointing_kwargs),
        ):
            return self._states_and_head(trainer.model, ids, *inputs)


def _gathered(*heads: LmHead) -> AbstractContextManager:
    """Under ZeRO-3 the heads' weights are whole inside."""
    return maybe_gather_lm_head_ctx(*(tensor for head in heads for tensor in (head.weight, head.bias)))


# Teacher and student are checked when they score the sampled tokens (`RolloutScorer`), which the reference does not.


def _check_tokens(ids: torch.Tensor, reference: torch.nn.Module) -> None:
    rows = reference.get_input_embeddings().num_embeddings
    if (largest := int(ids.max())) >= rows:
        raise ValueError(
            f"The student sampled token {largest}, but the reference's embedding has {rows} rows. Set "
            "`generation_kwargs={'suppress_tokens': [...]}` to keep the student from sampling ids beyond its tokenizer."
        )


def _check_finite(reference_states: torch.Tensor) -> None:
    if not torch.isfinite(reference_states).all():
        raise ValueError(
            "The reference's last hidden states are not finite where tokens are extrapolated. Check the reference's weights "
            "and dtype (float16 overflows; use bfloat16 or float32)."
        )


def _in_process(teacher: Teacher) -> list[InProcessTeacher]:
    return list(teacher.teachers.values()) if isinstance(teacher, RoutedTeacher) else [teacher]
