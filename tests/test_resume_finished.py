"""A run that is over and is resumed stays as it was: no step is taken, and its weights are written again."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from baseline_bank import PROMPTS, QUIET_ON_CPU, fill
from safetensors.torch import load_file
from test_distributed import free_port

from sgopd_trl.cli import main
from sgopd_trl.output_folder import last_checkpoint


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "ACCELERATE_MIXED_PRECISION", "SGOPD_DEBUG"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def recipe(tmp_path, folders):
    def write(kind: str, **changes) -> list[str]:
        settings = {
            "trainer": kind,
            "model_name_or_path": str(folders / "student"),
            "dataset_name": "miniature",
            "reward_funcs": "exact_answer_reward",
            "learning_rate": 1e-2,
            "max_steps": 2,
            "save_steps": 1,
            "per_device_train_batch_size": 4,
            "max_completion_length": 6,
            **QUIET_ON_CPU,
            "output_dir": str(tmp_path / "out"),
        }
        if kind == "sft":
            settings["teacher_bank"] = str(fill(tmp_path / "bank", folders / "teacher"))
        else:
            settings["max_train_samples"] = PROMPTS
        if kind in ("sgopd", "gkd"):
            settings["teacher_model_name_or_path"] = str(folders / "teacher")
        if kind in ("sgopd", "grpo"):
            settings["num_generations"] = 4
        if kind == "sgopd":
            settings["teacher_sampling_enable"] = False
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(settings | changes))
        return ["train", "--config", str(tmp_path / "recipe.yaml")]

    return write


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "model.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def losses(out: Path) -> list[int]:
    return [row["step"] for row in map(json.loads, (out / "metrics.jsonl").open()) if "loss" in row]


@pytest.mark.parametrize("kind", ["sgopd", "sft", "gkd", "grpo"])
def test_no_step_is_taken_unless_there_are_more_to_take(kind, recipe, tmp_path, capsys):
    out = tmp_path / "out"
    argv = recipe(kind)
    assert main(argv) == 0
    finished = weights(out)
    (out / "model.safetensors").unlink()  # a run killed after its last checkpoint has not written it
    (out / "checkpoint-9").mkdir()  # nor had it written this one
    capsys.readouterr()
    assert main([*argv, "--resume_from_checkpoint", "true"]) == 0
    said = capsys.readouterr().out
    assert "Nothing is left to train after step 2: the run has 2 steps." in said and "Trained for 2 steps" in said
    assert same(weights(out), finished) and losses(out) == [1, 2] and last_checkpoint(out).name == "checkpoint-2"

    assert main([*argv, "--resume_from_checkpoint", "true", "--max_steps", "3"]) == 0
    assert "Trained for 3 steps" in capsys.readouterr().out and losses(out) == [1, 2, 3]


STOPPING = {
    "max_steps": 4,
    "early_stopping_patience": 1,
    "load_best_model_at_end": True,
    "metric_for_best_model": "avg@2",
    "eval_strategy": "steps",
    "eval_steps": 1,
    "num_generations_eval": 2,
    "per_device_eval_batch_size": 512,
    "top_k": 1,
}


def test_what_early_stopping_has_ended_does_not_go_on_without_more_patience(recipe, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sgopd_trl.cli.train.load_verifier", lambda *args: never_correct)
    out = tmp_path / "out"
    argv = recipe("sft", **STOPPING)
    assert main(argv) == 0
    finished = weights(out)
    assert losses(out) == [1, 2] and same(finished, weights(out / "checkpoint-1"))  # stopped, and the best one loaded
    assert not same(finished, weights(out / "checkpoint-2"))
    (out / "model.safetensors").unlink()
    capsys.readouterr()
    resumed = [*argv, "--resume_from_checkpoint", "true"]
    assert main(resumed) == 0
    said = capsys.readouterr().out
    assert "Nothing is left to train after step 2: early stopping has ended it." in said
    assert same(weights(out), finished) and losses(out) == [1, 2]

    assert main([*resumed, "--early_stopping_patience", "2"]) == 0
    assert losses(out) == [1, 2, 3]  # one more evaluation that is not better
    assert main([*resumed, "--early_stopping_patience", "9"]) == 0
    assert losses(out) == [1, 2, 3, 4]


def never_correct(completions, **columns):
    return [0.0] * len(completions)


def test_a_stage_that_only_lacks_its_mark(recipe, tmp_path, capsys):
    out = tmp_path / "out"
    argv = recipe("sgopd", trainer="sgopd", stages=[{"name": "first"}, {"name": "last"}])
    assert main(argv) == 0
    finished = weights(out)
    (out / "_stages" / "last.done").unlink()
    (out / "model.safetensors").unlink()
    capsys.readouterr()
    assert main([*argv, "--resume_from_checkpoint", "true"]) == 0
    said = capsys.readouterr().out
    assert f"Resuming from {out / 'checkpoint-2'}" in said and "Nothing is left to train after step 2" in said
    assert same(weights(out), finished) and losses(out) == [1, 2]


@pytest.mark.distributed
def test_in_two_processes_that_share_the_weights(recipe, tmp_path):
    out = tmp_path / "out"
    argv = recipe("sft", **STOPPING | {"reward_funcs": "test_resume_finished.never_correct"})
    command = [sys.executable, "-m", "sgopd_trl.cli", *argv, "--accelerate_config", "zero3"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])

    def run(*more: str) -> str:
        port = ["--main_process_port", str(free_port())]
        result = subprocess.run(
            [*command, *port, *more], capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=600
        )
        assert result.returncode == 0, result.stderr[-3000:]
        return result.stdout

    run()
    finished = weights(out)
    (out / "model.safetensors").unlink()
    said = run("--resume_from_checkpoint", "true")
    assert said.count("Nothing is left to train after step 2: early stopping has ended it.") == 1
    assert same(weights(out), finished) and losses(out) == [1, 2]
