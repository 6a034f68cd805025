"""The teacher's rollouts on disk: generated once, verified once, and used by every later run over the same data."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import pyarrow as pa
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from .atomic_file import write_whole
from .parquet_store import ParquetStore


MANIFEST = "bank.json"

_SCHEMA = pa.schema(
    {
        "key": pa.string(),
        "prompt": pa.string(),
        "prompt_ids": pa.list_(pa.int32()),
        "number": pa.int32(),
        "teacher": pa.string(),
        "completion": pa.string(),
        "completion_ids": pa.list_(pa.int32()),
        "correct": pa.bool_(),
        "reward": pa.float64(),
        "truncated": pa.bool_(),
        "answer": pa.string(),
        "seed": pa.int64(),
    }
)

# Without `configs`: with them `datasets` would take a folder that has grown since for the one in its cache.
_CARD = """---
tags:
- trl
- sgopd
---

# Teacher rollouts

Rollouts of a frozen teacher for phased teacher sampling, each with the verifier's word on it, written by
sgopd_trl, an extension of [TRL](https://github.com/huggingface/trl). `bank.json` says which teacher, sampled how, judged by which verifier.

| column | |
|---|---|
| `prompt` | the prompt: text, or chat messages as JSON |
| `prompt_ids`, `completion_ids` | token ids |
| `number` | which of the prompt's rollouts, from 0 |
| `teacher` | name of the teacher |
| `completion` | the rollout as text |
| `correct`, `reward` | the verifier's verdict, and the reward it rests on |
| `truncated` | the rollout ended at its limit of tokens |
| `answer` | the gold answer it was judged against |
| `seed` | of the rollout's sampling |
| `key` | hash of teacher, prompt ids and number |
"""


@dataclass(frozen=True)
class BankRollout:
    """One rollout of a teacher.

    Args:
        prompt: text, or messages as JSON (`prompt_key`). prompt_ids, completion_ids: token ids.
        number: which of the prompt's rollouts, from 0. teacher: name of the teacher. completion: text.
        correct, reward: the verifier's word. truncated: ended at its limit. answer: the gold it was judged against.
        seed: of its sampling.
    """

    prompt: str
    prompt_ids: list[int]
    number: int
    teacher: str
    completion: str
    completion_ids: list[int]
    correct: bool
    reward: float
    truncated: bool
    answer: str | None
    seed: int


class RolloutBank:
    """Rollouts in a folder that `datasets` reads and that can be pushed to the Hub as it is.

    Args:
        folder: is created where it does not exist.
        identity: what the rollouts depend on: `teachers` (by name: `model`, `revision`, `config_hash`,
            `tokenizer_hash`), `sampling` and `verifier`, of JSON values. `None` stands for what is not known.

    Raises:
        ValueError: when the folder holds something else, or rollouts of another identity, with both values.
    """

    def __init__(self, folder: str | os.PathLike, identity: Mapping[str, Any]):
        self.folder = Path(folder)
        manifest = self.folder / MANIFEST
        strangers = [path for path in self.folder.glob("[!.]*") if path.name != "data"]
        if strangers and not manifest.exists():
            raise ValueError(
                f"{self.folder} is not a bank of teacher rollouts: it has no {MANIFEST}. Name an empty or new folder."
            )
        check_identity(self.folder, identity)
        self.store = ParquetStore(self.folder, _SCHEMA, ["key"])
        with self.store.lock:
            check_identity(self.folder, identity)  # another run may have made the bank meanwhile
            stored = json.loads(manifest.read_text()) if manifest.exists() else None
            if stored is None and len(self.store) > 0:
                raise ValueError(f"{self.folder} holds rollouts but no {MANIFEST}, so it is not known whose they are.")
            complete = dict(identity) if stored is None else _completed(stored, identity)
            if complete != stored:
                write_whole(manifest, json.dumps(complete, indent=2) + "\n")
            if not (self.folder / "README.md").exists():
                write_whole(self.folder / "README.md", _CARD)

    def __len__(self) -> int:
        return len(self.store)

    def refresh(self) -> None:
        """Reads what other runs have added."""
        self.store.refresh()

    def compact(self) -> None:
        """Merges the many small files of a run into one."""
        self.store.compact()

    def get(self, key: str) -> BankRollout | None:
        """The rollout of a `rollout_key`, or `None` where the bank has none.

        Its verdict holds for its `answer`: a dataset may have another one for the prompt by now.
        """
        row = self.store.get(key)
        return None if row is None else _rollout(row)

    def add(self, rollouts: Sequence[BankRollout]) -> list[BankRollout]:
        """Stores rollouts, and returns what is stored: another run's, where that was faster.

        Where that was judged against another answer, the given one is returned, and not stored.
        """
        rows = [{"key": rollout_key(r.prompt_ids, r.number, r.teacher)} | asdict(r) for r in rollouts]
        stored = [_rollout(row) for row in self.store.append(rows)]
        return [theirs if theirs.answer == ours.answer else ours for ours, theirs in zip(rollouts, stored, strict=True)]


def rollout_key(prompt_ids: Sequence[int], number: int, teacher: str) -> str:
    """Hash of what a rollout belongs to."""
    return hashlib.sha256(json.dumps([teacher, list(prompt_ids), number]).encode()).hexdigest()


def _rollout(row: Mapping[str, Any]) -> BankRollout:
    return BankRollout(**{field.name: row[field.name] for field in fields(BankRollout)})


def check_identity(folder: str | os.PathLike, identity: Mapping[str, Any]) -> None:
    """Refuses a bank whose rollouts were made otherwise. Entries that are left out or `None` are not compared.

    Raises:
        ValueError: with every entry that differs.
    """
    manifest = Path(folder) / MANIFEST
    if not manifest.exists():
        return
    ours, theirs = _flat(identity), _flat(json.loads(manifest.read_text()))
    different = [
        f"{name}: the bank has {theirs[name]!r}, this run {value!r}"
        for name, value in ours.items()
        if theirs.get(name) is not None and value is not None and theirs[name] != value
    ]
    if different:
        raise ValueError(
            f"The rollouts in {folder} were made otherwise. {'; '.join(different)}. Set another `teacher_bank`, or the "
            "settings they were made with."
        )


def _completed(stored: dict[str, Any], identity: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest with what it did not know yet."""
    known = stored["teachers"]
    teachers = known | {
        name: {key: value if known.get(name, {}).get(key) is None else known[name][key] for key, value in entry.items()}
        for name, entry in identity["teachers"].items()
    }
    return stored | {"teachers": teachers}


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {name: value}
    return {
        path: leaf for key, entry in value.items() for path, leaf in _flat(entry, f"{name}.{key}".strip(".")).items()
    }


def identity_hash(identity: Mapping[str, Any]) -> str:
    """Eight hexadecimal digits that stand for an identity."""
    return _digest(identity)[:8]


def config_hash(config: PretrainedConfig) -> str:
    """Hash of what a model's configuration says about the function it computes."""
    left_out = {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache", "_attn_implementation"}
    return _digest({key: value for key, value in config.to_dict().items() if key not in left_out})[:16]


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash of the tokens and their ids."""
    return _digest(sorted(tokenizer.get_vocab().items()))[:16]


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
