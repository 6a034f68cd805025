"""The baselines in two processes do what one does."""

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
from sgopd_trl.cli.launch import RECIPES
from sgopd_trl.miniature import make_dataset


pytestmark = pytest.mark.distributed


@pytest.mark.parametrize("kind", ["sft", "gkd"])
def test_two_processes_end_with_the_weights_of_one(kind, tmp_path, folders, capsys):
    """On the teacher's rollouts, which do not depend on a process's own random numbers."""
    settings = {
        "trainer": kind,
        "model_name_or_path": str(folders / "student"),
        "teacher_bank": str(fill(tmp_path / "bank", folders / "teacher")),
        "dataset_name": "miniature",
        "reward_funcs": "exact_answer_reward",
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "max_steps": 2,
        "max_completion_length": 6,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "num_generations_eval": 2,
        "per_device_eval_batch_size": 256,
        "save_strategy": "no",
        **QUIET_ON_CPU,
    }
    if kind == "gkd":
        settings |= {"teacher_model_name_or_path": str(folders / "teacher"), "lmbda": 0.0, "max_train_samples": PROMPTS}
    weights, rows = [], []
    for processes in (1, 2):
        out = tmp_path / str(processes)
        recipe = settings | {"output_dir": str(out), "per_device_train_batch_size": 8 // processes}
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        argv = ["train", "--config", str(tmp_path / "recipe.yaml")]
        if processes == 1:
            assert main(argv) == 0
            said = capsys.readouterr().out
        else:
            command = [sys.executable, "-m", "sgopd_trl.cli", *argv, "--accelerate_config", str(RECIPES / "ddp.yaml")]
            result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300)
            assert result.returncode == 0, result.stderr[-3000:]
            said = result.stdout
        assert said.count("teacher rollouts in") == 1
        weights.append(load_file(out / "model.safetensors"))
        rows.append([json.loads(line) for line in (out / "metrics.jsonl").open()])
    for name, one in weights[0].items():
        torch.testing.assert_close(weights[1][name], one, rtol=0, atol=2e-6, msg=name)
    for name in ("loss", "eval_pass@2", "eval_completions/mean_length"):
        one, two = ([row[name] for row in run if name in row] for run in rows)
        assert len(one) == len(two) > 0
        if name.startswith("eval"):  # a problem's samples do not depend on the process that solves it
            assert one == pytest.approx(two, rel=1e-9)
    assert rows[0][0]["loss"] == pytest.approx(rows[1][0]["loss"], rel=1e-4)


@pytest.mark.parametrize(("kind", "problems"), [("sft", 5), ("gkd", 1)])
def test_processes_with_unequal_shares_of_the_problems_evaluate_under_zero3(kind, problems, tmp_path, folders):
    """They generate together there: one that had no problems left would leave the other waiting. Each counts once."""
    (tmp_path / "data").mkdir()
    for split, size in (("train", PROMPTS), ("test", problems)):
        rows = [row | {"solution": "other" if n else "first"} for n, row in enumerate(make_dataset(split, size))]
        (tmp_path / "data" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {
        "trainer": kind,
        "model_name_or_path": str(folders / "student"),
        "dataset_name": str(tmp_path / "data"),
        "box_answer": False,
        "reward_funcs": "baseline_bank.gold_is_first",
        "zero_truncated_reward": False,
        "max_steps": 1,
        "max_completion_length": 6,
        "eval_strategy": "steps",
        "eval_steps": 1,
        "num_generations_eval": 2,
        "per_device_eval_batch_size": 2,
        "per_device_train_batch_size": 2,
        "save_strategy": "no",
        **QUIET_ON_CPU,
        "output_dir": str(tmp_path / "out"),
    }
    if kind == "gkd":
        settings |= {"teacher_model_name_or_path": str(folders / "teacher")}
    else:
        settings |= {"teacher_bank": str(fill(tmp_path / "bank", folders / "teacher"))}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(settings))
    command = [sys.executable, "-m", "sgopd_trl.cli", "train", "--config", str(tmp_path / "recipe.yaml")]
    command += ["--accelerate_config", "zero3", "--use_cpu", "true", "--main_process_port", str(free_port())]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=600)
    assert result.returncode == 0, result.stderr[-3000:]
    rows = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").open()]
    (found,) = [row for row in rows if "eval_avg@2" in row]
    assert found["eval_avg@2"] == found["eval_pass@2"] == pytest.approx(1 / problems)
    assert 0 < found["eval_completions/mean_length"] <= 6
