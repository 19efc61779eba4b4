"""What it takes to find documents that are new: the places they arrive at, and the recipe of one look at them."""

from typing import Literal

from pydantic import Field, model_validator

from configs.fields import Count, Share, Strict

Columns = dict[str, str]


class Inbox(Strict):
    """A place where documents arrive. Exactly one of `url` and `world`.

    url: a folder (relative to ROUNDHOUSE_DATA or the working folder), s3://bucket/prefix, or hf://datasets/owner/name[@revision].
    files: patterns of names below the URL, as in a shell; none = every file with a known suffix.
    columns: maps `text` to a column of the rows of .jsonl, .jsonl.gz, .json and .parquet files; a .txt or .md is one document.
    world: a variety of the built-in world; `count` documents have arrived so far.
    """

    url: str | None = None
    files: tuple[str, ...] = ()
    columns: Columns = Field(default_factory=dict)
    world: Literal["main", "second"] | None = None
    count: Count | None = None

    @model_validator(mode="after")
    def _one_origin(self) -> "Inbox":
        if (self.url is None) == (self.world is None):
            raise ValueError("an inbox needs exactly one of url, world")
        if (self.world is None) != (self.count is None):
            raise ValueError("count goes with world: how many of its documents have arrived")
        return self


class File(Strict):
    """One file of a listing: name below the inbox's URL, bytes, and a tag of its content."""

    name: str
    size: int
    tag: str


class Listing(Strict):
    """What lay in one inbox and was not read before."""

    inbox: Inbox
    files: tuple[File, ...]

    @property
    def place(self) -> str:
        """How people call the inbox."""
        return str(self.inbox.url or f"world:{self.inbox.world}")


class Gather(Strict):
    """Listed files -> documents that are new: to each other and to all that was seen before.

    The listings are part of the recipe, so that what lay there names the result.
    """

    listings: tuple[Listing, ...] = ()
    near: float = Field(
        default=0.8, ge=0.5, le=1.0
    )  # Jaccard of word shingles from which two are near-duplicates (ours)
    shingle: Count = 5  # words
    max_chars: Count = 10_000_000  # of one document
    max_rejected: Share = 0.2  # more malformed documents than this fails the stage
    held_out: Share = 0.0
    seed: int = 0
