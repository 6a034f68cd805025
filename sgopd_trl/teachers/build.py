"""From what a user passes or a recipe says to the teacher of a run."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from accelerate.logging import get_logger
from datasets import Dataset
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..checks import check_tokenizers, each_dataset, longest_prompt
from ..frozen import load_frozen
from ..phased_sampling import teacher_sampling_enabled
from ..rollout_bank import config_hash
from .identity import identity_entry, weights_hash
from .in_process import InProcessTeacher
from .protocol import Teacher
from .recorded import RecordedTeacher, RecordingTeacher
from .routed import RoutedTeacher
from .server import ServerTeacher


if TYPE_CHECKING:
    from ..config import SGOPDConfig


logger = get_logger(__name__)


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


def teacher_names(specs: Specs) -> list[str]:
    """The names that rows may have; a recording knows those of the teachers it was made of."""
    if len(specs) == 1 and isinstance(teacher := next(iter(specs.values())), RecordedTeacher):
        return list(teacher.identity())
    return list(specs)


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
    specs: Specs,
    args: "SGOPDConfig",
    tokenizer: PreTrainedTokenizerBase,
    dataset: Dataset | Any | None,
    eval_dataset: Any = None,
) -> Teacher:
    """Loads the models that run in process and reaches the servers.

    Args:
        tokenizer: the student's. dataset, eval_dataset: the prompts, for the context that a server needs; the second may
            be a mapping of several.

    Raises:
        ValueError, OSError: when a model cannot be loaded, or a server is not fit for this run.
    """
    teachers = {name: _open(name, spec, args, tokenizer, dataset, eval_dataset) for name, spec in specs.items()}
    teacher = next(iter(teachers.values())) if list(teachers) == ["teacher"] else RoutedTeacher(teachers)
    return teacher if args.teacher_record_path is None else RecordingTeacher(teacher, args.teacher_record_path)


def _open(
    name: str,
    spec: TeacherSpec | Teacher,
    args: "SGOPDConfig",
    tokenizer: PreTrainedTokenizerBase,
    dataset: Any,
    eval_dataset: Any,
) -> Teacher:
    if not isinstance(spec, TeacherSpec):
        return spec
    model = spec.model_name_or_path
    if spec.server_url is not None:
        return _reach(name, spec, args, tokenizer, dataset, eval_dataset)
    loaded = load_frozen(model, spec.init_kwargs, spec.revision, args)
    model_name = model if isinstance(model, str) else None
    return InProcessTeacher(loaded, name=name, model_name=model_name, revision=spec.revision, offload=spec.offload)


def _reach(
    name: str,
    spec: TeacherSpec,
    args: "SGOPDConfig",
    tokenizer: PreTrainedTokenizerBase,
    dataset: Any,
    eval_dataset: Any,
) -> ServerTeacher:
    about = None
    if (model := spec.model_name_or_path) is not None:
        config = AutoConfig.from_pretrained(model, revision=spec.revision, trust_remote_code=args.trust_remote_code)
        about = identity_entry(model, config._commit_hash or spec.revision, config_hash(config), weights_hash(model))
    teacher = ServerTeacher(
        spec.server_url,
        model=spec.server_model,
        about=about,
        name=name,
        eos_token_ids=[tokenizer.eos_token_id],
        api_key=os.environ.get("VLLM_API_KEY"),
        concurrency=args.teacher_server_concurrency,
        tokens_per_request=args.teacher_server_tokens_per_request,
        request_timeout=args.teacher_server_request_timeout,
        retry_timeout=args.teacher_server_retry_timeout,
    )
    longest_rollout = args.teacher_max_completion_length or args.max_completion_length
    teacher.check_start(
        tokenizer,
        longest_prompt=_longest_prompt(args, tokenizer, dataset, eval_dataset),
        max_completion_length=args.max_completion_length,
        max_rollout_length=longest_rollout if teacher_sampling_enabled(args) else 0,
    )
    return teacher


def _longest_prompt(args: "SGOPDConfig", tokenizer: PreTrainedTokenizerBase, dataset: Any, eval_dataset: Any) -> int:
    """Tokens of the longest prompt of training and evaluation, as far as it can be known; warns where it cannot."""
    longest = 1
    for prompts, limit in [(dataset, args.max_prompt_length), *((d, None) for d in each_dataset(eval_dataset))]:
        if prompts is None:
            continue
        if isinstance(prompts, Dataset) and "prompt" in prompts.column_names:
            longest = max(longest, longest_prompt(prompts, tokenizer, args.chat_template_kwargs))
        elif limit is not None:  # longer prompts of a streamed dataset are dropped as it is read
            longest = max(longest, limit)
        else:
            logger.warning(
                "Whether all prompts fit into the context of the teacher's server cannot be checked, since they are not "
                f"known yet ({type(prompts).__name__}); one that does not will stop the run. Set `max_prompt_length`, "
                "which bounds the prompts of training, or load the dataset without streaming."
            )
    return longest
