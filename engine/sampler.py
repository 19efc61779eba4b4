"""Who answers for a policy: the built-in sampler, or a vLLM server."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from configs.recipes import Limits
from engine.generate import Generated, generate
from engine.job import Job
from engine.models import load_policy

Sampler = Callable[..., list[Generated]]  # `generate` without model and chat


@contextmanager
def sampler_for(job: Job, folder: Path, chat: Any, limits: Limits) -> Iterator[Sampler]:
    """The policy in `folder`, ready to be asked until the end of the block; by `runtime.sampler`."""
    if job.runtime.sampler == "builtin":
        yield partial(generate, load_policy(folder, job.runtime), chat)
        return
    from engine import vllm

    with vllm.serve(folder, chat, job.runtime, limits, job.out / "_beside", job.log) as served:
        yield served
        job.log(f"vLLM's log-probs were within {served.gap:.1e} of the trainer's")
