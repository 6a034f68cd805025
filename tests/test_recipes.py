"""Every YAML under recipes/ goes through the parser that reads it in earnest."""

from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType

from sgopd_trl.cli.arguments import Parser
from sgopd_trl.cli.train import REWARD_FUNCS, read_command_line
from sgopd_trl.miniature import resolve
from sgopd_trl.teachers.build import TeacherSpec, teacher_specs
from sgopd_trl.verifiers import load_verifier


RECIPES = Path(__file__).parents[1] / "recipes"
FILES = sorted(RECIPES.rglob("*.yaml"))
ACCELERATE = [path for path in FILES if path.parent.name == "accelerate_configs"]
STUDIES = [path for path in FILES if path.stem.startswith("study_")]  # tests/test_study.py reads them
TRAINING = [path for path in FILES if path not in {*ACCELERATE, *STUDIES}]


def name(path: Path) -> str:
    return str(path.relative_to(RECIPES))


def parse(path: Path):
    launch, training, _ = read_command_line(["--config", str(path), "--use_cpu", "true"])
    return launch, Parser().parse_args_and_config(training)


def test_there_are_recipes():
    assert len(ACCELERATE) >= 3 and len(TRAINING) >= 6
    assert not list(RECIPES.rglob("*.yml"))


@pytest.mark.parametrize("path", TRAINING, ids=name)
def test_training_recipe(path, monkeypatch):
    monkeypatch.syspath_prepend(path.parent)  # where a recipe's own verifier lies
    launch, (script_args, training_args, model_args) = parse(path)
    assert launch == []  # else a plain `sgopd train --config` would go through accelerate
    for func in script_args.reward_funcs:
        load_verifier(func, also=REWARD_FUNCS)
    teachers = [settings.get("model_name_or_path") for settings in (training_args.teachers or {}).values()]
    for model in (model_args.model_name_or_path, training_args.teacher_model_name_or_path, *teachers):
        assert model is None or resolve(model)
    assert all(isinstance(spec, TeacherSpec) for spec in teacher_specs(None, training_args).values())
    assert training_args.max_steps == 100


@pytest.mark.parametrize("path", ACCELERATE, ids=name)
def test_accelerate_config(path):
    config = load_config_from_file(str(path))
    expected = DistributedType.MULTI_GPU if path.stem == "ddp" else DistributedType.DEEPSPEED
    assert config.distributed_type == expected
    assert config.mixed_precision == "no"  # any other value would overrule a recipe's `bf16: false`
    assert config.num_processes == 2
    if path.stem.startswith("zero"):
        assert config.deepspeed_config["zero_stage"] == int(path.stem[-1])


def method(recipe: str):
    _, (_, args, _) = parse(RECIPES / "miniature" / recipe / "config.yaml")
    return args


def test_miniature_siblings_differ_in_the_method_only():
    texts = {name(path): yaml.safe_load(path.read_text()) for path in TRAINING if "miniature" in path.parts}
    own = {"output_dir", "sign_gated_extrapolation", "gate", "lambda_high", "lambda_base", "disagree_mode"}
    own |= {"disagree_interp_beta", "teacher_sampling_enable", "teacher_sampling_ratio"}
    own |= {"teacher_sampling_phase1_end_frac", "teacher_sampling_phase2_end_frac"}
    own |= {"teacher_model_name_or_path", "teachers", "dataset_teacher_column", "teacher_bank"}  # where it lives
    own |= {"teacher_server_url", "teacher_server_model", "reward_funcs"}
    own |= {"gate_cell_lambdas", "reference_model_name_or_path", "reverse_kl"}
    own |= {"negative_advantage_mode", "forward_kl_top_k"}
    common = [{key: value for key, value in recipe.items() if key not in own} for recipe in texts.values()]
    assert all(recipe == common[0] for recipe in common)
    assert len({recipe["output_dir"] for recipe in texts.values()}) == len(texts)


@pytest.mark.parametrize(
    ("recipe", "gate", "lambda_base", "teacher_sampling"),
    [
        ("sgopd", "sign", 1.0, True),
        ("random_gate", "random", 1.0, True),
        ("positive_gate", "positive", 1.0, True),
        ("certificates", "sign", 1.0, True),
        ("pts_only", None, 1.0, True),
        ("opd", None, 1.0, False),
        ("exopd", None, 1.25, False),
    ],
)
def test_miniature_methods(recipe, gate, lambda_base, teacher_sampling):
    args = method(recipe)
    router = args.router()
    assert (router.gate, router.lambda_base) == (gate, lambda_base)
    assert args.teacher_sampling_enable is teacher_sampling
    if teacher_sampling:
        assert args.teacher_sampling_ratio == 0.125
        assert (args.teacher_sampling_phase1_end_frac, args.teacher_sampling_phase2_end_frac) == (0.30, 0.35)
    if gate is not None:
        assert (args.lambda_high, args.disagree_mode, args.disagree_interp_beta) == (1.8, "interp", 1.0)


def test_deepmath_is_appendix_c():
    _, (script_args, args, _) = parse(BASE)
    assert 8 * args.per_device_train_batch_size * args.gradient_accumulation_steps == 1024
    assert (args.num_generations, args.max_prompt_length, args.max_completion_length) == (8, 2048, 16384)
    assert (args.teacher_max_completion_length, args.learning_rate, args.warmup_steps) == (14336, 1e-5, 0)
    assert (args.beta, args.num_iterations, args.loss_type, args.temperature) == (0.0, 1, "grpo", 1.0)
    assert (args.vllm_mode, args.vllm_tensor_parallel_size, args.vllm_max_model_length) == ("colocate", 4, 18432)
    assert (args.vllm_importance_sampling_mode, args.vllm_importance_sampling_clip_max) == ("token_truncate", 5.0)
    assert args.vllm_gpu_memory_utilization == 0.6 and args.vllm_importance_sampling_correction
    assert args.gradient_checkpointing and args.chat_template_kwargs == {"enable_thinking": False}
    assert script_args.dataset_filter == "difficulty >= 6"
    row = {"question": "What is 1 + 1?"}
    assert script_args.prompt_template.format(**row) == (
        "What is 1 + 1?\n\nPlease reason step by step, and put your final answer within \\boxed{}."
    )


@pytest.mark.parametrize("path", sorted(RECIPES.glob("Qwen3-1.7B/sgopd/config_deepmath*.yaml")), ids=name)
def test_every_value_of_appendix_c_has_a_source(path):
    lines = path.read_text().split("# Output (ours)")[0]
    previous = ""
    for line in lines.splitlines():
        if line and not line.startswith("#"):
            assert " # " in line or previous.startswith("#"), line
        previous = line


BASE = RECIPES / "Qwen3-1.7B" / "sgopd" / "config_deepmath.yaml"
GATE = {"sign_gated_extrapolation", "gate", "lambda_high", "disagree_mode", "disagree_interp_beta", "neutral_mode"}
STRENGTHS = {"lambda_base", "gate_cell_lambdas"}
SAMPLING = {key for key in yaml.safe_load(BASE.read_text()) if key.startswith("teacher_sampling_")}
ANCHOR = {"teacher_sft_alpha_0", "teacher_sft_alpha_end", "teacher_max_completion_length"}
DIFFERENT = {  # from the best run, by method: what its recipes may set otherwise, or leave out
    "opd": GATE | STRENGTHS | SAMPLING | ANCHOR,
    "exopd": GATE | STRENGTHS | SAMPLING | ANCHOR,
    "beta_all_tokens": GATE | SAMPLING | ANCHOR,
    "gate_only": GATE | SAMPLING | ANCHOR,
    "preserve": GATE | STRENGTHS | SAMPLING | ANCHOR,
    "grpo_fallback": GATE | SAMPLING | ANCHOR,
    "two_level_gate": GATE | STRENGTHS | SAMPLING | ANCHOR,
    "pts_only": GATE | STRENGTHS | SAMPLING,
    "sgopd": {"lambda_high", "disagree_interp_beta", "teacher_sampling_ratio"},
    "reward_correction": {"reference_model_name_or_path", "reference_model_init_kwargs"},
    "full_vocabulary": {"reverse_kl", "reverse_kl_top_k"},
    "aopd": GATE | STRENGTHS | SAMPLING | ANCHOR | {"negative_advantage_mode", "forward_kl_top_k"},
    "multi_teacher": {"teacher_model_name_or_path", "teacher_model_init_kwargs", "teachers", "answer_column"}
    | {"dataset_name", "dataset_filter", "prompt_template", "dataset_answer_column", "box_answer", "reward_funcs"},
}
SIBLINGS = [path for path in TRAINING if "Qwen3-1.7B" in path.parts and not path.stem.startswith("config_deepmath")]


@pytest.mark.parametrize("path", SIBLINGS, ids=name)
def test_a_sibling_differs_from_the_best_run_in_its_method_only(path):
    base, sibling = (yaml.safe_load(file.read_text()) for file in (BASE, path))
    different = {key for key in base.keys() | sibling.keys() if base.get(key, ...) != sibling.get(key, ...)}
    assert different - {"output_dir"} <= DIFFERENT[path.parent.name]
    assert f"#   sgopd train --config recipes/{name(path)} " in path.read_text()


def test_every_recipe_has_its_own_output():
    outputs = [yaml.safe_load(path.read_text())["output_dir"] for path in TRAINING]
    assert len(set(outputs)) == len(outputs)


def test_the_served_teacher_is_the_loaded_one_otherwise():
    """The two recipes differ in where the teacher lives."""
    loaded, served = (
        yaml.safe_load((RECIPES / "Qwen3-1.7B" / "sgopd" / f"config_deepmath{suffix}.yaml").read_text())
        for suffix in ("", "_server")
    )
    different = {key for key in loaded.keys() | served.keys() if loaded.get(key) != served.get(key)}
    where = {"teacher_model_init_kwargs", "teacher_server_url", "teacher_server_concurrency"}
    assert different == where | {"output_dir"}
