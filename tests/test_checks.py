"""What is refused before anything expensive starts, and what the message says."""

import pytest
import tiny
import torch
from datasets import Dataset, concatenate_datasets
from transformers import AutoModelForCausalLM
from trl.rewards import accuracy_reward

import sgopd_trl.trainer
from sgopd_trl import SGOPDTrainer, checks
from sgopd_trl.miniature import make_tokenizer
from sgopd_trl.rewards import exact_answer_reward


@pytest.fixture
def no_loading(monkeypatch):
    """Fails a test in which a model is loaded before the refusal."""
    monkeypatch.setattr(sgopd_trl.trainer, "load_frozen", lambda *args: pytest.fail("a model was loaded first"))


def build(folders, tmp_path, **kwargs):
    arguments = dict(
        model=str(folders / "student"),
        reward_funcs=tiny.even_digits_reward,
        args=tiny.make_args(tmp_path, **kwargs.pop("settings", {})),
        train_dataset=tiny.dataset(),
        teacher_model=str(folders / "teacher"),
    )
    return SGOPDTrainer(**(arguments | kwargs))


def test_a_teacher_and_a_reward_function_are_required(folders, tmp_path, no_loading):
    with pytest.raises(ValueError, match="teacher_model_name_or_path"):
        build(folders, tmp_path, teacher_model=None)
    for empty in (None, []):
        with pytest.raises(ValueError, match="(?i)at least one reward function"):
            build(folders, tmp_path, reward_funcs=empty)


def test_differing_tokenizers_are_refused_with_the_tokens(folders, tmp_path, no_loading):
    other = make_tokenizer()
    other.add_tokens(["<extra>"])
    with pytest.raises(ValueError, match=r"1 tokens differ: '<extra>' \(student absent, teacher 24\)"):
        build(folders, tmp_path, teacher_processing_class=other)
    checks.check_tokenizers(make_tokenizer(), make_tokenizer(), "teacher", "", None, None)


def test_a_dataset_without_prompt_is_refused_with_its_columns_and_first_row(folders, tmp_path, no_loading):
    rows = Dataset.from_dict({"question": ["51;+5="] * 64})
    with pytest.raises(ValueError, match=r"no column 'prompt', only \['question'\].*51;\+5="):
        build(folders, tmp_path, train_dataset=rows)


def test_answers_that_do_not_verify_are_refused_with_their_rows(folders, tmp_path, no_loading):
    rows = tiny.dataset(64).to_list()
    rows[3]["solution"] = "{7"
    with pytest.raises(ValueError, match=r"1 of 64 answers of column 'solution'.*row 3: '\{7'"):
        build(
            folders,
            tmp_path,
            train_dataset=Dataset.from_list(rows),
            reward_funcs=exact_answer_reward,
            settings={"answer_column": "solution"},
        )


def test_boxed_golds_verify_against_themselves_with_trls_verifier():
    golds = [r"\boxed{8\sqrt{10}}", r"\boxed{\frac{1}{2}}", r"\boxed{204}"]
    rows = Dataset.from_dict({"prompt": [[{"role": "user", "content": "?"}]] * 3, "solution": golds})
    checks.check_answers(rows, "solution", [accuracy_reward], None, 0.5)


def test_over_long_prompts_are_dropped_and_counted():
    tokenizer = make_tokenizer()
    rows = tiny.dataset(4).to_list()
    rows[1]["prompt"] = [{"role": "user", "content": "1" * 40}]
    kept, dropped = checks.filter_long_prompts(Dataset.from_list(rows), 24, tokenizer, None)
    assert (len(kept), dropped) == (3, 1)
    with pytest.raises(ValueError, match="All 4 prompts are longer than `max_prompt_length` = 3"):
        checks.filter_long_prompts(Dataset.from_list(rows), 3, tokenizer, None)
    plain = Dataset.from_dict({"prompt": ["123", "12345"]})
    assert checks.filter_long_prompts(plain, 4, tokenizer, None)[0]["prompt"] == ["123"]
    streamed, unknown = checks.filter_long_prompts(plain.to_iterable_dataset(), 4, tokenizer, None)
    assert [row["prompt"] for row in streamed] == ["123"] and unknown is None


def test_teacher_sampling_says_what_it_cannot_do(folders, tmp_path, no_loading):
    for data in (tiny.dataset(3), concatenate_datasets([tiny.dataset(3)] * 9)):
        with pytest.raises(ValueError, match="has 3 distinct prompts, but a generation batch needs 4"):
            build(folders, tmp_path, train_dataset=data)
    with pytest.raises(ValueError, match="not IterableDataset"):
        build(folders, tmp_path, train_dataset=tiny.dataset().to_iterable_dataset())
    with pytest.raises(ValueError, match="tools"):
        build(folders, tmp_path, tools=[print])


def test_a_bank_of_other_settings_is_refused_before_anything_is_loaded(folders, tmp_path, request):
    bank = {"teacher_bank": str(tmp_path / "bank")}
    build(folders, tmp_path / "run", settings=bank)
    request.getfixturevalue("no_loading")
    with pytest.raises(ValueError, match="sampling.temperature: the bank has 1.0, this run 0.5"):
        build(folders, tmp_path / "run", settings=bank | {"teacher_temperature": 0.5})
    with pytest.raises(ValueError, match="correct_reward_threshold: the bank has 0.5, this run 0.9"):
        build(folders, tmp_path / "run", settings=bank | {"correct_reward_threshold": 0.9})


def test_non_finite_teacher_logprobs_name_prompt_and_position(folders, tmp_path):
    teacher = AutoModelForCausalLM.from_pretrained(folders / "teacher")
    with torch.no_grad():
        teacher.lm_head.weight[7] = torch.nan
    trainer = build(folders, tmp_path, teacher_model=teacher, settings={"teacher_sampling_enable": False})
    with pytest.raises(ValueError, match=r"not finite; the first is nan at completion position 0, .* of the prompt '"):
        trainer.train()


def test_tokens_beyond_the_teachers_embedding_are_named(folders, tmp_path):
    student = tiny.make_model(None, seed=0, vocab_size=40)
    student.config._name_or_path = str(folders / "student")
    trainer = build(folders, tmp_path, model=student, settings={"teacher_sampling_enable": False})
    with pytest.raises(ValueError, match=r"the teacher's embedding has 24 rows"):
        trainer.train()


def test_other_arguments_are_refused_clearly(folders, tmp_path):
    from trl import GRPOConfig

    with pytest.raises(TypeError, match="must be an SGOPDConfig, got GRPOConfig"):
        build(folders, tmp_path, args=GRPOConfig(str(tmp_path), use_cpu=True, bf16=False))
    teacher = AutoModelForCausalLM.from_pretrained(folders / "teacher")
    with pytest.raises(ValueError, match="`teacher_model` is the student itself"):
        build(folders, tmp_path, model=teacher, teacher_model=teacher)
    with pytest.raises(ValueError, match="loaded Qwen3ForCausalLM was passed together with 'main'"):
        build(folders, tmp_path, teacher_model=teacher, settings={"teacher_model_revision": "main"})


def test_a_reference_of_another_family_is_refused(folders, tmp_path, no_loading):
    other = make_tokenizer()
    other.add_tokens(["<extra>"])
    tiny.make_model(tmp_path / "other", seed=2, vocab_size=25)
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match=r"Student and reference .* '<extra>' \(student absent, reference 24\)"):
        build(folders, tmp_path, reference_model=str(tmp_path / "other"))


def test_a_reward_function_that_fails_on_gold_answers_is_named(folders, tmp_path, no_loading):
    rows = Dataset.from_dict({"prompt": ["51;+5="] * 64, "solution": ["56"] * 64})
    with pytest.raises(ValueError, match=r"'accuracy_reward' raised TypeError.*need conversational prompts"):
        build(
            folders,
            tmp_path,
            train_dataset=rows,
            reward_funcs=accuracy_reward,
            settings={"answer_column": "solution"},
        )


def test_answers_are_checked_as_trl_would_ask():
    """A reward function may read the trainer's state, and may require a chain of thought before the answer."""

    def strict(completions, solution, trainer_state, **kwargs):
        assert trainer_state.global_step == 0 and "completion" not in kwargs
        texts = [completion[0]["content"] for completion in completions]
        return [float("</think>" in text and f"{{{gold}}}" in text) for text, gold in zip(texts, solution, strict=True)]

    rows = tiny.dataset(3).add_column("completion", ["x"] * 3)
    checks.check_answers(rows, "solution", [strict], None, 0.5)
    with pytest.raises(ValueError, match="`reward_weights` has 2 values for 1 reward functions"):
        checks.check_answers(rows, "solution", [strict], [1.0, 1.0], 0.5)
