"""`python -m report CAMPAIGN PAGE.html --store URL`: write a campaign's page, and its model cards into the store.

CAMPAIGN is a JSON file as `tasks.outcome.view` gives it, or the name-digest of a campaign that the store has recorded.
Prints one JSON line: the name of what is on the page, and what must be known of it.
"""

import argparse
import json
import sys
from pathlib import Path

from report.archive import Archive
from report.evidence import Evidence
from report.model_card import model_card
from report.page import write
from report.pair import write_pair
from report.ranking import write_ranking
from report.record import fullest, view_of
from report.view import View
from storage import StorageError, Store, open_store


def main(arguments: list[str]) -> int:
    """Returns the exit code; an expected error is one line."""
    parser = argparse.ArgumentParser(prog="python -m report", description=__doc__)
    parser.add_argument("campaign", help="a JSON file, or name-digest")
    parser.add_argument("page", type=Path, help="the HTML file to write")
    parser.add_argument("--store", required=True, help="URL of the store")
    parser.add_argument("--beside", metavar="CAMPAIGN", help="a second campaign to compare it with")
    parser.add_argument("--cards", action="store_true", help="also put each version's model card into the store")
    given = parser.parse_args(arguments)
    try:
        with open_store(given.store) as store:
            view = _view(store, given.campaign)
            beside = _view(store, given.beside) if given.beside else None
            if beside:
                write_pair(store, view, beside, given.page)
            elif view.config.get("bake_off"):
                write_ranking(store, view, given.page)
            else:
                write(store, view, given.page)
            if given.cards and not view.config.get("bake_off"):
                evidence = Evidence(view, Archive(store))
                for version in view.versions:
                    if evidence.archive.manifest(version.model) is not None:
                        card = model_card(evidence, version.label)
                        store.put(f"reports/{view.name}-{view.digest}/{version.label}.md", card.encode())
            shown = [view, beside] if beside else [view]
            said = {
                "name": "-and-".join(f"{one.name}-{one.digest}" for one in shown),
                "notes": [one.note for one in shown if one.note],
            }
            print(json.dumps(said))
    except (StorageError, ValueError, OSError) as err:
        print(f"error: {err}", file=sys.stderr)
        return 2
    return 0


def _view(store: Store, campaign: str) -> View:
    file = Path(campaign)
    if file.suffix != ".json":
        return view_of(store, campaign)
    return fullest(store, View.from_json(json.loads(file.read_text())))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
