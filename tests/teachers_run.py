"""What tests/test_teachers_distributed.py launches: a short run with a teacher, and what it logged."""

import argparse
import json
import os
from pathlib import Path


if os.environ.get("SGOPD_TEST_FSDP"):
    # Accelerate knows FSDP on accelerators alone; this is how it comes to a CPU, for tests only.
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    PartialState._prepare_backend = lambda self, *args, **kwargs: ("gloo", DistributedType.MULTI_GPU)

from accelerate import Accelerator
from accelerate.utils import gather_object
from plain_teacher import PlainTeacher
from tiny import dataset, even_digits_reward, make_args

from sgopd_trl import SGOPDTrainer
from sgopd_trl.cli.launch import end_together
from sgopd_trl.teachers import TeacherError


NAMES = ("first", "second")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("mode", choices=("single", "routed", "elsewhere", "failing", "refused"))
    parser.add_argument("--models", type=Path, required=True, help="folder with student, first and second")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--num_processes", type=int, required=True)
    parser.add_argument("--expect", required=True, help="accelerator.distributed_type")
    options = parser.parse_args()
    fsdp = bool(os.environ.get("SGOPD_TEST_FSDP"))
    args = make_args(
        options.out / "run",
        max_steps=3,
        per_device_train_batch_size=8 // options.num_processes,
        num_generations=2,
        use_cpu=not fsdp,
        # The student's samples depend on the number of processes; the teacher's are what is compared.
        teacher_sft_alpha_0=0.5,
        max_completion_length=8,
        optim="sgd",
        scoring_tokens_per_batch=64,
        teacher_bank=str(options.out / "bank") if options.mode == "refused" else None,
    )
    data = dataset(64)
    teacher = str(options.models / "first")
    if options.mode == "routed":
        data = data.add_column("teacher", [NAMES[row % 5 % 2] for row in range(len(data))])
        teacher = {name: str(options.models / name) for name in NAMES}
    elif options.mode in ("elsewhere", "failing"):
        rank = int(os.environ.get("RANK", "0"))
        fail_on = 3 if options.mode == "failing" and rank == options.num_processes - 1 else None
        teacher = PlainTeacher(options.models / "first", fail_on=fail_on)
    try:
        trainer = SGOPDTrainer(
            model=str(options.models / "student"),
            reward_funcs=even_digits_reward,
            args=args,
            train_dataset=data,
            teacher_model=teacher,
        )
    except ValueError as error:
        assert options.mode == "refused", error
        (options.out / "figures.json").write_text(json.dumps({"errors": gather_object([str(error)])}))
        end_together(Accelerator())
        return
    accelerator = trainer.accelerator
    assert accelerator.distributed_type.value == options.expect, accelerator.distributed_type
    assert accelerator.num_processes == options.num_processes
    error = None
    scored = []
    score = trainer.scorer.score

    def keep(batch):
        scores = score(batch)
        for row in range(len(batch["prompt_ids"])):
            part = {
                key: batch[f"{key}_ids"][row][batch[f"{key}_mask"][row].bool()].tolist()
                for key in ("prompt", "completion")
            }
            logps = scores["teacher_logps"][row][: len(part["completion"])].tolist()
            scored.append(part | {"logps": logps, "name": trainer.teacher_names[row]})
        return scores

    trainer.scorer.score = keep
    try:
        trainer.train()
    except TeacherError as raised:
        error = [str(raised), *raised.__notes__]
    figures = {
        "errors": gather_object([error]),
        "scored": gather_object(scored),
        "log": [entry for entry in trainer.state.log_history if "loss" in entry],
    }
    if accelerator.is_main_process:
        bank = trainer.teacher_sampling.rollouts.bank.store
        figures["bank"] = [{key: row[key] for key in ("prompt_ids", "completion_ids", "teacher")} for row in bank]
        (options.out / "figures.json").write_text(json.dumps(figures))
    accelerator.wait_for_everyone()
    end_together(accelerator)


if __name__ == "__main__":
    main()
