"""Several processes for one stage, on this machine or on a Ray cluster.

Training: the first process does the stage's work, all of them share its optimizer steps (engine/zero.py). Sampling: each
process is a replica that makes some of the shards (engine/sample.py).
"""

import contextlib
import importlib
import json
import os
import queue
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from configs.runtime import Runtime
from engine.errors import StageError
from engine.job import Job
from engine.places import Died, Failed, Local, Place

STAGES = ("pretrain", "continuing", "train", "reward", "online")
_MARK = "ROUNDHOUSE_WORKER"
_USED = '{"used": '  # how the line begins in which all processes but the first say what they took


def wanted(spec: dict[str, Any]) -> bool:
    """Whether the stage's steps are to be shared and this is not one of its processes already."""
    return spec["runtime"].get("launcher", "local") != "local" and spec["stage"] in STAGES and _MARK not in os.environ


def launch(spec: dict[str, Any]) -> int:
    """Run the stage in `runtime.processes` processes; when one fails the others are ended. Returns the exit code.

    Where a process was killed this one ends by SIGKILL too, so that whoever started it tries again.
    """
    runtime, said, others = spec["runtime"], {"done": "", "failed": ""}, list[dict[str, float]]()
    count = int(runtime.get("processes", 1))
    try:
        with places(runtime, count) as found:
            address, port = found[0].address()
            shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": address, "MASTER_PORT": str(port)}
            for rank, place in enumerate(found):
                place.start(spec, {**shared, "RANK": str(rank), "LOCAL_RANK": str(place.device(rank))})
            try:
                for rank, line in lines(found):
                    if rank == 0 and line.startswith(('{"event": "done"', '{"event": "failed"')):
                        said[json.loads(line)["event"]] = line  # a survivor's word on a loss is not what happened
                    elif rank and line.startswith(_USED):
                        others.append(json.loads(line)["used"])
                    else:
                        print(line, end="", flush=True, file=sys.stdout if rank == 0 else sys.stderr)
            except Failed:
                found[0].bring(Path(spec["out"]))  # what it wrote about its failure
                raise
            found[0].bring(Path(spec["out"]))
            if not said["done"]:
                raise StageError("the first process ended without a word on its result")
    except Died as error:
        die(error)
    except Failed as error:
        print((said["failed"] or failed(error)).rstrip(), flush=True)
        return error.code
    except StageError as error:
        print(failed(error), flush=True)
        return 1
    if len(others) < count - 1:
        print(f"{len(others)} of {count - 1} processes beside the first said what they took", file=sys.stderr)
    print(json.dumps(add_workers(json.loads(said["done"]), others)), flush=True)
    return 0


def add_workers(done: Mapping[str, Any], others: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """The event that ends a stage, with what the processes took that shared its steps, and so its pace."""
    found, pace = _add(done, others), done.get("pace")
    if others and pace is not None:
        found["pace"] = {**pace, "cpu_seconds": pace["cpu_seconds"] * found["cpu_seconds"] / done["cpu_seconds"]}
    return found


def add_replicas(done: Mapping[str, Any], replicas: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The event that ends a stage, with what its replicas took; the pace is theirs, as the first process only waited."""
    found, pace = _add(done, replicas), done.get("pace")
    theirs = [one["pace"] for one in replicas if one.get("pace")]
    if replicas:
        found["pace"] = None
    if pace is not None and theirs:
        each = sum(one["cpu_seconds"] for one in theirs) / sum(one["done"] for one in theirs)
        found["pace"] = {**pace, "cpu_seconds": pace["done"] * each}
    return found


def _add(done: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Processor seconds in sum, memory of the process that held most, and each by itself."""
    if not others:
        return dict(done)
    each = [{name: one[name] for name in ("cpu_seconds", "peak_bytes")} for one in (done, *others)]
    total = {"cpu_seconds": sum(e["cpu_seconds"] for e in each), "peak_bytes": max(e["peak_bytes"] for e in each)}
    return {**done, **total, "processes": each}


def failed(error: Exception) -> str:
    """The event that ends a stage that failed."""
    return json.dumps({"event": "failed", "kind": type(error).__name__, "message": str(error)})


def die(error: Exception) -> None:
    """End this process as the one that was killed did."""
    print(error, file=sys.stderr, flush=True)
    sys.stdout.flush()
    os.kill(os.getpid(), signal.SIGKILL)


def replicas(runtime: Runtime) -> int:
    """How many samplers a stage has: one a process, or a vLLM server on several of them."""
    return 1 if runtime.launcher == "local" else max(1, runtime.processes // runtime.vllm_devices)


def shards(job: Job, numbers: Sequence[int]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Have replicas run the job's stage on these shards: (number, counts) of each that is finished and in `job.out`.

    Raises:
        Failed: a replica failed; the message is its own. A replica that was killed ends this process.
    """
    runtime = job.runtime.model_dump(mode="json")
    count, devices = min(replicas(job.runtime), len(numbers)), job.runtime.vllm_devices
    said = ""
    try:
        with tempfile.TemporaryDirectory() as scratch, places(runtime, count, devices) as found:
            for number, place in enumerate(found):
                out = Path(scratch) / str(number)
                (out / "_beside").mkdir(parents=True)
                spec = {**job.spec, "shards": list(numbers[number::count]), "save": False, "out": str(out)}
                place.start(spec, {"RANK": "0", "LOCAL_RANK": "0", **place.visible(number, devices)})
            for number, line in lines(found):
                event = json.loads(line) if line.startswith('{"event": ') else {}
                if event.get("event") == "shard":
                    found[number].bring(job.out, event["files"])
                    yield event["number"], event["counts"]
                elif event.get("event") == "failed":
                    said = event["message"]
                elif event.get("event") == "done":
                    job.elsewhere.append(event)
                elif event.get("event") != "progress":
                    print(line, end="", flush=True)
    except Died as error:
        die(error)
    except Failed as error:
        raise StageError(said or str(error)) from None


@contextlib.contextmanager
def places(runtime: Mapping[str, Any], count: int, devices: int = 1) -> Iterator[list[Place]]:
    """Where `count` processes can run, each with so many devices; what still runs there at the end is ended."""
    if runtime["launcher"] == "ray":
        from engine import cluster

        with cluster.places(runtime, count, devices) as found:
            yield found
        return
    here: list[Place] = [Local() for _ in range(count)]
    try:
        yield here
    finally:
        for place in here:
            place.end()


def lines(found: Sequence[Place]) -> Iterator[tuple[int, str]]:
    """(place, line) of all started processes as they come, until all have ended well.

    Raises:
        Died: one was killed. Failed: one ended with another code than 0.
    """
    said: queue.SimpleQueue[tuple[int, str | int]] = queue.SimpleQueue()

    def follow(number: int) -> None:
        for item in found[number].said():
            said.put((number, item))

    for number in range(len(found)):
        threading.Thread(target=follow, args=(number,), daemon=True).start()
    codes: dict[int, int] = {}
    until = float("inf")  # when one has failed the others may still say that they were killed, which explains it
    while len(codes) < len(found) and time.monotonic() < until:
        try:
            number, item = said.get(timeout=0.2)
        except queue.Empty:
            continue
        if isinstance(item, str):
            yield number, item
            continue
        codes[number] = item
        if item < 0:
            break
        if item > 0:
            until = min(until, time.monotonic() + found[number].grace)
    if killed := [n for n, code in codes.items() if code < 0]:
        raise Died(f"process {killed[0]} of {len(found)} was killed ({found[killed[0]].name})")
    if failed := [(n, code) for n, code in codes.items() if code > 0]:
        raise Failed(f"process {failed[0][0]} of {len(found)} ended with exit code {failed[0][1]}", failed[0][1])


def work(spec: dict[str, Any]) -> int:
    """What one of the processes does: the first one the stage, the others their share of its steps; a replica its shards."""
    import torch

    from engine import run
    from engine.zero import WorkerDone

    if spec["runtime"].get("device") == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    if int(os.environ["RANK"]) == 0:
        return run.main(spec)
    cpu = time.process_time()
    with tempfile.TemporaryDirectory() as out:
        job = run.open_job({**spec, "out": out})
        run.settle(job.runtime, int(getattr(job.recipe, "seed", 0)))
        try:
            importlib.import_module(f"engine.{job.stage}").run(job)
        except WorkerDone:
            print(json.dumps({"used": run.measure_usage(job.runtime.device, cpu)}), flush=True)
            return 0
    raise AssertionError("a stage that shares its steps ends in its first process only")


if __name__ == "__main__":
    threading.Thread(target=lambda: (os.read(0, 1), os._exit(137)), daemon=True).start()  # the starter is gone
    os.environ[_MARK] = "1"
    code = work(json.loads(Path(sys.argv[1]).read_text()))
    sys.stdout.flush()
    os._exit(code)  # process groups of other libraries must not hold the process back
