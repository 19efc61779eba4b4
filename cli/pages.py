"""`roundhouse report`: which campaigns are meant, and where their page goes."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from configs import ConfigError, Runtime
from report.record import view_of
from tasks import connect
from tasks.outcome import draw

SEEDED = re.compile(r"(.+)@(\d+)")  # tiny@2
RECORDED = re.compile(r".+-[0-9a-f]{16}")  # as the store's campaigns/ names them


def write_page(names: Sequence[str], seed: int | None, store: str | None, out: Path | None) -> str:
    """Draw one campaign, or two side by side; returns where the page is.

    Raises:
        ConfigError: a name that is none, a campaign beside itself, a file that cannot be written.
    """
    found = [_campaign(name, seed, store) for name in names]
    known = [one if isinstance(one, str) else f"{one.campaign.name}-{one.digest}" for one in found]
    if len(known) == 2 and known[0] == known[1]:
        plain = SEEDED.fullmatch(names[0])
        raise ConfigError(
            f"{names[0]} and {names[1]} are the same campaign, {known[0]}: name another one, or another seed of it "
            f"({plain[1] if plain else names[0]}@2)"
        )
    opened = next((one.store for one in found if not isinstance(one, str)), None) or connect(store, Runtime())
    for one in found:
        if isinstance(one, str):
            view_of(opened, one)  # says which there are if there is none
    try:
        return draw(found, opened, out)
    except OSError as error:
        raise ConfigError(f"{error.filename}: {error.strerror}; give --out a file that can be written") from error


def _campaign(name: str, seed: int | None, store: str | None) -> Any:
    """The plan of a config, with the seed after its @ if it has one; the name itself of a campaign in the store."""
    from cli.layout import planned

    if not Path(name).exists():
        if seeded := SEEDED.fullmatch(name):
            return planned(seeded[1], int(seeded[2]), store, None, require_data=False)
        if RECORDED.fullmatch(name):
            return name
    return planned(name, seed, store, None, require_data=False)
