"""A run killed after a checkpoint and resumed ends with the weights of one that never stopped."""

import pytest
import tiny
import torch
from transformers import TrainerCallback

from sgopd_trl import SGOPDTrainer


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    tiny.make_model(root / "student", seed=0)
    tiny.make_model(root / "teacher", seed=1)
    return root


class Killed(Exception):
    pass


class KillAfter(TrainerCallback):
    def __init__(self, step: int):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise Killed


def run(folders, output, kill_after=None, resume=None, size=24, **settings):
    trainer = SGOPDTrainer(
        model=str(folders / "student"),
        reward_funcs=tiny.even_digits_reward,
        args=tiny.make_args(
            output,
            max_steps=6,
            save_strategy="steps",
            save_steps=1,
            teacher_sampling_phase1_end_frac=2,
            teacher_sampling_phase2_end_frac=4,
            teacher_sft_alpha_0=0.5,
            **settings,
        ),
        train_dataset=tiny.dataset(size),
        teacher_model=str(folders / "teacher"),
        callbacks=[KillAfter(kill_after)] if kill_after else None,
    )
    if kill_after:
        with pytest.raises(Killed):
            trainer.train()
    else:
        trainer.train(resume_from_checkpoint=resume)
    return trainer


@pytest.mark.parametrize(
    ("kill_after", "settings"),
    [
        pytest.param(3, {"gate": "random"}, id="between-the-phases-random-gate"),
        pytest.param(5, {"size": 8}, id="second-epoch-after-the-phases"),  # 4 steps an epoch
        pytest.param(3, {"num_iterations": 2}, id="inside-a-generation-cycle"),
    ],
)
def test_resumed_weights_are_those_of_an_uninterrupted_run(folders, tmp_path, kill_after, settings):
    whole = run(folders, tmp_path / "whole", **settings)
    run(folders, tmp_path / "killed", kill_after=kill_after, **settings)
    resumed = run(
        folders, tmp_path / "killed", resume=str(tmp_path / "killed" / f"checkpoint-{kill_after}"), **settings
    )
    for (name, expected), (_, got) in zip(
        whole.model.state_dict().items(), resumed.model.state_dict().items(), strict=True
    ):
        assert torch.equal(expected, got), name
    keys = ("loss", "reverse_kl", "teacher_sampling/alpha", "teacher_sampling/loss", "sign/agree")
    lines = [[{k: line.get(k) for k in keys} for line in t.state.log_history[-4:]] for t in (whole, resumed)]
    assert lines[0] == lines[1]
