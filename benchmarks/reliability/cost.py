"""What the store's part of a finished campaign costs: `python -m benchmarks.reliability.cost STORE [FILE]` prints a line
a campaign, and keeps it in FILE; the exit status is 1 if one cost more than 3 %.

For each stage of a campaign the same is done again in an empty store, on the same bytes, and its CPU seconds are added up:
the look for the result, the lease, the verified fetch of every input, a save point of its size for each 30 s that the
stage took, the beats, the commit (hashes, fsync, manifest) and the note. This is set against the CPU seconds that the
stages have recorded. The bytes are copied outside the measured time.
"""

import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from configs import Runtime
from storage import Manifest, Ref, Store, open_store

MOST = 3.0  # percent of the CPU seconds of a campaign
SAVED = 3  # a save point of training holds the weights and two moments of each


def replay(made: Manifest, finished: Store, scratch: Path) -> float:
    """CPU seconds of the storage of one stage."""
    runtime, seconds = Runtime(), float(made.record["seconds"])
    inputs = made.record["identity"]["inputs"].values()
    keys = [key for value in inputs for key in ([value] if isinstance(value, str) else value)]
    source = finished.fetch(made.ref)
    store = open_store(scratch / "store")
    saves = int(seconds / runtime.save_seconds)
    files = [path for path in source.rglob("*") if path.is_file() and "_beside" not in path.parts]
    points = []
    for number in range(saves):
        points.append(store.save_points(made.ref).folder())
        for path in files:
            for copy in range(SAVED if path.suffix == ".safetensors" else 1):
                shutil.copyfile(path, points[-1] / f"{copy}-{number}-{path.name}")
        shutil.move(points[-1], scratch / f"point{number}")
    began = time.process_time()
    assert store.manifest(made.ref) is None
    with store.lease(made.ref.key, ttl=runtime.lease_ttl, beat=runtime.lease_beat) as lease:  # type: ignore[union-attr]
        lease.begin(0)
        for key in keys:
            finished.fetch(Ref.parse(key))
        points_of = store.save_points(made.ref, lease)
        for number in range(saves):
            points_of.save(number + 1, scratch / f"point{number}", {})
        for _ in range(int(seconds / runtime.lease_beat)):
            lease._superseded()
            lease._write_beat("1 step 1")
        spent = time.process_time() - began
        draft = store.draft(made.ref)
        shutil.copytree(source, draft.path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("_beside"))
        began = time.process_time()
        draft.commit(dict(made.record), lease)
        points_of.drop()
    store.campaign("cost", "0" * 16).note("stage", made.ref)
    return spent + time.process_time() - began


def measured(finished: Store) -> list[dict[str, Any]]:
    """Of each campaign of a store: its name, stages, CPU seconds of work and of storage, and the share in percent."""
    found = []
    for name, digest in finished.campaigns():
        spent = total = 0.0
        refs = {ref for refs in finished.campaign(name, digest).notes().values() for ref in refs}
        manifests = [made for ref in sorted(refs, key=lambda ref: ref.key) if (made := finished.manifest(ref))]
        for made in manifests:
            with tempfile.TemporaryDirectory(dir=os.environ.get("ROUNDHOUSE_SCRATCH")) as scratch:
                spent += replay(made, finished, Path(scratch))
            total += made.record["cpu_seconds"]
        if total:
            line = {"name": f"{name}-{digest}", "stages": len(manifests), "work": round(total, 2)}
            found.append(line | {"storage": round(spent, 3), "percent": round(100 * spent / (spent + total), 3)})
    return found


def main(url: str, kept: Path | None = None) -> int:
    """Print what each campaign cost, add it to the file `kept`; 1 if there is none or one cost more than it may."""
    found = measured(open_store(url))
    text = "".join(json.dumps(line) + "\n" for line in found)
    print(text, end="")
    if kept is not None:
        kept.write_text(text)
    return 0 if found and all(line["percent"] <= MOST for line in found) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], *map(Path, sys.argv[2:])))
