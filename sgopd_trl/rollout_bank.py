"""The teacher's rollouts on disk: generated once, verified once, and used by every later run over the same data."""

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import pyarrow as pa
from transformers import PretrainedConfig, PreTrainedTokenizerBase

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
        self.store = ParquetStore(self.folder, _SCHEMA, ["key"])
        with self.store.lock:
            stored = json.loads(manifest.read_text()) if manifest.exists() else None
            if stored is None and len(self.store) > 0:
                raise ValueError(f"{self.folder} holds rollouts but no {MANIFEST}, so it is not known whose they are.")
            complete = dict(identity) if stored is None else _completed(stored, identity, self.folder)
            if complete != stored:
                _write(manifest, json.dumps(complete, indent=2) + "\n")
            if not (self.folder / "README.md").exists():
                _write(self.folder / "README.md", _CARD)

    def __len__(self) -> int:
        return len(self.store)

    def refresh(self) -> None:
        """Reads what other runs have added."""
        self.store.refresh()

    def compact(self) -> None:
        """Merges the many small files of a run into one."""
        self.store.compact()

    def get(self, prompt_ids: Sequence[int], number: int, teacher: str, answer: str | None) -> BankRollout | None:
        """A prompt's rollout, or `None` where the bank has none.

        Raises:
            ValueError: when it was judged against another answer.
        """
        row = self.store.get(rollout_key(prompt_ids, number, teacher))
        if row is None:
            return None
        if row["answer"] != answer:
            raise ValueError(
                f"The bank {self.folder} judged a rollout against the answer {row['answer']!r}, but the dataset now has "
                f"{answer!r} for the prompt {row['prompt']!r}. Use another `teacher_bank`, or the data it was made for."
            )
        return _rollout(row)

    def add(self, rollouts: Sequence[BankRollout]) -> list[BankRollout]:
        """Stores rollouts, and returns what is stored: another run's, where that was faster."""
        rows = [{"key": rollout_key(r.prompt_ids, r.number, r.teacher)} | asdict(r) for r in rollouts]
        return [_rollout(row) for row in self.store.append(rows)]


def rollout_key(prompt_ids: Sequence[int], number: int, teacher: str) -> str:
    """Hash of what a rollout belongs to."""
    return hashlib.sha256(json.dumps([teacher, list(prompt_ids), number]).encode()).hexdigest()


def _rollout(row: Mapping[str, Any]) -> BankRollout:
    return BankRollout(**{field.name: row[field.name] for field in fields(BankRollout)})


def _completed(stored: dict[str, Any], identity: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The manifest with what it did not know yet.

    Raises:
        ValueError: with every entry that differs.
    """
    ours, theirs = _flat(identity), _flat(stored)
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


def _write(path: Path, text: str) -> None:
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=".", delete=False) as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(file.name, path)


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
