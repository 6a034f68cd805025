"""The card of a run: what TRL writes, with the method, its settings and the run's figures."""

import pytest
from huggingface_hub import ModelCard
from transformers import TrainerState
from trl.trainer.utils import generate_model_card

from sgopd_trl import SGOPDConfig, SGOPDTrainer
from sgopd_trl.model_card import add_method_section


@pytest.fixture
def args(tmp_path):
    return SGOPDConfig(
        output_dir=str(tmp_path / "run"),
        use_cpu=True,
        bf16=False,
        lambda_high=1.5,
        teacher_model_name_or_path="miniature:clean",
        teacher_model_init_kwargs={"token": "hf_secret"},
    )


@pytest.fixture
def card(tmp_path):
    path = tmp_path / "README.md"
    generate_model_card(
        base_model=None,
        model_name="student",
        hub_model_id=None,
        dataset_name=None,
        tags=["sgopd"],
        wandb_url=None,
        trackio_url=None,
        trainer_name=SGOPDTrainer._name,
        trainer_citation=SGOPDTrainer._paper["citation"],
    ).save(path)
    return path


STATE = TrainerState(
    global_step=20,
    log_history=[
        {"step": 10, "reward": 0.2, "reverse_kl": 0.9, "sign/agree": 0.3},
        {"step": 20, "reward": 0.75, "reverse_kl": 0.25, "sign/agree": 0.4, "teacher_sampling/alpha": 0.05},
        {"step": 20, "train_runtime": 3.0},
    ],
)


def test_section(card, args):
    add_method_section(card, args, STATE)
    text = ModelCard.load(card).text
    section = text[text.index("### Method") : text.index("### Framework versions")]
    assert "| `lambda_high` | `1.5` |" in section
    assert "| `loss_type` | `grpo` |" in section  # a default that SGOPDConfig changes
    assert "| `teacher_model_name_or_path` | `miniature:clean` |" in section
    assert "| optimizer steps | 20 |" in section
    assert "(`reward`) | 0.75 |" in section and "(`reverse_kl`) | 0.25 |" in section
    assert "`sign/disagree`" not in section  # never logged
    for name in SGOPDConfig.__annotations__:
        assert (f"`{name}`" in section) is not name.endswith("_init_kwargs")


def test_nothing_of_the_machine_and_no_token(card, args, tmp_path):
    add_method_section(card, args, STATE)
    text = card.read_text()
    assert str(tmp_path) not in text and "hf_secret" not in text
    assert "None](https" not in text and "time machine" not in text


def test_the_rest_of_the_card_stays(card, args):
    before = ModelCard.load(card)
    add_method_section(card, args, STATE)
    after = ModelCard.load(card)
    assert after.data.to_dict() == before.data.to_dict()
    assert after.text.split("### Framework versions")[1] == before.text.split("### Framework versions")[1]
    assert "xu2026sgopd" in after.text


def test_twice_is_once(card, args):
    add_method_section(card, args, STATE)
    once = card.read_text()
    add_method_section(card, args, STATE)
    assert card.read_text() == once
    later = TrainerState(global_step=30, log_history=[{"reward": 0.875}])
    add_method_section(card, args, later)
    text = card.read_text()
    assert text.count("### Method") == 1 and "0.875" in text and "| 0.75 |" not in text


def test_a_card_without_the_heading_is_refused(card, args):
    card.write_text(card.read_text().replace("### Framework versions", "### Versions"))
    with pytest.raises(ValueError, match="no heading '### Framework versions'"):
        add_method_section(card, args, STATE)
