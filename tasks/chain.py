"""The refreshes of a campaign's base, one after another: r1, r2, .. as create-only objects of the store.

`refreshes/<name>-<digest>/r0001-begun.json` pins what a refresh works on, so that one that was killed goes on with the
same documents whatever arrives meanwhile; `r0001.json` says what it has made; `r0001-followed.json` that its follow-up was
started. The last one is found by asking for the next number until the store says that it is not there: no pointer is
ever moved and no listing is trusted.
"""

from typing import Any

from configs import ConfigError
from configs.fields import Strict
from configs.gathering import Gather
from storage import AlreadyExists, NotFound, StorageError, Store
from storage.names import seal, unseal

MOST = 100_000


class Begun(Strict):
    """What a refresh works on: the look that found new documents, and the recipe to look with again."""

    number: int
    gather: str
    recipe: Gather


class Entry(Strict):
    """What a refresh has made, as keys of artifacts. `chat` is the candidate that did best on the new base."""

    number: int
    base: str
    gather: str
    corpus: str
    measure: str
    decision: str
    action: str
    chat: str
    config: dict[str, Any]  # the refresh's settings, as they were


class Chain:
    """The refreshes of one name of one campaign."""

    def __init__(self, store: Store, name: str, digest: str) -> None:
        self.store, self.home = store, f"refreshes/{name}-{digest}"

    def entries(self) -> list[Entry]:
        """Every finished refresh, oldest first."""
        found: list[Entry] = []
        while (body := self._read(f"r{len(found) + 1:04d}")) is not None and len(found) < MOST:
            found.append(Entry.model_validate(body))
        return found

    def begun(self, number: int) -> Begun | None:
        """What the refresh of that number was begun with, None if it was not."""
        body = self._read(f"r{number:04d}-begun")
        return None if body is None else Begun.model_validate(body)

    def begin(self, begun: Begun) -> None:
        """Pin what a refresh works on.

        Raises:
            ConfigError: another run has begun it with other documents meanwhile.
        """
        self._create(f"r{begun.number:04d}-begun", begun)

    def close(self, entry: Entry) -> None:
        """Record a finished refresh; the same again changes nothing."""
        self._create(f"r{entry.number:04d}", entry)

    def followed(self, number: int) -> str | None:
        """How the follow-up of a refresh was started; None if it was not."""
        body = self._read(f"r{number:04d}-followed")
        return None if body is None else str(body["how"])

    def follow(self, number: int, how: str) -> None:
        """Record that the follow-up was started; whoever says it first is right."""
        try:
            self.store.create(self._key(f"r{number:04d}-followed"), seal({"how": how}))
        except AlreadyExists:
            return

    def _key(self, name: str) -> str:
        return f"{self.home}/{name}.json"

    def _read(self, name: str) -> dict[str, Any] | None:
        try:
            data = self.store.get(self._key(name))
        except NotFound:
            return None
        try:
            return dict(unseal(data))
        except (ValueError, TypeError) as error:
            raise StorageError(
                f"{self.store.url}/{self._key(name)}: damaged ({error}); restore it from a copy of the store"
            ) from None

    def _create(self, name: str, body: Begun | Entry) -> None:
        try:
            self.store.create(self._key(name), seal(body.model_dump(mode="json")))
        except AlreadyExists:
            raise ConfigError(
                f"{self.store.url}/{self._key(name)}: another run has recorded this refresh meanwhile; "
                "run again to go on from there"
            ) from None
