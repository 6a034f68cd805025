"""A run killed after a checkpoint and resumed ends with the weights of one that never stopped."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback
from trl.trainer.utils import RepeatSampler

from sgopd_trl import SGOPDTrainer
from sgopd_trl.sampler import EpochSampler


DDP = Path(__file__).parents[1] / "recipes" / "accelerate_configs" / "ddp.yaml"


def test_every_epoch_has_an_order_of_its_own_and_finds_it_again():
    def order(epoch):
        return list(EpochSampler(RepeatSampler(range(16), mini_repeat_count=1, batch_size=4, seed=3), lambda: epoch))

    assert order(0) == list(RepeatSampler(range(16), mini_repeat_count=1, batch_size=4, seed=3))  # TRL's own
    assert order(1) == order(1)
    assert order(0) != order(1) != order(2)


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


@pytest.mark.distributed
def test_two_processes_resumed_in_the_second_epoch(folders, tmp_path):
    """Four steps an epoch: the checkpoint of step 5 lies in the second, whose order the samplers must find again."""
    tiny.dataset(8).to_json(tmp_path / "data.jsonl")

    def train(output, *extra):
        command = [
            sys.executable,
            "-m",
            "accelerate.commands.launch",
            "--config_file",
            str(DDP),
            "--num_processes",
            "2",
        ]
        command += ["--main_process_port", "0", "-m", "sgopd_trl.cli", "train", "--output_dir", str(output)]
        settings = dict(
            model_name_or_path=folders / "student",
            teacher_model_name_or_path=folders / "teacher",
            dataset_name=tmp_path / "data.jsonl",
            reward_funcs="tiny.even_digits_reward",
            answer_column="none",
            max_steps=7,
            save_steps=5,
            per_device_train_batch_size=4,
            num_generations=4,
            max_completion_length=8,
            learning_rate=1e-2,
            teacher_sampling_enable=False,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to="none",
        )
        command += [part for name, value in settings.items() for part in (f"--{name}", str(value))]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(["tests", *sys.path])}
        done = subprocess.run(
            [*command, *extra], cwd=Path(__file__).parents[1], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        return load_file(output / "model.safetensors")

    whole = train(tmp_path / "whole")
    resumed = train(tmp_path / "resumed", "--resume_from_checkpoint", str(tmp_path / "whole" / "checkpoint-5"))
    for name, expected in whole.items():
        assert torch.equal(resumed[name], expected), name
