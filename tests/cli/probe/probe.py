"""Flows named like the real ones that only take time, so that services and resume can be tested in seconds."""

import time
from pathlib import Path

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.concurrency.sync import concurrency
from prefect.logging import get_run_logger


@task(cache_policy=NO_CACHE, persist_result=False)
def stage(seconds: float, note: str, device: int) -> None:
    with concurrency(f"roundhouse-device-{device}", occupy=1, strict=True, lease_duration=60):
        get_run_logger().info("the stage began")
        Path(note).write_text("began\n")
        time.sleep(seconds)
        Path(note).write_text("ended\n")


@flow(name="llama2-style", flow_run_name="{config}", persist_result=False)
def iterative(
    config: str = "tiny", seed: int | None = None, seconds: float = 0.1, note: str = "note", device: int = 0
) -> str:
    stage(seconds, note, device)
    return config


@flow(name="llama2-style", flow_run_name="resume", persist_result=False)
def resume(config: str | None = None, runtime: str | None = None) -> None:
    raise AssertionError("these tests resume through the command, not through the deployment")
