"""What has arrived since the last look, and the documents in it that are new."""

import fnmatch
from collections.abc import Sequence
from pathlib import Path

from configs.gathering import File, Gather, Inbox, Listing
from configs.load import locate
from storage.inbox import look, tag_of
from storage.rows import read_rows
from tasks.run import Artifact, Run

VERSION = 1
SUFFIXES = (".txt", ".md", ".jsonl", ".jsonl.gz", ".json", ".parquet")
ABOUT = ("README.md", "dataset_infos.json", "dataset_info.json")  # what a repository says about itself
MOST_FILES = 20_000  # in one look, because the listing names the result; what is left waits for the next


def listings(inboxes: Sequence[Inbox], seed: int, seen: Sequence[Path]) -> tuple[Listing, ...]:
    """What lies in the inboxes and was not read by the looks whose results are in the folders `seen`.

    A file is known by its inbox, its name and the tag of its content.

    Raises:
        StorageError: an inbox is not there or cannot be read.
    """
    read = {(row["place"], row["name"], row["tag"]) for folder in seen for row in read_rows(folder / "files.parquet")}
    found: list[Listing] = []
    room = MOST_FILES
    for inbox in inboxes:
        listing = Listing(inbox=inbox, files=tuple(_files(inbox, seed)))
        files = [f for f in listing.files if (listing.place, f.name, f.tag) not in read][:room]
        room -= len(files)
        if files:
            found.append(Listing(inbox=inbox, files=tuple(files)))
    return tuple(found)


def gather(
    run: Run, label: str, recipe: Gather, *, seen: Sequence[Artifact] = (), documents: Sequence[Artifact] = ()
) -> Artifact:
    """rows.parquet and held_out.parquet: what is new; files.parquet and seen.parquet: what is known from now on."""
    return run.stage(
        label,
        "gather",
        recipe,
        kind="rows",
        version=VERSION,
        device=False,
        seen=seen or None,
        documents=documents or None,
    )


def _files(inbox: Inbox, seed: int) -> list[File]:
    if inbox.world is not None:
        said = f"{inbox.world}, seed {seed}"
        return [File(name=f"seed-{seed}", size=int(inbox.count or 0), tag=tag_of(f"{said}, {inbox.count}"))]
    url = str(inbox.url)
    found = look(url if "://" in url else str(locate(url)))
    return [File(name=f.name, size=f.size, tag=f.tag) for f in found if _is_wanted(inbox, f.name)]


def _is_wanted(inbox: Inbox, name: str) -> bool:
    if inbox.files:
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in inbox.files)
    return name.endswith(SUFFIXES) and not (str(inbox.url).startswith("hf://") and name.rpartition("/")[2] in ABOUT)
