"""Outside data -> typed rows, split by prompt."""

from configs.recipes import Ingest
from tasks.run import Artifact, Run

VERSION = 1


def ingest(run: Run, label: str, recipe: Ingest) -> Artifact:
    """Rows: rows.parquet and held_out.parquet; every refused row in rejected.jsonl."""
    return run.stage(label, "ingest", recipe, kind="rows", version=VERSION, device=False)
