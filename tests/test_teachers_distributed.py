"""Teachers on two processes: partitioned by ZeRO-3 and FSDP, several of them, elsewhere, and failing on one process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
from reference import sequence_logps
from test_distributed import free_port
from transformers import AutoModelForCausalLM


ROOT = Path(__file__).resolve().parents[1]
FSDP2 = """
compute_environment: LOCAL_MACHINE
distributed_type: FSDP
fsdp_config:
  fsdp_version: 2
  fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP
  fsdp_transformer_layer_cls_to_wrap: Qwen3DecoderLayer
  fsdp_reshard_after_forward: true
  fsdp_state_dict_type: FULL_STATE_DICT
  fsdp_offload_params: false
  fsdp_cpu_ram_efficient_loading: false
mixed_precision: 'no'
num_machines: 1
num_processes: 2
"""
pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    tiny.make_model(root / "student", seed=0, scale=0.3)
    tiny.make_model(root / "first", seed=1, scale=0.3)
    tiny.make_model(root / "second", seed=2, scale=0.3)
    return root


def launch(models, out: Path, mode: str, backend: str) -> dict:
    out.mkdir(exist_ok=True)
    expect = {"ddp": "MULTI_CPU", "zero2": "DEEPSPEED", "zero3": "DEEPSPEED", "fsdp2": "FSDP"}[backend]
    config = ROOT / "recipes" / "accelerate_configs" / f"{backend}.yaml"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "HF_HUB_OFFLINE": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    if backend == "fsdp2":
        config = out / "fsdp2.yaml"
        config.write_text(FSDP2)
        environment |= {"SGOPD_TEST_FSDP": "1", "ACCELERATE_TORCH_DEVICE": "cpu"}
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
    command += [
        "--num_processes",
        "2",
        "--main_process_port",
        str(free_port()),
        str(ROOT / "tests" / "teachers_run.py"),
    ]
    command += [mode, "--models", str(models), "--out", str(out), "--num_processes", "2", "--expect", expect]
    result = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, (result.stdout + result.stderr)[-8000:]
    return json.loads((out / "figures.json").read_text())


@pytest.mark.parametrize(
    ("mode", "backend"),
    [("single", "fsdp2"), ("routed", "ddp"), ("routed", "zero3"), ("routed", "fsdp2"), ("elsewhere", "zero2")],
)
def test_every_process_gets_its_rows_scores_and_the_same_rollouts(models, tmp_path, mode, backend):
    figures = launch(models, tmp_path / "out", mode, backend)
    loaded = {
        name: AutoModelForCausalLM.from_pretrained(models / name, dtype=torch.float32) for name in ("first", "second")
    }
    assert len(figures["scored"]) == 3 * 8
    for row in figures["scored"]:
        with torch.no_grad():
            expected = sequence_logps(
                loaded["first" if row["name"] == "teacher" else row["name"]], row["prompt"], row["completion"]
            )
        torch.testing.assert_close(torch.tensor(row["logps"]), expected, atol=1e-5, rtol=1e-5)
    if mode == "routed":
        assert {row["name"] for row in figures["scored"]} == {"first", "second"}
    asked = [line["teacher_sampling/asked"] for line in figures["log"]]
    assert len(figures["bank"]) == sum(asked) > 3  # each is asked for and stored once, though processes repeat some
    assert all(torch.isfinite(torch.tensor(line["loss"])) for line in figures["log"])


def test_all_processes_stop_where_one_teacher_fails(models, tmp_path):
    figures = launch(models, tmp_path / "out", "failing", "ddp")
    (first, first_note), (second, second_note) = figures["errors"]
    assert first == f"Process 1: {second}" and "http://nowhere" in second
    checkpoint = tmp_path / "out" / "run" / "checkpoint-2"
    assert first_note == second_note and str(checkpoint) in first_note
    assert (checkpoint / "rng_state_0.pth").exists() and (checkpoint / "rng_state_1.pth").exists()


def test_all_processes_hear_that_a_bank_is_refused(models, tmp_path):
    """The main process alone reads it; the others must not be left waiting."""
    bank = tmp_path / "out" / "bank"
    bank.mkdir(parents=True)
    (bank / "bank.json").write_text(json.dumps({"teachers": {"teacher": {"model": "another"}}}))
    figures = launch(models, tmp_path / "out", "refused", "ddp")
    first, second = figures["errors"]
    assert first == second and "teachers.teacher.model: the bank has 'another', this run 'first'" in first
