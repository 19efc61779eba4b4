"""`roundhouse refresh`: the flow continued-pretraining in this process, and the chain of refreshes as a table."""

from typing import Any

from rich.console import Console
from rich.table import Table

from cli import embedded

console = Console(highlight=False, soft_wrap=True)


def refresh(config: str, seed: int | None, store: str | None, runtime: str | None) -> None:
    """Look for new documents and do all that follows; then show every refresh so far.

    Raises:
        ConfigError, StorageError: one line.
    """
    place = embedded.choose()  # before Prefect is imported, which reads its settings then
    from tasks.refreshing import open_work

    before = len(open_work(config, seed, store, runtime).chain.entries())
    with embedded.server(place):
        from flows.refresh import refresh as flow

        flow(config=config, seed=seed, store=store, runtime=runtime)
    work = open_work(config, seed, store, runtime)
    known = work.chain.entries()
    if len(known) == before:
        console.print("nothing new")
    print_chain(work, known)


def print_chain(work: Any, known: list[Any]) -> None:
    """One line a refresh: what was gained and forgotten, and what was decided."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("refresh", "new documents", "new text, nats", "old text, nats", "decided", "followed up", "base"):
        table.add_column(column, overflow="fold")
    for entry in known:
        look, decision = (work.run.store.manifest(_ref(key)) for key in (entry.gather, entry.decision))
        documents = "-" if look is None else str(look.record["summary"]["documents"])
        base = {} if decision is None else decision.record["summary"]["base"]
        table.add_row(
            f"r{entry.number}", documents, _change(base, "new"), _change(base, "old"), entry.action,
            work.chain.followed(entry.number) or "-", entry.base,
        )  # fmt: skip
    console.print(table)


def _change(base: dict[str, Any], kind: str) -> str:
    """The change of the loss on the corpora of one kind; the worst of several."""
    found = [one["nats_per_token"] for one in base.values() if one["kind"] == kind]
    if not found:
        return "-"
    worst = max(found, key=lambda one: one["mean"])
    return f"{worst['mean']:+.3f} ({worst['low']:+.3f} to {worst['high']:+.3f})"


def _ref(key: str) -> Any:
    from storage import Ref

    return Ref.parse(key)
