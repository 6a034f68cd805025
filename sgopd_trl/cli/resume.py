"""Going on from a checkpoint, as a run that never stopped would have."""

from pathlib import Path

from transformers import EarlyStoppingCallback, Trainer, TrainerState, TrainingArguments

from ..output_folder import STATE, last_checkpoint


def find_checkpoint(args: TrainingArguments) -> str | None:
    """The checkpoint to resume from; `true` is the last whole one in the output folder.

    Raises:
        ValueError: when there is none.
    """
    wanted = args.resume_from_checkpoint
    if wanted is None or str(wanted).lower() == "false":
        return None
    if str(wanted).lower() == "true":
        last = last_checkpoint(args.output_dir)
        if last is None:
            raise ValueError(
                f"`resume_from_checkpoint` is true, but {args.output_dir} holds no whole checkpoint. Leave it out to start."
            )
        return str(last)
    if not (Path(wanted) / STATE).is_file():
        raise ValueError(f"`resume_from_checkpoint`: {wanted} is no checkpoint folder: it has no {STATE}.")
    return wanted


def go_on(trainer: Trainer, checkpoint: str) -> None:
    """Trains from a checkpoint. Where its run was over, no step is taken: the trainer ends with that run's weights, with
    `load_best_model_at_end` the best ones.

    transformers looks whether a run is over after a step only, so it would take one more. Here it is told of no epochs
    beyond those that lie behind, and then only loads what there is to load, sharded models included.
    """
    state = TrainerState.load_from_json(str(Path(checkpoint, STATE)))
    over = _restore_early_stopping(trainer, state)
    counted = trainer.set_initial_training_values

    def counted_to_the_end(args, dataloader):
        epochs, steps_per_epoch, *others, max_steps = counted(args, dataloader)
        if over or state.global_step >= max_steps:
            why = "early stopping has ended it" if over else f"the run has {max_steps} steps"
            trainer.accelerator.print(f"Nothing is left to train after step {state.global_step}: {why}.")
            epochs = min(epochs, state.global_step // steps_per_epoch)
        return epochs, steps_per_epoch, *others, max_steps

    trainer.set_initial_training_values = counted_to_the_end
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    finally:
        del trainer.set_initial_training_values


def _restore_early_stopping(trainer: Trainer, state: TrainerState) -> bool:
    """Goes on counting evaluations without a better metric. Returns whether they were as many as the patience allows."""
    saved = state.stateful_callbacks.get(EarlyStoppingCallback.__name__)
    for callback in trainer.callback_handler.callbacks if saved else ():
        if isinstance(callback, EarlyStoppingCallback):
            # transformers would restore the patience too, which may have been raised since
            trainer.args.restore_callback_states_from_checkpoint = False
            callback.early_stopping_patience_counter = saved["attributes"]["early_stopping_patience_counter"]
            return callback.early_stopping_patience_counter >= callback.early_stopping_patience
    return False
