"""One process or two, one micro-batch or eight: the same SG-OPD step. Every launch runs tests/distributed_run.py."""

import json
import math
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from distributed_run import MICRO_STEPS, ROWS, STEPS, FixedRollouts, Keep, settings
from safetensors.torch import load_file
from tiny import dataset, even_digits_reward, make_model


ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "tests" / "distributed_run.py"
TIMEOUT = 900  # seconds; the first DeepSpeed run on a machine compiles an extension


class Backend(NamedTuple):
    """How a configuration of recipes/accelerate_configs must come out on a CPU, and what is run with it."""

    distributed_type: str
    zero_stage: int | None
    variants: tuple[str, ...]


VOCABULARY = ("vocabulary", "vocabulary_lora")
GENERATE = ("generate_gathered", "generate_sharded")
BACKENDS = {
    "ddp": Backend("MULTI_CPU", None, ("plain", "random", "lora", *VOCABULARY)),
    "zero2": Backend("DEEPSPEED", 2, ("plain", "lora", "vocabulary")),
    "zero3": Backend("DEEPSPEED", 3, ("plain", "lora", *VOCABULARY, *GENERATE)),
}
# Seconds are what they are, and TRL averages the entropy over micro-batches, which hold other rows after its shuffle.
NOT_COMPARED = ("seconds/", "step_time", "entropy")


class Run:
    """What the main process of a launch left behind for one variant."""

    def __init__(self, folder: Path):
        self.figures: dict[str, Any] = json.loads((folder / "figures.json").read_text())
        tensors = torch.load(folder / "tensors.pt")
        self.parameters: list[dict[str, torch.Tensor]] = tensors["parameters"]
        self.gradients: list[dict[str, torch.Tensor]] = tensors["gradients"]
        self.saved = folder / "saved"


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("models")
    for name, seed in (("student", 1), ("teacher", 2)):
        make_model(folder / name, seed, scale=0.3)
    return {name: str(folder / name) for name in ("student", "teacher")}


@pytest.fixture(scope="session")
def launched(models, tmp_path_factory) -> Callable[[str], dict[str, Run]]:
    """Launches a backend, or `"one"` process, the first time it is asked for."""
    runs: dict[str, dict[str, Run]] = {}

    def launch(backend: str) -> dict[str, Run]:
        if backend in runs:
            return runs[backend]
        out = tmp_path_factory.mktemp(backend)
        common = ["--student", models["student"], "--teacher", models["teacher"], "--out", str(out)]
        if backend == "one":
            variants = BACKENDS["ddp"].variants
            command = [sys.executable, str(SCRIPT), *common, "--expect", "NO"]
        else:
            distributed_type, zero_stage, variants = BACKENDS[backend]
            config = ROOT / "recipes" / "accelerate_configs" / f"{backend}.yaml"
            command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
            command += ["--num_processes", "2", "--main_process_port", str(free_port()), str(SCRIPT), *common]
            command += ["--expect", distributed_type, "--num_processes", "2"]
            command += [] if zero_stage is None else ["--zero_stage", str(zero_stage)]
        run(command + ["--variants", *variants])
        runs[backend] = {variant: Run(out / variant) for variant in variants}
        return runs[backend]

    return launch


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def run(command: Sequence[str]) -> None:
    """Runs a launch to its end, in a session of its own so that a hanging one can be ended with its children."""
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        # DeepSpeed compiles with ninja, which lies beside the interpreter where the environment is not activated
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    }
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=TIMEOUT)
    except BaseException as error:
        os.killpg(process.pid, 9)
        output, _ = process.communicate()
        if isinstance(error, subprocess.TimeoutExpired):
            pytest.fail(f"{' '.join(command)} did not end within {TIMEOUT} s:\n{output[-10_000:]}")
        raise
    if process.returncode != 0:
        pytest.fail(f"{' '.join(command)} ended with {process.returncode}:\n{output[-10_000:]}")


def largest_difference(expected: dict[str, torch.Tensor], actual: dict[str, torch.Tensor]) -> float:
    assert expected.keys() == actual.keys()
    return max((expected[name] - actual[name]).abs().max().item() for name in expected)


def assert_same_gradients(expected: dict[str, torch.Tensor], actual: dict[str, torch.Tensor]) -> None:
    """To 1e-6 of the largest gradient, which is about float32's resolution of the sums that make it up."""
    scale = max(1.0, *(gradient.abs().max().item() for gradient in expected.values()))
    assert largest_difference(expected, actual) <= 1e-6 * scale


@pytest.mark.distributed
def test_the_run_holds_what_the_comparison_is_about(launched):
    """Otherwise two processes could agree by never meeting the hard cases."""
    log = launched("one")["plain"].figures["log"]
    assert [entry["teacher_sampling/verified"] for entry in log] == [2, 2, 1]
    assert all(entry["sign/agree"] > 0 and entry["sign/disagree"] > 0 for entry in log)
    assert any(entry["sign/neutral"] > 0 for entry in log)
    assert all(0 < entry["stability/clipped"] < 1 for entry in log)
    assert all(0 < entry["completions/clipped_ratio"] < 1 for entry in log)
    assert any(0 < entry["reference/saved_share"] < 1 for entry in log)
    assert len({entry["teacher_sampling/loss"] for entry in log}) == STEPS
    # Two micro-steps, two processes: here without a rollout on either, there on one of them
    shares = launched("ddp")["plain"].figures["teacher_shares"]
    rows = list(zip(*shares, strict=True))
    assert len(rows) == STEPS * MICRO_STEPS
    assert {("none", "none"), ("rollout", "weightless"), ("rollout", "rollout")} == set(rows)


@pytest.mark.distributed
def test_there_are_micro_steps_in_which_one_process_has_no_token_with_a_loss_over_the_vocabulary(launched):
    """Under ZeRO-3 it has to run teacher and reference all the same."""
    first, second = launched("ddp")["vocabulary"].figures["vocabulary_tokens"]
    assert any((a == 0) != (b == 0) for a, b in zip(first, second, strict=True))
    assert sum(first) > 0 and sum(second) > 0


@pytest.mark.distributed
@pytest.mark.parametrize(
    "backend,variant",
    [(name, variant) for name, backend in BACKENDS.items() for variant in backend.variants if variant not in GENERATE],
)
def test_two_processes_train_as_one(launched, backend, variant):
    one, two = launched("one")[variant], launched(backend)[variant]
    assert one.figures["dtypes"] == two.figures["dtypes"] == ["torch.float32"]
    assert two.figures["teacher_rollouts"] == one.figures["teacher_rollouts"]
    first, second = two.figures["passes"]
    assert first == second, "ZeRO-3 and FSDP hang when processes differ in their forward passes"

    assert len(one.figures["log"]) == len(two.figures["log"]) == STEPS
    for expected, actual in zip(one.figures["log"], two.figures["log"], strict=True):
        assert expected.keys() == actual.keys()
        for name in expected:
            if not name.startswith(NOT_COMPARED):
                relative = 1e-5 if name == "grad_norm" else 0
                assert actual[name] == pytest.approx(expected[name], abs=1e-5, rel=relative), name
    assert len(one.parameters) == len(two.parameters) == STEPS + 1
    for expected, actual in zip(one.parameters, two.parameters, strict=True):
        assert largest_difference(expected, actual) <= 1e-6
    assert largest_difference(one.parameters[0], one.parameters[-1]) > 1e-3, "nothing was trained"
    if backend == "ddp":  # in the first step alone the parameters are the same to the last bit
        assert_same_gradients(one.gradients[0], two.gradients[0])


@pytest.mark.distributed
@pytest.mark.parametrize("backend", BACKENDS)
def test_held_out_accuracy_is_that_of_one_process(launched, backend):
    """Also where the last batch is filled up with samples that count already."""
    one, two = (launched(name)["plain"].figures["held_out"] for name in ("one", backend))
    assert one == two and 0 < one["eval_avg@4"] < one["eval_pass@4"] <= 1
    assert round(20 * one["eval_avg@4"], 9).is_integer() and round(5 * one["eval_pass@4"], 9).is_integer()


@pytest.mark.distributed
@pytest.mark.parametrize("backend", BACKENDS)
def test_saves_the_whole_model(launched, backend):
    plain = launched(backend)["plain"]
    saved = load_file(plain.saved / "model.safetensors")
    assert largest_difference(plain.parameters[-1], saved) == 0


@pytest.mark.distributed
@pytest.mark.parametrize("variant", GENERATE)
def test_generates_under_zero3(launched, variant):
    """Student and teacher sample with partitioned weights, gathered for it or layer by layer, and train on."""
    figures = launched("zero3")[variant].figures
    assert len(figures["log"]) == 2
    assert all(math.isfinite(entry["loss"]) and entry["grad_norm"] > 0 for entry in figures["log"])
    assert sum(entry["teacher_sampling/verified"] for entry in figures["log"]) > 0
    # The log-probabilities were kept for both, also where one process waited for the other to end its generation.
    assert max(figures["worst_logp"]) < 1e-4
    first, second = figures["longest"]
    assert first != second


MICRO_BATCH_SETTINGS = {
    "token_mean": {},
    "sequence_mean": dict(teacher_sft_reduction="sequence_mean", teacher_sft_phi="chord"),
    "sum": dict(teacher_sft_reduction="sum", gate="random"),
    "full_vocabulary": dict(reverse_kl="full_vocabulary"),
    "top_k": dict(reverse_kl="full_vocabulary", reverse_kl_top_k=8, disagree_mode="grpo"),
    "aopd": dict(negative_advantage_mode="forward_kl", forward_kl_top_k=8, sign_gated_extrapolation=False),
}


@pytest.fixture(scope="module")
def whole_step(models, tmp_path_factory) -> dict[str, tuple[dict[str, torch.Tensor], dict[str, float]]]:
    # A folder each: in a common one the second would find the first's teacher rollouts
    return {
        name: one_step(models, tmp_path_factory.mktemp(name), 1, changes)[:2]
        for name, changes in MICRO_BATCH_SETTINGS.items()
    }


def one_step(models, folder: Path, cuts: int, changes: dict[str, Any]):
    """Gradients, log and micro-step shares of one optimizer step of 8 rows in `cuts` micro-batches."""
    keep = Keep()
    trainer = FixedRollouts(
        model=models["student"],
        teacher_model=models["teacher"],
        reward_funcs=even_digits_reward,
        args=settings(
            "plain",
            folder,
            max_steps=1,
            per_device_train_batch_size=ROWS // cuts,
            gradient_accumulation_steps=cuts,
            # Three rollouts for the two prompts, whatever the verifier says of them
            teacher_sampling_ratio=0.6,
            teacher_sampling_filter_correct=False,
            **changes,
        ),
        train_dataset=dataset(64),
        callbacks=[keep],
    )
    trainer.train()
    (log,) = (entry for entry in trainer.state.log_history if "loss" in entry)
    return keep.gradients[0], log, trainer.teacher_shares


@pytest.mark.parametrize("cuts", [2, 4, 8])
@pytest.mark.parametrize("name", MICRO_BATCH_SETTINGS)
def test_a_step_does_not_depend_on_its_micro_batches(models, whole_step, tmp_path, name, cuts):
    expected_gradients, expected_log = whole_step[name]
    gradients, log, shares = one_step(models, tmp_path, cuts, MICRO_BATCH_SETTINGS[name])
    assert shares == ["rollout"] * min(cuts, 3) + ["none"] * (cuts - 3)
    assert log["teacher_sampling/verified"] <= log["teacher_sampling/asked"] == 3
    assert_same_gradients(expected_gradients, gradients)
    for key in expected_log:
        if not key.startswith(NOT_COMPARED):
            assert log[key] == pytest.approx(expected_log[key], abs=1e-5, rel=1e-5), key
