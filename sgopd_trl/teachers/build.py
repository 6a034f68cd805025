"""From what a user passes or a recipe says to the teacher of a run."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..checks import check_tokenizers, longest_prompt
from ..frozen import load_frozen
from ..rollout_bank import config_hash
from .in_process import InProcessTeacher
from .protocol import Teacher
from .recorded import RecordedTeacher, RecordingTeacher
from .routed import RoutedTeacher
from .server import ServerTeacher


if TYPE_CHECKING:
    from ..config import SGOPDConfig


@dataclass
class TeacherSpec:
    """One teacher that is yet to be loaded or reached. The fields are the settings of `SGOPDConfig.teachers`.

    Args:
        model_name_or_path: Hub id, directory or loaded model; behind a server, the name of what it serves.
        revision, init_kwargs: for `from_pretrained`. offload: keep the weights in host memory between calls.
        server_url: of a vLLM server, or several. server_model: the name the server gives the model.
    """

    model_name_or_path: str | PreTrainedModel | None = None
    revision: str | None = None
    init_kwargs: dict[str, Any] | None = None
    offload: bool = False
    server_url: list[str] | None = None
    server_model: str | None = None


Passed = str | PreTrainedModel | Teacher | Mapping[str, str | PreTrainedModel | Teacher]
Specs = dict[str, TeacherSpec | Teacher]


def teacher_specs(passed: Passed | None, args: "SGOPDConfig") -> Specs:
    """The run's teachers by name; a single one is called "teacher".

    Args:
        passed: the trainer's `teacher_model`, which goes before the settings.

    Raises:
        ValueError: when there is no teacher.
    """
    if isinstance(passed, Mapping):
        return {name: _spec(teacher, args) for name, teacher in passed.items()}
    if passed is not None:
        return {"teacher": _spec(passed, args)}
    if args.teachers is not None:
        return {name: TeacherSpec(**settings) for name, settings in args.teachers.items()}
    if args.teacher_recorded_path is not None:
        return {"teacher": RecordedTeacher(args.teacher_recorded_path)}
    if args.teacher_model_name_or_path is None and args.teacher_server_url is None:
        raise ValueError(
            "A teacher is required: pass `teacher_model`, or set `teacher_model_name_or_path`, `teacher_server_url`, "
            "`teachers` or `teacher_recorded_path`."
        )
    spec = _spec(args.teacher_model_name_or_path, args)
    spec.server_url, spec.server_model = args.teacher_server_url, args.teacher_server_model
    return {"teacher": spec}


def _spec(teacher: str | PreTrainedModel | Teacher | None, args: "SGOPDConfig") -> TeacherSpec | Teacher:
    if teacher is not None and not isinstance(teacher, str | torch.nn.Module):
        return teacher
    return TeacherSpec(teacher, args.teacher_model_revision, args.teacher_model_init_kwargs, args.teacher_offload)


def check_teacher_tokenizers(
    specs: Specs, tokenizer: PreTrainedTokenizerBase, given: PreTrainedTokenizerBase | None, args: "SGOPDConfig"
) -> None:
    """Every teacher that will be loaded must have the student's tokenizer. A server's is checked when it is reached.

    Args:
        tokenizer: the student's. given: the teachers' as the user passed it; default: loaded from their names.

    Raises:
        ValueError: naming the tokens that differ.
    """
    for name, spec in specs.items():
        if isinstance(spec, TeacherSpec) and spec.server_url is None:
            role = "teacher" if len(specs) == 1 else f"teacher {name!r}"
            check_tokenizers(tokenizer, given, role, spec.model_name_or_path, spec.revision, args)


def open_teachers(
    specs: Specs, args: "SGOPDConfig", tokenizer: PreTrainedTokenizerBase, dataset: Dataset | Any | None
) -> Teacher:
    """Loads the models that run in process and reaches the servers.

    Args:
        tokenizer: the student's. dataset: the prompts, for the context that a server needs.

    Raises:
        ValueError, OSError: when a model cannot be loaded, or a server is not fit for this run.
    """
    teachers = {name: _open(name, spec, args, tokenizer, dataset) for name, spec in specs.items()}
    teacher = next(iter(teachers.values())) if list(teachers) == ["teacher"] else RoutedTeacher(teachers)
    return teacher if args.teacher_record_path is None else RecordingTeacher(teacher, args.teacher_record_path)


def _open(
    name: str, spec: TeacherSpec | Teacher, args: "SGOPDConfig", tokenizer: PreTrainedTokenizerBase, dataset: Any
) -> Teacher:
    if not isinstance(spec, TeacherSpec):
        return spec
    model = spec.model_name_or_path
    if spec.server_url is not None:
        return _reach(name, spec, args, tokenizer, dataset)
    loaded = load_frozen(model, spec.init_kwargs, spec.revision, args)
    model_name = model if isinstance(model, str) else None
    return InProcessTeacher(loaded, name=name, model_name=model_name, revision=spec.revision, offload=spec.offload)


def _reach(
    name: str, spec: TeacherSpec, args: "SGOPDConfig", tokenizer: PreTrainedTokenizerBase, dataset: Any
) -> ServerTeacher:
    config = None
    if spec.model_name_or_path is not None:
        config = AutoConfig.from_pretrained(
            spec.model_name_or_path, revision=spec.revision, trust_remote_code=args.trust_remote_code
        )
    teacher = ServerTeacher(
        spec.server_url,
        model=spec.server_model,
        model_name=spec.model_name_or_path,
        revision=spec.revision,
        config_hash=config and config_hash(config),
        name=name,
        eos_token_ids=[tokenizer.eos_token_id],
        api_key=os.environ.get("VLLM_API_KEY"),
        concurrency=args.teacher_server_concurrency,
        tokens_per_request=args.teacher_server_tokens_per_request,
        request_timeout=args.teacher_server_request_timeout,
        retry_timeout=args.teacher_server_retry_timeout,
    )
    prompt = args.max_prompt_length
    if isinstance(dataset, Dataset):
        prompt = longest_prompt(dataset, tokenizer, args.chat_template_kwargs)
    teacher.check_start(
        tokenizer,
        longest_prompt=prompt or 1,
        max_completion_length=args.max_completion_length,
        max_rollout_length=args.teacher_max_completion_length or args.max_completion_length,
    )
    return teacher
