"""A bank of the teacher's rollouts as data to train on."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset
from transformers import PreTrainedTokenizerBase

from ..rollout_bank import MANIFEST, rollout_key, tokenizer_hash


WHICH = ("verified", "all")
_FILL = "`sgopd teacher-rollouts --config RECIPE --prompts all --teacher_bank {folder}` fills it"


@dataclass(frozen=True)
class BankData:
    """The rollouts of a bank, each once, in the order of their keys: the same whoever filled it, and however.

    Attributes:
        rollouts: rows with `teacher`, `number`, `prompt_ids`, `completion_ids` and `correct`: those asked for.
        prompts, total, verified: distinct prompts, rollouts and verified rollouts of the whole bank.
    """

    folder: Path
    rollouts: Dataset
    prompts: int
    total: int
    verified: int

    def __str__(self) -> str:
        share = self.verified / self.total
        return (
            f"{len(self.rollouts)} of the {self.total} teacher rollouts in {self.folder}: {self.prompts} prompts, "
            f"{share:.1%} verified"
        )


def load_bank_data(folder: str, tokenizer: PreTrainedTokenizerBase, which: str) -> BankData:
    """Reads a bank.

    Args:
        tokenizer: the student's, which must be that of the bank's token ids.
        which: "verified", or "all" of them.

    Raises:
        ValueError: when there is no bank, when it is empty or another tokenizer's, or when none of its rollouts verify.
    """
    manifest = Path(folder) / MANIFEST
    fill = _FILL.format(folder=folder)
    files = sorted(map(str, Path(folder).glob("data/*.parquet")))
    if not manifest.is_file() or not files:
        raise ValueError(f"`teacher_bank`: {folder} holds no teacher rollouts. {fill}.")
    check_tokenizer(folder, tokenizer)
    columns = ["key", "teacher", "number", "prompt_ids", "completion_ids", "correct"]
    dataset = load_dataset("parquet", data_files=files, split="train", columns=columns)
    places: dict[str, int] = {}  # a bank that was being merged when its run was killed holds rows twice
    for place, key in enumerate(dataset["key"]):
        places.setdefault(key, place)
    order = [places[key] for key in sorted(places)]
    correct = dataset["correct"]
    chosen = [place for place in order if which == "all" or correct[place]]
    if not chosen:
        raise ValueError(
            f"`teacher_rollouts: verified`, but none of the {len(order)} rollouts in {folder} verified. Look at their "
            "column `completion`; `teacher_rollouts: all` trains on them all the same."
        )
    prompts = {rollout_key(ids, 0, "") for ids in dataset.select(order)["prompt_ids"]}
    return BankData(
        folder=Path(folder),
        rollouts=dataset.select(chosen).remove_columns("key"),
        prompts=len(prompts),
        total=len(order),
        verified=sum(correct[place] for place in order),
    )


def check_tokenizer(folder: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """A bank's token ids must mean the same to the student.

    Raises:
        ValueError: with both hashes.
    """
    ours = tokenizer_hash(tokenizer)
    for name, entry in _teachers(folder).items():
        if entry.get("tokenizer_hash") not in (None, ours):
            raise ValueError(
                f"The rollouts of {name!r} in {folder} are token ids of another tokenizer (hash "
                f"{entry['tokenizer_hash']}) than the student's ({ours}). {_FILL.format(folder='OTHER_FOLDER')}, with "
                "this student in the recipe."
            )


def check_teacher(folder: str, entry: dict[str, str | None]) -> str:
    """The name of a bank's only teacher, which must be the run's.

    Args:
        entry: the run's teacher, from `identity_entry`. What is `None` there or in the bank is not compared.

    Raises:
        ValueError: for a bank of several teachers or of another one, with what differs.
    """
    teachers = _teachers(folder)
    if len(teachers) != 1:
        raise ValueError(f"`trainer: gkd` has one teacher, but {folder} holds rollouts of {sorted(teachers)}.")
    (name, stored), *_ = teachers.items()
    different = [
        f"{key}: the bank has {stored[key]!r}, this run {value!r}"
        for key, value in entry.items()
        if value is not None and stored.get(key) not in (None, value)
    ]
    if different:
        raise ValueError(f"The rollouts in {folder} are another teacher's. {'; '.join(different)}.")
    return name


def _teachers(folder: str) -> dict[str, Any]:
    return json.loads((Path(folder) / MANIFEST).read_text(encoding="utf-8"))["teachers"]


class RolloutsOfPrompts:
    """A bank's rollouts by the token ids of their prompts."""

    def __init__(self, data: BankData):
        self.data = data
        self._places: dict[str, list[int]] = {}
        for place, ids in enumerate(data.rollouts["prompt_ids"]):
            self._places.setdefault(rollout_key(ids, 0, ""), []).append(place)

    def __contains__(self, prompt_ids: Sequence[int]) -> bool:
        return rollout_key(prompt_ids, 0, "") in self._places

    def pick(self, prompt_ids: Sequence[int], number: int) -> list[int]:
        """Token ids of one of the prompt's n rollouts: that at `number` modulo n."""
        places = self._places[rollout_key(prompt_ids, 0, "")]
        return list(self.data.rollouts[places[number % len(places)]]["completion_ids"])
