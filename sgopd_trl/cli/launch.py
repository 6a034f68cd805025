"""Whether a command runs here or through `accelerate launch`, and the latter's arguments."""

import argparse
import os
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .arguments import TRAINERS, dataclasses
from .errors import UsageError


if TYPE_CHECKING:
    from accelerate import Accelerator


RECIPES = Path(__file__).parents[2] / "recipes" / "accelerate_configs"  # in an editable installation
_CONFIG = "accelerate_config"


def launch_flags() -> dict[str, argparse.Action]:
    """`accelerate launch`'s own options by name, without those that are training arguments too."""
    from accelerate.commands.launch import launch_command_parser

    classes = {cls for trainer in TRAINERS for cls in dataclasses(trainer)}
    training = {name for cls in classes for name in cls.__dataclass_fields__}
    flags = {action.dest: action for action in launch_command_parser()._actions if action.option_strings}
    # `env` is the recipe's own; accelerate's is for TPU pods
    left_out = training | {"help", "module", "env"}
    return {dest: action for dest, action in flags.items() if dest not in left_out}


def split_launch_args(args: list[str], flags: Mapping[str, argparse.Action]) -> tuple[list[str], list[str]]:
    """Separate what belongs to `accelerate launch`, `--accelerate_config` included, from the training arguments.

    Raises:
        UsageError: when a launch flag lacks its value.
    """
    launch: list[str] = []
    training: list[str] = []
    tokens = iter(args)
    for token in tokens:
        flag, equals, _ = token.partition("=")
        name = flag[2:].replace("-", "_") if flag.startswith("--") else ""
        if name != _CONFIG and name not in flags:
            training.append(token)
            continue
        if name == _CONFIG:
            flag = f"--{name}"
        launch.append(token)
        if not equals and (name == _CONFIG or flags[name].nargs != 0):
            value = next(tokens, None)
            if value is None:
                raise UsageError(f"Expected a value after {flag}.")
            launch.append(value)
    return launch, training


def recipe_launch_args(recipe: Mapping[str, Any], flags: Mapping[str, argparse.Action]) -> list[str]:
    """The same for the launch keys of a recipe, as `num_processes: 2` or `accelerate_config: zero2`."""
    args = []
    for key, value in recipe.items():
        if key == _CONFIG or key in flags:
            switch = key in flags and flags[key].nargs == 0
            args += ([f"--{key}"] if value else []) if switch else [f"--{key}", str(value)]
    return args


def resolve_accelerate_config(launch: list[str]) -> list[str]:
    """Replace the last `--accelerate_config NAME|PATH` by accelerate's `--config_file PATH`.

    A file comes first, then `recipes/accelerate_configs/NAME.yaml`, then the configurations TRL ships.

    Raises:
        UsageError: listing the names there are.
    """
    rest: list[str] = []
    name = None
    tokens = iter(launch)
    for token in tokens:
        flag, equals, value = token.partition("=")
        if flag.replace("-", "_").lstrip("_") == _CONFIG:
            name = value if equals else next(tokens)
        else:
            rest.append(token)
    if name is None:
        return rest
    if (RECIPES / f"{name}.yaml").is_file() and not Path(name).is_file():
        return ["--config_file", str(RECIPES / f"{name}.yaml"), *rest]
    from trl.cli.accelerate_config import resolve_accelerate_config_argument

    try:
        return resolve_accelerate_config_argument([f"--{_CONFIG}", name]) + rest
    except ValueError as error:
        ours = sorted(path.stem for path in RECIPES.glob("*.yaml"))
        raise UsageError(
            f"--accelerate_config {name!r} is neither a file nor a configuration of this package ({', '.join(ours)}) "
            "or of TRL (fsdp1, fsdp2, multi_gpu, single_gpu, zero1, zero2, zero3)."
        ) from error


def under_launcher(environ: Mapping[str, str]) -> bool:
    """Whether `accelerate launch` or torchrun has started this process."""
    return any(name in environ for name in ("RANK", "LOCAL_RANK", "ACCELERATE_MIXED_PRECISION"))


def needs_launch(launch: list[str], environ: Mapping[str, str], gpu_count: int) -> bool:
    """Whether `accelerate launch` has to start the training: launch flags were given, or there are several GPUs."""
    return not under_launcher(environ) and (bool(launch) or gpu_count > 1)


def number_of_processes(launch: list[str], gpu_count: int) -> int:
    """How many processes `accelerate launch` would start, on all machines together."""
    from accelerate.commands.config.config_args import default_config_file, load_config_from_file
    from accelerate.commands.launch import launch_command_parser

    args = launch_command_parser().parse_args([*resolve_accelerate_config(launch), "-m", "sgopd_trl.cli"])
    if args.num_processes is not None:
        return args.num_processes
    configured = args.config_file is not None or (os.path.isfile(default_config_file) and not args.cpu)
    stated = load_config_from_file(args.config_file).num_processes if configured else gpu_count
    return max(1, stated)


def launch_training(launch: list[str], command: list[str], gpu_count: int) -> int:
    """Run a subcommand, given with its arguments, through `accelerate launch`, and return its exit code.

    Raises:
        UsageError: when accelerate would silently start one process where several were asked for.
    """
    from accelerate.commands.launch import default_config_file, launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    args = launch_command_parser().parse_args([*launch, "-m", "sgopd_trl.cli", *command])
    configured = args.config_file or os.path.isfile(default_config_file)
    chosen = args.multi_gpu or args.use_deepspeed or args.use_fsdp or args.cpu or args.tpu
    if (args.num_processes or 1) > 1 and gpu_count < 2 and not configured and not chosen:
        raise UsageError(
            f"--num_processes {args.num_processes} on a machine with {gpu_count} GPUs would start one process. For "
            "several processes on a CPU add `--accelerate_config ddp --use_cpu true`."
        )
    try:
        launch_command(args)
    except (ChildFailedError, subprocess.CalledProcessError) as error:
        if os.environ.get("SGOPD_DEBUG") == "1":
            raise
        failed = error.get_first_failure()[1].exitcode if isinstance(error, ChildFailedError) else error.returncode
        print(f"sgopd {command[0]}: a process ended with exit code {failed}; its message is above.", flush=True)
        return failed if failed > 0 else 1
    return 0


def end_together(accelerator: "Accelerator") -> None:
    """Ends a run of one or several processes: trackers, then the process group."""
    gloo = accelerator.num_processes > 1 and accelerator.device.type == "cpu"
    accelerator.end_training()
    if gloo:
        # gloo's threads may be about to drop the last collective's tensors, for which they need the interpreter's lock:
        # asked for during the interpreter's exit, it ends the process with "terminate called".
        time.sleep(0.3)
