"""Documents -> token ids, packed once for every training that reads them."""

from configs.continuing import Pack
from tasks.run import Artifact, Run

VERSION = 1


def pack(run: Run, label: str, recipe: Pack, *, documents: Artifact, tokenizer: Artifact) -> Artifact:
    """A corpus: shards of token ids, held_out.parquet, pack.json. `tokenizer` is any model that reads text as the base does."""
    return run.stage(
        label, "pack", recipe, kind="corpus", version=VERSION, device=False, documents=documents, tokenizer=tokenizer
    )
