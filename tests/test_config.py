"""Settings: the paper's defaults, and errors that hold the offending value."""

import math
from dataclasses import fields

import pytest
import tiny
from trl import GRPOConfig

from sgopd_trl import SGOPDConfig


def test_defaults_are_the_papers(tmp_path):
    args = SGOPDConfig(str(tmp_path), bf16=False, use_cpu=True)
    assert (args.sign_gated_extrapolation, args.gate, args.lambda_high) == (True, "sign", 1.8)
    assert (args.disagree_mode, args.disagree_interp_beta, args.neutral_mode) == ("interp", 1.0, "conflict")
    assert (args.teacher_sampling_enable, args.teacher_sampling_ratio) == (True, 0.125)
    assert (args.teacher_sampling_phase1_end_frac, args.teacher_sampling_phase2_end_frac) == (0.30, 0.35)
    assert (args.loss_type, args.learning_rate, args.beta, args.num_generations) == ("grpo", 1e-5, 0.0, 8)
    assert (args.vllm_importance_sampling_mode, args.vllm_importance_sampling_clip_max) == ("token_truncate", 5.0)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("gate", "majority"),
        ("agree_mode", "add"),
        ("verifier_weight", 0.0),
        ("disagree_mode", "average"),
        ("neutral_mode", "skip"),
        ("reverse_kl", "k3"),
        ("reverse_kl_top_k", 0),
        ("negative_advantage_mode", "reverse_kl"),
        ("forward_kl_top_k", 0),
        ("teacher_sft_reduction", "median"),
        ("teacher_sft_phi", "dft"),
        ("lambda_high", 0.9),
        ("lambda_base", 0.5),
        ("disagree_interp_beta", 1.5),
        ("stability_tau", 0.0),
        ("teacher_sampling_ratio", 1.0),
        ("teacher_sampling_phase1_end_frac", -0.1),
        ("teacher_sft_alpha_0", -1.0),
        ("teacher_sft_alpha_end", 0.7),
        ("teacher_temperature", -0.5),
        ("teacher_top_p", 0.0),
        ("teacher_top_k", -1),
        ("teacher_max_completion_length", -3),
        ("max_prompt_length", -3),
        ("scoring_tokens_per_batch", 0),
        ("gate_cell_lambdas", [1.0, 2.0]),
        ("gate_cell_lambdas", [1.0, 2.0, 0.5, 1.0]),
        ("gate_cell_lambdas", [math.nan] * 4),
        ("gate_cell_lambdas", [1.0, math.inf, 1.0, 1.0]),
    ],
)
def test_a_bad_value_is_named_with_its_setting(tmp_path, setting, value):
    with pytest.raises(ValueError) as error:
        tiny.make_args(tmp_path, **{setting: value})
    assert f"`{setting}`" in str(error.value) and repr(value) in str(error.value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_every_number_must_be_finite(tmp_path, value):
    floats = [
        field.name
        for field in fields(SGOPDConfig)
        if "float" in str(field.type) and field.name not in GRPOConfig.__dataclass_fields__
    ]
    assert len(floats) >= 16 and "lambda_high" in floats and "teacher_server_retry_timeout" in floats
    for setting in set(floats) - {"gate_cell_lambdas"}:
        with pytest.raises(ValueError, match=f"`{setting}` must be finite, got {value!r}"):
            tiny.make_args(tmp_path, **{setting: value})


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (dict(sign_gated_extrapolation=False, gate="random"), "`gate` = 'random' has no effect"),
        (dict(gate_cell_lambdas=[1.5, 1.0, 1.1, 1.25]), r"`gate_cell_lambdas` = \[1.5, .* needs `gate='two_level'`"),
        (dict(verifier_weight=2.0), "`verifier_weight` = 2.0 needs `agree_mode='reinforce'`, got 'extrapolate'"),
        (dict(forward_kl_top_k=8), "`forward_kl_top_k` = 8 needs `negative_advantage_mode='forward_kl'`"),
        (dict(reverse_kl_top_k=8), "`reverse_kl_top_k` = 8 needs `reverse_kl='full_vocabulary'`"),
    ],
)
def test_a_setting_that_would_have_no_effect_is_refused_with_what_to_do(tmp_path, overrides, message):
    with pytest.raises(ValueError, match=message + ".* leave `") as error:
        tiny.make_args(tmp_path, **overrides)
    assert "et that, or " in str(error.value) or "et `sign_gated_extrapolation=True`, or " in str(error.value)


def test_phase_boundaries_must_be_of_one_kind_and_in_order(tmp_path):
    for p1, p2 in ((0.3, 35), (0.5, 0.4), (50, 40)):
        with pytest.raises(ValueError, match="phase2_end_frac"):
            tiny.make_args(tmp_path, teacher_sampling_phase1_end_frac=p1, teacher_sampling_phase2_end_frac=p2)
    tiny.make_args(tmp_path, teacher_sampling_phase1_end_frac=30, teacher_sampling_phase2_end_frac=35)
    tiny.make_args(tmp_path, teacher_sampling_phase1_end_frac=0, teacher_sampling_phase2_end_frac=35)


def test_an_optimizer_step_lies_within_one_generation_batch(tmp_path):
    with pytest.raises(ValueError, match="steps_per_generation"):
        tiny.make_args(tmp_path, steps_per_generation=3, gradient_accumulation_steps=2)


def test_router_holds_the_settings(tmp_path):
    router = tiny.make_args(tmp_path, gate="two_level", lambda_high=1.5, lambda_base=1.25).router()
    assert router.cells == (1.5, 1.25, 1.25, 1.5)
    assert tiny.make_args(tmp_path, sign_gated_extrapolation=False).router().gate is None


@pytest.mark.parametrize(
    ("setting", "value"),
    [("sign_gated_extrapolation", False), ("gate", "two_level"), ("reverse_kl", "full_vocabulary")],
)
def test_reinforcing_needs_consensus_tokens_and_a_sampled_one(tmp_path, setting, value):
    with pytest.raises(ValueError, match=f"`{setting}` must be .* got {value!r}"):
        tiny.make_args(tmp_path, agree_mode="reinforce", **{setting: value})


def test_every_new_field_has_help():
    new = [f for name, f in SGOPDConfig.__dataclass_fields__.items() if name not in GRPOConfig.__dataclass_fields__]
    assert len(new) > 25 and all(len(f.metadata.get("help", "")) > 20 for f in new)
