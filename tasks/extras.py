"""What a runtime asks for and cannot have, extras or several processes: found missing before any work, in one line."""

import importlib.util
import subprocess
from pathlib import Path

from configs import ConfigError, Runtime

ROOT = Path(__file__).resolve().parent.parent


def check_extras(runtime: Runtime) -> None:
    """Make sure that the runtime's vLLM environment and Ray are there, and a launcher where it wants several processes.

    Raises:
        ConfigError: one is not.
    """
    if runtime.launcher == "local" and (runtime.processes > 1 or runtime.zero):
        raise ConfigError(
            f"runtime has processes {runtime.processes} and zero {runtime.zero}, but its launcher is local, which starts one "
            "process: set it to deepspeed or ray"
        )
    if runtime.launcher == "ray" and importlib.util.find_spec("ray") is None:
        raise ConfigError("runtime.launcher is ray, but Ray is not installed: .venv/bin/pip install 'roundhouse[ray]'")
    if runtime.sampler == "vllm" and not runtime.vllm.startswith(("http://", "https://")):
        _check_vllm(ROOT / runtime.vllm)


def _check_vllm(python: Path) -> None:
    advice = (
        "make it (python3.11 -m venv .venv-vllm && .venv-vllm/bin/pip install vllm), give the python of another in "
        "runtime.vllm, or set runtime.sampler to builtin"
    )
    if not python.is_file():
        raise ConfigError(f"runtime.sampler is vllm, but there is no {python}: {advice}")
    looks = "import importlib.util, sys; sys.exit(importlib.util.find_spec('vllm') is None)"
    found = subprocess.run([python, "-I", "-c", looks], capture_output=True, text=True)
    if found.returncode:
        raise ConfigError(f"runtime.sampler is vllm, but {python} has no vllm: {advice}")
