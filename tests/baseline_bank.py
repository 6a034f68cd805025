"""A small bank of made-up rollouts of the miniature's first prompts."""

import json
from collections.abc import Callable
from pathlib import Path

from sgopd_trl.miniature import make_dataset, make_tokenizer
from sgopd_trl.rollout_bank import MANIFEST, BankRollout, RolloutBank, tokenizer_hash
from sgopd_trl.teacher_sampling import prompt_key
from sgopd_trl.teachers.identity import identity_entry, weights_hash


PROMPTS = 16
QUIET_ON_CPU = {  # settings of a recipe
    "logging_steps": 1,
    "report_to": "none",
    "bf16": False,
    "gradient_checkpointing": False,
    "use_cpu": True,
    "disable_tqdm": True,
}


def fill(folder: Path, teacher: Path, correct: Callable[[int], bool] = lambda number: number % 3 != 0) -> Path:
    """Two rollouts of each prompt, of different lengths. The n-th prompt's are verified where `correct(n // 2)` holds."""
    tokenizer = make_tokenizer()
    digits = tokenizer.convert_tokens_to_ids(list("0123456789"))
    rollouts = []
    rows = make_dataset("train", 4096).select(range(PROMPTS))
    for n, row in enumerate(rows):
        prompt_ids = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=True)[
            "input_ids"
        ]
        for number in range(2):
            ids = [digits[(3 * n + place * (number + 1)) % 10] for place in range(3 + (n + number) % 7)]
            verified = correct(n // 2)
            rollouts.append(
                BankRollout(
                    prompt=prompt_key(row["prompt"]),
                    prompt_ids=prompt_ids,
                    number=number,
                    teacher="teacher",
                    completion=tokenizer.decode(ids),
                    completion_ids=[*ids, tokenizer.eos_token_id],
                    correct=verified,
                    reward=float(verified),
                    truncated=False,
                    answer=row["solution"],
                    seed=n,
                )
            )
    entry = identity_entry(str(teacher), None, None, weights_hash(str(teacher)))
    identity = {
        "teachers": {"teacher": entry | {"tokenizer_hash": tokenizer_hash(tokenizer)}},
        "sampling": {},
        "verifier": {},
    }
    RolloutBank(folder, identity).add(rollouts)
    return folder


def rollouts_of(folder: Path) -> list[BankRollout]:
    """All of them, in no particular order."""
    bank = RolloutBank(folder, json.loads((folder / MANIFEST).read_text()))
    return [bank.get(row["key"]) for row in bank.store]


def gold_is_first(completions: list, solution: list[str], **columns) -> list[float]:
    """A verifier that finds everything correct of the problem with this gold answer, and nothing else."""
    return [float(gold == "first") for gold in solution]


def broken(completion: str, gold: str) -> bool:
    """A judge that fails."""
    raise RuntimeError("broken")
