"""The teacher's rollouts ahead of a run: which ones it will ask for, and having them all generated."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from tqdm.auto import tqdm

from .seeded_sampling import rollout_seed
from .teacher_rollouts import PendingRollouts, TeacherPrompt
from .teacher_sampling import prompt_key


if TYPE_CHECKING:
    from .trainer import SGOPDTrainer


def prompts_of_run(trainer: "SGOPDTrainer") -> list[TeacherPrompt]:
    """Every rollout that `trainer.train()` would ask its teacher for, in that order, each once.

    The student's batches and the teacher's draws follow from the seed alone. The number of processes must be the run's.
    """
    # The steps that alpha(t) is spread over, as `train` counts them
    state, dataset = trainer.state, trainer.train_dataset
    state.max_steps = trainer.set_initial_training_values(trainer.args, trainer.get_train_dataloader())[-1]
    sampling = trainer.teacher_sampling
    steps = sampling.windows * trainer.num_iterations  # optimizer steps that one generation batch serves
    keys = [prompt_key(prompt) for prompt in dataset["prompt"]]
    prompts: dict[tuple[str, str, int], TeacherPrompt] = {}
    for generation, indices in enumerate(_generation_batches(trainer)):
        first = generation * steps
        if first >= state.max_steps or all(sampling.alpha(step + 1) == 0 for step in range(first, state.max_steps)):
            break
        for window in sampling.draw(first, {keys[index] for index in indices}):
            for prompt in window:
                key = (prompt_key(prompt.row["prompt"]), trainer.teacher_name(prompt.row), prompt.number)
                prompts.setdefault(key, prompt)
    return list(prompts.values())


def _generation_batches(trainer: "SGOPDTrainer") -> Iterator[list[int]]:
    """Rows of the dataset in each of the student's generation batches, of all processes, epoch after epoch."""
    size = trainer.args.generation_batch_size
    repeats = trainer.num_iterations * trainer.args.steps_per_generation
    epoch = 0
    while True:
        trainer.state.epoch = epoch
        indices = list(trainer._get_train_sampler(trainer.train_dataset))
        for start in range(0, len(indices), size * repeats):
            yield indices[start : start + size]
        epoch += 1


def all_prompts(trainer: "SGOPDTrainer") -> list[TeacherPrompt]:
    """Every distinct prompt of the dataset and its teacher, in a seeded order, with `teacher_rollouts_per_prompt` rollouts
    each."""
    dataset, rows = trainer.train_dataset, {}
    columns = [column for column in ("prompt", "teacher") if column in dataset.column_names]
    for index, row in enumerate(dataset.select_columns(columns)):
        rows.setdefault((prompt_key(row["prompt"]), trainer.teacher_name(row)), index)
    order = sorted(rows, key=lambda key: rollout_seed(trainer.args.seed, "bank", *key))
    numbers = range(trainer.args.teacher_rollouts_per_prompt)
    return [TeacherPrompt(dataset[rows[key]], number) for key in order for number in numbers]


def fill_bank(trainer: "SGOPDTrainer", prompts: Sequence[TeacherPrompt], batch_size: int) -> tuple[int, int]:
    """Has the teacher answer what the bank does not hold. Collective; what is finished when it is stopped is kept.

    Args:
        prompts: what to ask for. batch_size: prompts at a time, of all processes together.

    Returns:
        the number of verified rollouts among the prompts', and of those generated now.
    """
    rollouts = trainer.teacher_sampling.rollouts
    verified = generated = 0
    pending: PendingRollouts | None = None
    with tqdm(total=len(prompts), desc="Teacher rollouts", disable=not trainer.is_world_process_zero()) as progress:
        for start in [*range(0, len(prompts), batch_size), None]:
            # A server generates the next ones while these are judged.
            following = None if start is None else rollouts.ask(prompts[start : start + batch_size])
            if pending is not None:
                verified += sum(rollout.correct for rollout in rollouts.collect(pending))
                generated += pending.asked
                progress.update(len(pending.prompts))
                progress.set_postfix(verified=verified, generated=generated)
            pending = following
    return verified, generated
