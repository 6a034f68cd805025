"""Every YAML under recipes/ goes through the parser that reads it in earnest; docs/paper_tables.md lists them all."""

import re
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType

from sgopd_trl.cli.recipe import read_recipe
from sgopd_trl.cli.stages import check_stage, read_stages
from sgopd_trl.cli.train import parse as parse_arguments
from sgopd_trl.cli.train import read_command_line
from sgopd_trl.config import SGOPDConfig
from sgopd_trl.miniature import resolve
from sgopd_trl.teachers.build import TeacherSpec, teacher_specs
from sgopd_trl.verifiers import load_verifier


RECIPES = Path(__file__).parents[1] / "recipes"
BASE = RECIPES / "Qwen3-1.7B" / "sgopd" / "config_deepmath.yaml"
MINIATURE = RECIPES / "miniature" / "sgopd" / "config.yaml"
FILES = sorted(RECIPES.rglob("*.yaml"))
ACCELERATE = [path for path in FILES if path.parent.name == "accelerate_configs"]
STUDIES = [path for path in FILES if path.stem.startswith("study_")]  # tests/test_study.py reads them
TRAINING = [path for path in FILES if path not in {*ACCELERATE, *STUDIES}]


def name(path: Path) -> str:
    return str(path.relative_to(RECIPES))


def parse(path: Path):
    """The launch arguments and the three dataclasses of a recipe without stages."""
    launch, training, _ = read_command_line(["--config", str(path), "--use_cpu", "true"])
    return launch, parse_arguments(training)


def stages(path: Path):
    """The stages of a recipe that has some, each parsed as its command would."""
    recipe, source = read_recipe(["--config", str(path)])
    found, _ = read_stages(recipe, source, ["--use_cpu", "true"])
    for stage in found:
        check_stage(stage, source)
    return found


def is_staged(path: Path) -> bool:
    return "stages" in yaml.safe_load(path.read_text())


def test_there_are_recipes():
    assert len(ACCELERATE) >= 3 and len(TRAINING) >= 6
    assert not list(RECIPES.rglob("*.yml"))


@pytest.mark.parametrize("path", [path for path in TRAINING if not is_staged(path)], ids=name)
def test_training_recipe(path, monkeypatch):
    monkeypatch.syspath_prepend(path.parent)  # where a recipe's own verifier lies
    launch, (script_args, args, model_args) = parse(path)
    assert launch == []  # else a plain `sgopd train --config` would go through accelerate
    for func in script_args.reward_funcs:
        load_verifier(func)
    teachers = [settings.get("model_name_or_path") for settings in (getattr(args, "teachers", None) or {}).values()]
    teacher = getattr(args, "teacher_model_name_or_path", None)
    for model in (model_args.model_name_or_path, teacher, *teachers):
        assert model is None or resolve(model)
    if isinstance(args, SGOPDConfig):
        assert all(isinstance(spec, TeacherSpec) for spec in teacher_specs(None, args).values())
    assert args.max_steps == 100


@pytest.mark.parametrize("path", [path for path in TRAINING if is_staged(path)], ids=name)
def test_recipe_with_stages(path):
    first, *trained = stages(path)
    assert first.command == "teacher-rollouts"
    assert all(stage.command == "train" for stage in trained)
    # The budget of the other recipes: their steps, and for what is not trained on all prompts, their teacher's rollouts
    assert sum(stage.recipe["max_steps"] for stage in trained) == 100
    if path.parent.name == "time_separated":
        best = yaml.safe_load((BASE if "Qwen3-1.7B" in path.parts else MINIATURE).read_text())
        drawn_by = {
            "max_steps",
            "seed",
            "num_generations",
            "per_device_train_batch_size",
            "gradient_accumulation_steps",
        }
        drawn_by |= {key for key in best if key.startswith(("teacher_", "dataset_"))}
        assert {key: first.recipe.get(key) for key in drawn_by} == {key: best.get(key) for key in drawn_by}
        assert first.options == [] and [stage.recipe["max_steps"] for stage in trained] == [35, 65]
        assert [stage.trainer for stage in trained] == ["sft", "sgopd"]
        assert trained[1].recipe["model_name_or_path"] == trained[0].recipe["output_dir"]
        assert trained[1].recipe["teacher_sampling_enable"] is False
    else:
        assert first.options == ["--prompts", "all"] and [stage.trainer for stage in trained] == ["sft"]
        expected = {"sft": "verified", "seqkd": "all"}[path.parent.name]
        assert trained[0].recipe["teacher_rollouts"] == expected


@pytest.mark.parametrize("path", ACCELERATE, ids=name)
def test_accelerate_config(path):
    config = load_config_from_file(str(path))
    expected = DistributedType.MULTI_GPU if path.stem == "ddp" else DistributedType.DEEPSPEED
    assert config.distributed_type == expected
    assert config.mixed_precision == "no"  # any other value would overrule a recipe's `bf16: false`
    assert config.num_processes == 2
    if path.stem.startswith("zero"):
        assert config.deepspeed_config["zero_stage"] == int(path.stem[-1])


OF_METHOD = {  # settings that another trainer has alone, or does not have, and those of one method
    "aopd": {"negative_advantage_mode", "forward_kl_top_k", "stability_tau"},
    "grpo": {"loss_type"},
    "gkd": {"beta", "lmbda", "num_generations"},
    "sft": {"num_generations"},
    "seqkd": {"num_generations"},
}


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
    own |= {"trainer", "stages", "agree_mode", "verifier_weight", "neutral_mode"}
    own |= {"gate_cell_lambdas", "reference_model_name_or_path", "reverse_kl"}
    base = texts[name(MINIATURE)]
    for path, recipe in texts.items():
        different = {key for key in base.keys() | recipe.keys() if base.get(key, ...) != recipe.get(key, ...)}
        assert different - own <= OF_METHOD.get(path.split("/")[1], set()), path


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


@pytest.mark.parametrize("path", [path for path in TRAINING if path.parent.name == "aopd"], ids=name)
def test_aopd_is_the_baseline_of_the_docs(path):
    """Its positive tokens are OPD's without Eq. (9), which is not AOPD's: docs/method.md has the settings."""
    _, (_, args, _) = parse(path)
    page = (RECIPES.parent / "docs" / "method.md").read_text()
    settings = yaml.safe_load(page.split("The baseline is\n")[1].split("\nBoth need")[0])
    assert settings["stability_tau"] is None and len(settings) == 5
    assert settings == {key: getattr(args, key) for key in settings}


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


GATE = {"sign_gated_extrapolation", "gate", "lambda_high", "disagree_mode", "disagree_interp_beta", "neutral_mode"}
STRENGTHS = {"lambda_base", "gate_cell_lambdas"}
SAMPLING = {key for key in yaml.safe_load(BASE.read_text()) if key.startswith("teacher_sampling_")}
METHOD = GATE | STRENGTHS | SAMPLING
ANCHOR = {"teacher_sft_alpha_0", "teacher_sft_alpha_end", "teacher_max_completion_length"}
IMPORTANCE = {f"vllm_importance_sampling_{what}" for what in ("correction", "mode", "clip_max")}
ROLLOUTS = GATE | SAMPLING | ANCHOR | {"stages", "stability_tau", "teacher_bank", "num_generations", "num_iterations"}
ROLLOUTS |= {"teacher_model_init_kwargs", "teacher_server_url", "teacher_server_concurrency", "beta", "loss_type"}
ROLLOUTS |= {key for key in yaml.safe_load(BASE.read_text()) if "vllm" in key}
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
    "aopd": GATE | STRENGTHS | SAMPLING | ANCHOR | {"negative_advantage_mode", "forward_kl_top_k", "stability_tau"},
    "grpo": GATE
    | SAMPLING
    | ANCHOR
    | {"trainer", "stability_tau", "learning_rate"}
    | {"teacher_model_name_or_path", "teacher_model_init_kwargs"},
    "gkd": GATE
    | SAMPLING
    | ANCHOR
    | {"trainer", "stability_tau", "lmbda", "num_generations"}
    | {"num_iterations", "loss_type"}
    | IMPORTANCE,
    "sft": ROLLOUTS,
    "seqkd": ROLLOUTS,
    "time_separated": GATE | STRENGTHS | {"stages"},
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


# docs/paper_tables.md

TABLES = RECIPES.parent / "docs" / "paper_tables.md"
# The average of each row of Table 3, in the paper's order: 23 are printed, though the caption says 24
TABLE_3 = (
    "27.55 27.99 27.99 24.71 23.80 28.78 28.54 28.26 27.81 28.59 28.15 27.89 27.94 27.60 27.37 29.53 29.19 28.31 28.85"
)
TABLE_3 += " 28.78 28.65 28.39 27.06"


def rows(section: str) -> list[list[str]]:
    """The cells of the tables' rows under a heading of the page, without their heads."""
    text = TABLES.read_text().split(f"## {section}")[1].split("\n## ")[0]
    lines = [line for line in text.splitlines() if line.startswith("|") and not line.startswith("|---")]
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in lines if "at the paper's scale" not in line
    ]


def linked(text: str) -> list[str]:
    return re.findall(r"\]\(\.\./recipes/([^)]*\.yaml)\)", text)


def test_the_page_of_tables_lists_every_recipe_and_no_other():
    assert set(linked(TABLES.read_text())) == {name(path) for path in TRAINING}


def test_every_row_of_table_3_has_its_recipes():
    found = rows("Table 3")
    assert [row[-1] for row in found] == TABLE_3.split()
    for row in found:
        (at_scale,), (here,) = linked(row[1]), linked(row[2])
        assert at_scale.startswith("Qwen3-1.7B/") and here.startswith("miniature/")
        assert at_scale.split("/")[1] == here.split("/")[1]  # the same method


def test_the_overrides_in_the_tables_are_those_of_the_paper_s_scale():
    """A row that has no file of its own here is the method's file with overrides: they must make it the row's other recipe."""
    for row in [*rows("Table 3"), *rows("Appendix H")]:
        overrides = " ".join(re.findall(r"`(--[^`]*)`", row[2])).split()
        if not overrides:
            continue
        keys = dict(zip((flag[2:] for flag in overrides[::2]), map(yaml.safe_load, overrides[1::2]), strict=True))
        (at_scale,), (here,) = linked(row[1]), linked(row[2])
        there = yaml.safe_load((RECIPES / at_scale).read_text())
        assert keys == {key: there[key] for key in keys}, row[0]
        made = yaml.safe_load((RECIPES / here).read_text()) | keys
        for key in METHOD & made.keys() & there.keys():
            assert made[key] == there[key], (row[0], key)


@pytest.mark.parametrize("path", [path for path in TRAINING if path.parent.name == "two_level_gate"], ids=name)
def test_the_two_level_gate_has_table_3s_strength_as_its_first_cell(path):
    """`lambda_high` is the row's as the paper prints it; the router reads the cells in its place."""
    recipe = yaml.safe_load(path.read_text())
    assert recipe["lambda_high"] == recipe["gate_cell_lambdas"][0] == 1.5


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
