"""Each recipe takes two optimizer steps on the miniature's models, with the update that its method promises.

What is the machine's or the data's at the paper's scale (models, files, vLLM, lengths, precision, batch) is replaced by what
runs here; the method's own settings are the recipe's.
"""

import functools
import itertools
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from datasets import Dataset
from fake_server import FakeServer
from test_recipes import RECIPES, TRAINING, name
from transformers import Trainer

from sgopd_trl import full_vocabulary
from sgopd_trl.baselines.gkd import GKDTrainer
from sgopd_trl.baselines.grpo import GRPOBaseline
from sgopd_trl.baselines.sft import SeqKDTrainer, SFTOnRollouts
from sgopd_trl.cli import main
from sgopd_trl.full_vocabulary import FullVocabulary
from sgopd_trl.metrics_log import read_metrics
from sgopd_trl.miniature import make_dataset, make_tokenizer
from sgopd_trl.routing import Router


PROMPTS = 8  # a step: with rho = 0.125 that is one prompt for the teacher at the first
ROLLOUT_STEPS = 20
MODELS = {
    "Qwen/Qwen3-1.7B": "miniature:guess",
    "Qwen/Qwen3-4B": "miniature:nine",
    "Keven16/Qwen3-4B-Non-Thinking-RL-Math-Step500": "miniature:clean",
    "Keven16/Qwen3-4B-Non-Thinking-RL-Code-Step300": "miniature:nine",
    "zwhe99/DeepMath-103K": "miniature",
}
LEFT_OUT = {"chat_template_kwargs", "prompt_template", "dataset_filter", "dataset_answer_column", "use_vllm"}
LEFT_OUT |= {
    "teacher_model_init_kwargs",
    "reference_model_init_kwargs",
    "teacher_server_concurrency",
    "max_prompt_length",
}
WHERE_GIVEN = {
    "num_generations": 2,
    "max_completion_length": 32,
    "teacher_max_completion_length": 32,
    "dtype": "float32",
    "learning_rate": 1e-3,
}
ALWAYS = {
    "max_train_samples": 64,
    "max_steps": 2,
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "save_strategy": "no",
    "disable_tqdm": True,
}
DATA = functools.cache(make_dataset)  # half a second a run


@dataclass
class Routed:
    """What one call of `Router.advantages` was given and what it returned; a1 is (B, L) here."""

    a1: torch.Tensor
    a2: torch.Tensor
    consensus: torch.Tensor
    teacher: torch.Tensor
    reference: torch.Tensor
    advantages: torch.Tensor


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for variable in ("RANK", "LOCAL_RANK", "ACCELERATE_MIXED_PRECISION", "SGOPD_DEBUG"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # recipes set it too: keep that out of the other tests
    monkeypatch.setattr("sgopd_trl.data.make_dataset", DATA)


@pytest.fixture
def routed(monkeypatch) -> list[Routed]:
    """Every call of `Router.advantages` from now on."""
    calls = []
    original = Router.advantages

    def recording(self, a1, a2, consensus, teacher_logps, ref_logps=None, outcome=None):
        advantages = original(self, a1, a2, consensus, teacher_logps, ref_logps, outcome)
        reference = teacher_logps if ref_logps is None else ref_logps
        per_token = a1.unsqueeze(1).expand_as(a2) if a1.dim() == 1 else a1
        calls.append(Routed(per_token, a2, consensus, teacher_logps, reference, advantages))
        return advantages

    monkeypatch.setattr(Router, "advantages", recording)
    return calls


def small(recipe: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The recipe with models, data and sizes that run here."""
    accumulation = min(2, recipe.get("gradient_accumulation_steps", 1))
    batch = WHERE_GIVEN["num_generations"] * PROMPTS // accumulation
    kept = {k: _replaced(v) for k, v in recipe.items() if k not in LEFT_OUT and not k.startswith("vllm_")}
    given = {key: value for key, value in WHERE_GIVEN.items() if key in recipe}
    changed = given | ALWAYS | {"output_dir": str(folder / "out"), "gradient_accumulation_steps": accumulation}
    changed["per_device_train_batch_size"] = batch
    if "reward_funcs" in recipe and recipe["reward_funcs"] == ["math"]:
        changed["reward_funcs"] = ["exact_answer_reward"]  # `math` starts processes
    if "teacher_bank" in recipe:
        changed["teacher_bank"] = str(folder / "bank")
    if "stages" in recipe:
        kept = {key: value for key, value in kept.items() if not key.startswith("teacher_server_")}
        changed["max_steps"] = ROLLOUT_STEPS  # of the run whose rollouts are made; the stages that train state theirs
        changed["stages"] = [_small_stage(stage) for stage in recipe["stages"]]
    if recipe["dataset_name"] == "data/math_and_code.jsonl":
        changed["dataset_name"] = str(_math_and_code(folder))
    return kept | changed


def _small_stage(stage: dict[str, Any]) -> dict[str, Any]:
    sizes = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 1}
    given = {key: value for key, value in sizes.items() if key in stage}
    return stage | given | ({"max_steps": 2} if stage.get("command") != "teacher-rollouts" else {})


def _replaced(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _replaced(inner) for key, inner in value.items()}
    return MODELS.get(value, value) if isinstance(value, str) else value


def _math_and_code(folder: Path) -> Path:
    rows = make_dataset("train", 32)
    prompts = [row["prompt"] for row in rows]
    teachers = list(itertools.islice(itertools.cycle(["math", "code"]), len(rows)))
    path = folder / "math_and_code.jsonl"
    Dataset.from_dict({"prompt": prompts, "solution": list(rows["solution"]), "teacher": teachers}).to_json(path)
    return path


def train(path: Path, folder: Path, monkeypatch, **overrides: Any) -> list[dict[str, Any]]:
    """Trains by the recipe and returns the metrics of its two steps."""
    monkeypatch.syspath_prepend(path.parent)
    recipe = small(yaml.safe_load(path.read_text()), folder) | overrides
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump({key: value for key, value in recipe.items() if value is not ...}))
    assert main(["train", "--config", str(file)]) == 0
    return steps_in(folder / "out")


def steps_in(folder: Path) -> list[dict[str, Any]]:
    steps = [row for row in read_metrics(folder / "metrics.jsonl") if "loss" in row]
    assert [row["step"] for row in steps] == [1, 2]
    assert all(math.isfinite(row["loss"]) for row in steps)
    assert all(row["grad_norm"] > 0 for row in steps)
    return steps


# What each method ascends


def opd(r: Routed) -> torch.Tensor:
    return r.a2


def extrapolated(lam: float) -> Callable[[Routed], torch.Tensor]:
    return lambda r: r.a2 + (lam - 1) * (r.teacher - r.reference)


def gated(lam: float, fallback: Callable[[Routed], torch.Tensor]) -> Callable[[Routed], torch.Tensor]:
    return lambda r: torch.where(r.a1 * r.a2 > 0, extrapolated(lam)(r), fallback(r))


def by_coin(r: Routed) -> torch.Tensor:
    return torch.where(r.consensus, extrapolated(1.8)(r), r.a2)


def positive(r: Routed) -> torch.Tensor:
    return torch.where((r.a1 > 0) & (r.a2 > 0), extrapolated(1.8)(r), r.a2)


def four_cells(r: Routed) -> torch.Tensor:
    update = r.a2
    for sign_1, sign_2, lam in ((1, 1, 1.5), (1, -1, 1.0), (-1, 1, 1.1), (-1, -1, 1.25)):
        update = torch.where((r.a1 * sign_1 > 0) & (r.a2 * sign_2 > 0), extrapolated(lam)(r), update)
    return update


def shrunk(beta: float) -> Callable[[Routed], torch.Tensor]:
    return lambda r: beta * r.a2


def reinforced(r: Routed) -> torch.Tensor:
    agrees, undecided = r.a1 * r.a2 > 0, r.a1 * r.a2 == 0
    return torch.where(agrees, r.a2 + r.a1, torch.where(undecided, r.a2, 0.0))


def outcome(r: Routed) -> torch.Tensor:
    return r.a1


BEST = gated(1.8, opd)
UPDATES = {  # by method, and by recipe where a method has several
    "opd": opd,
    "exopd/config": extrapolated(1.25),
    "exopd/config_1.25": extrapolated(1.25),
    "exopd/config_1.8": extrapolated(1.8),
    "beta_all_tokens": shrunk(0.7),
    "gate_only/config": BEST,
    "gate_only/config_1.8_interp1": BEST,
    "gate_only/config_1.5_interp0.7": gated(1.5, shrunk(0.7)),
    "gate_only/config_1.8_interp0.7": gated(1.8, shrunk(0.7)),
    "preserve": gated(1.5, extrapolated(1.25)),
    "grpo_fallback": gated(1.8, outcome),
    "two_level_gate": four_cells,
    "pts_only": opd,
    "sgopd": BEST,
    "sgopd/config_1.5_interp0.7": gated(1.5, shrunk(0.7)),
    "random_gate": by_coin,
    "positive_gate": positive,
    "certificates": BEST,
    "reinforce": reinforced,
    "multi_teacher": BEST,
    "reward_correction": BEST,
}
WITH_SAMPLING = {
    "pts_only",
    "sgopd",
    "random_gate",
    "positive_gate",
    "certificates",
    "multi_teacher",
    "reward_correction",
    "full_vocabulary",
}
ROUTED = [path for path in TRAINING if path.parent.name in {key.partition("/")[0] for key in UPDATES}]


def key(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


@pytest.mark.parametrize("path", [path for path in ROUTED if "server" not in path.stem], ids=name)
def test_update_of(path, tmp_path, monkeypatch, routed):
    steps = train(path, tmp_path, monkeypatch)
    check_update(path, routed)
    check_sampling(path, steps)
    # The shares are those of all tokens that were routed
    assert all(row["sign/agree"] + row["sign/disagree"] + row["sign/neutral"] == pytest.approx(1) for row in steps)


def check_update(path: Path, routed: list[Routed]) -> None:
    update = UPDATES.get(key(path)) or UPDATES[path.parent.name]
    assert len(routed) >= 2
    assert any((r.a1 != 0).any() for r in routed)  # the gate had something to read
    for r in routed:
        torch.testing.assert_close(r.advantages, update(r))


def check_sampling(path: Path, steps: list[dict[str, Any]]) -> None:
    alphas = [row["teacher_sampling/alpha"] for row in steps]
    if path.parent.name not in WITH_SAMPLING:
        assert alphas == [0, 0]
        return
    assert alphas == [0.1, 0]  # P1 and P2 are shares of two steps here
    asked = [row["teacher_sampling/asked"] + row["teacher_sampling/from_bank"] for row in steps]
    # rho = 0.125 of 8 + 8/7 prompts, 0.25 of 8 + 8/3
    assert asked == [2 if "rho0.25" in path.stem else 1, 0]


@pytest.mark.parametrize("path", [path for path in ROUTED if "server" in path.stem], ids=name)
def test_update_of_a_served_teacher(path, tmp_path, monkeypatch, routed):
    """The server is not vLLM here, but speaks its API; tests/test_vllm_server.py has the real one."""
    tokenizer = make_tokenizer()
    server = FakeServer(model="clean", max_model_len=512, detokenize=tokenizer.decode)
    try:
        overrides = {"teacher_server_url": [server.url], "teacher_model_name_or_path": ...}
        steps = train(path, tmp_path, monkeypatch, **overrides)
    finally:
        server.stop()
    check_update(path, routed)
    check_sampling(path, steps)
    assert any("prompt_logprobs" in body for body in server.requests)
    assert any(body.get("return_token_ids") for body in server.requests)


@pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")
def test_the_verifier_of_the_recipe_with_a_maths_and_a_code_teacher(monkeypatch):
    monkeypatch.syspath_prepend(RECIPES / "Qwen3-1.7B" / "multi_teacher")
    from math_or_code import judge

    double = '{"fn_name": "double", "inputs": [[2]], "outputs": [4]}'
    program = "```python\ndef double(x):\n    return x * 2\n```"
    assert judge(program, double).correct and not judge(program.replace("2", "3"), double).correct
    assert judge(r"\boxed{\frac12}", "0.5").correct and not judge(program, "0.5").correct


# Losses over the vocabulary


@pytest.fixture
def taken_over(monkeypatch) -> list[tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]]:
    """What each call of `FullVocabulary.take_over` was given and what it returned."""
    calls = []
    original = FullVocabulary.take_over

    def recording(self, a1, a2, consensus, advantages, phi):
        result = original(self, a1, a2, consensus, advantages, phi)
        calls.append(({"a1": a1.unsqueeze(1), "a2": a2, "phi": phi}, result))
        return result

    monkeypatch.setattr(FullVocabulary, "take_over", recording)
    return calls


def of_method(method: str) -> list:
    return [pytest.param(path, id=name(path)) for path in TRAINING if path.parent.name == method]


def record_top_k(monkeypatch, function: str) -> list[int | None]:
    """The `top_k` of each call of one of the losses, which is its last argument."""
    seen, original = [], getattr(full_vocabulary, function)

    def recording(*args):
        seen.append(args[-1])
        return original(*args)

    monkeypatch.setattr(full_vocabulary, function, recording)
    return seen


@pytest.mark.parametrize("path", of_method("full_vocabulary"))
def test_full_vocabulary(path, tmp_path, monkeypatch, taken_over):
    top_k = record_top_k(monkeypatch, "reverse_kl_loss")
    check_sampling(path, train(path, tmp_path, monkeypatch))
    for given, result in taken_over:
        consensus = given["a1"] * given["a2"] > 0
        torch.testing.assert_close(result["vocabulary_strengths"], torch.where(consensus, 1.8, 1.0).to(given["a2"]))
        torch.testing.assert_close(result["vocabulary_weights"], given["phi"])  # on conflict tokens, too
        assert not result["advantages"].any()
    assert set(top_k) == {None}


@pytest.mark.parametrize("path", of_method("aopd"))
def test_aopd(path, tmp_path, monkeypatch, taken_over):
    top_k = record_top_k(monkeypatch, "forward_kl_loss")
    check_sampling(path, train(path, tmp_path, monkeypatch))
    for given, result in taken_over:
        assert given["phi"] is None
        negative = given["a2"] <= 0
        torch.testing.assert_close(result["advantages"], torch.where(negative, 0.0, given["a2"]))
        torch.testing.assert_close(result["vocabulary_weights"], negative.float())
    assert set(top_k) == {8 if "miniature" in path.parts else 32}


# Baselines by other trainers


@pytest.fixture
def trainers(monkeypatch) -> list[Trainer]:
    """The trainers whose `train` has been called, in order."""
    called = []
    original = Trainer.train

    def recording(self, *args, **kwargs):
        called.append(self)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Trainer, "train", recording)
    return called


@pytest.mark.parametrize("path", of_method("grpo"))
def test_grpo(path, tmp_path, monkeypatch, trainers):
    steps = train(path, tmp_path, monkeypatch, reward_funcs=["test_recipes_run.even_digits"])
    assert type(trainers[0]) is GRPOBaseline and trainers[0].beta == 0
    # At ratio 1 it is the mean advantage, 0 by the group's normalisation: the mean over sequences, as `loss_type: grpo` has it
    assert all(abs(row["loss"]) < 1e-5 and 0 <= row["reward"] <= 1 for row in steps)


@pytest.mark.parametrize("path", of_method("gkd"))
def test_gkd(path, tmp_path, monkeypatch, trainers):
    steps = train(path, tmp_path, monkeypatch)
    assert isinstance(trainers[0], GKDTrainer) and trainers[0].beta == 0.0
    assert all(row["gkd/on_policy"] == 1 and row["loss"] > 0.01 for row in steps)  # a forward KL is no mean advantage


@pytest.mark.parametrize("path", of_method("sft") + of_method("seqkd"))
def test_learning_from_the_teachers_rollouts(path, tmp_path, monkeypatch, trainers):
    teacher = {"teacher_model_name_or_path": "miniature:noisy"}  # which is wrong often
    train(path, tmp_path, monkeypatch, **teacher)
    bank = bank_of(tmp_path)
    assert len(bank) == ALWAYS["max_train_samples"] and 0 < sum(bank["correct"]) < len(bank)
    learned = trainers[-1].train_dataset
    rollouts = bank if path.parent.name == "seqkd" else bank.filter(lambda row: row["correct"])
    assert sorted(learned["input_ids"]) == sorted(
        p + c for p, c in zip(rollouts["prompt_ids"], rollouts["completion_ids"])
    )
    assert type(trainers[-1]) is (SeqKDTrainer if path.parent.name == "seqkd" else SFTOnRollouts)


def bank_of(folder: Path) -> Dataset:
    """The rollouts of the only bank that a run has made."""
    (bank,) = folder.rglob("bank.json")
    files = sorted(map(str, bank.parent.glob("data/*.parquet")))
    return Dataset.from_parquet(files)


@pytest.mark.parametrize("path", of_method("time_separated"))
def test_time_separated(path, tmp_path, monkeypatch, trainers, routed):
    steps = train(path, tmp_path, monkeypatch)
    # alpha is above 0 at the first six of 20 steps: P1 = 6, and at P2 = 7 it has come down to 0
    assert len(bank_of(tmp_path)) == 6 * PROMPTS // 7
    first, second = trainers
    assert type(first) is SFTOnRollouts and len(first.train_dataset) == sum(bank_of(tmp_path)["correct"])
    steps_in(tmp_path / "out" / "_stages" / "stage1_sft")
    assert second.model.name_or_path == str(tmp_path / "out" / "_stages" / "stage1_sft")
    assert [row["teacher_sampling/alpha"] for row in steps] == [0, 0]
    update = {"config_sft_then_opd": opd, "config_1.5_interp0.7": gated(1.5, shrunk(0.7))}.get(path.stem, BEST)
    for r in routed:
        torch.testing.assert_close(r.advantages, update(r))


def test_every_recipe_is_run_here():
    others = {"full_vocabulary", "aopd", "grpo", "gkd", "sft", "seqkd", "time_separated"}
    assert {path.parent.name for path in TRAINING} == {path.parent.name for path in ROUTED} | others


def test_without_the_filter_wrong_teacher_rollouts_are_learned_from(tmp_path, monkeypatch):
    tokens = {}
    for stem in ("config_30_35", "config_30_35_unfiltered"):
        (tmp_path / stem).mkdir()
        path = RECIPES / "Qwen3-1.7B" / "pts_only" / f"{stem}.yaml"
        steps = train(path, tmp_path / stem, monkeypatch, reward_funcs=["test_recipes_run.only_golds"])
        assert steps[0]["teacher_sampling/verified"] == 0
        tokens[stem] = steps[0]["teacher_sampling/tokens"]
    assert tokens["config_30_35"] == 0 < tokens["config_30_35_unfiltered"]


def even_digits(completions, **kwargs) -> list[float]:
    """A verifier that about half of the student's rollouts pass: is the sum of the digits even?"""
    return [float(sum(map(int, filter(str.isdigit, c[0]["content"]))) % 2 == 0) for c in completions]


def only_golds(completions, trainer_state=None, **kwargs) -> list[float]:
    """A verifier that no rollout passes, only the golds before training."""
    return [float(trainer_state is None or trainer_state.max_steps == 0) for _ in completions]
