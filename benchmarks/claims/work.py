"""Makes the stages of a laid-out run that are not in the store, several at a time, without Prefect."""

import threading
from collections.abc import Callable, Collection
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

from tasks import Artifact, Run
from tasks.stage import produce


def needed(wanted: Collection[Artifact]) -> list[Artifact]:
    """The artifacts and all that they are made from, what comes first first."""
    found: dict[int, Artifact] = {}

    def visit(artifact: Artifact) -> None:
        if id(artifact) not in found:
            for upstream in artifact.upstream:
                visit(upstream)
            found[id(artifact)] = artifact

    for artifact in wanted:
        visit(artifact)
    return list(found.values())


def make(run: Run, wanted: Collection[Artifact], slots: int, say: Callable[[str], None] = print) -> None:
    """Do the work behind `wanted` in at most `slots` processes; what is in the store is not done again.

    Args:
        run: laid out with mode "plan".

    Raises:
        StageFailed: a stage failed; those under way are let to their ends.
    """
    todo = {a.ref.key: a for a in needed(wanted) if a.made() is None}
    done: set[str] = set()
    working: dict[Future[Any], str] = {}
    cancelled = threading.Event()
    with ThreadPoolExecutor(slots) as pool:
        try:
            while todo or working:
                for key, artifact in list(todo.items()):
                    waits = {up.ref.key for up in artifact.upstream} & (todo.keys() | set(working.values()))
                    if len(working) < slots and not waits:
                        one = pool.submit(produce, artifact.stage, run.store, run.runtime, cancelled=cancelled.is_set)
                        working[one] = key
                        del todo[key]
                ended, _ = wait(working, return_when=FIRST_COMPLETED)
                for future in ended:
                    made = future.result()
                    done.add(working.pop(future))
                    say(f"{made.manifest.record['label']}: {made.manifest.record['seconds']:.1f} s")
        except BaseException:
            cancelled.set()
            raise
