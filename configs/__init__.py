"""Typed recipes and runtime, and the loader that rejects what it does not know."""

from configs.bakeoff import BakeOff, Entrant
from configs.campaign import Base, Campaign, Data, Round
from configs.entrants import Competitor, competitors, read_entrant, ready
from configs.load import load, load_runtime
from configs.methods import describe, method_names
from configs.parse import ConfigError
from configs.runtime import Runtime

__all__ = [
    "BakeOff",
    "Base",
    "Campaign",
    "Competitor",
    "ConfigError",
    "Data",
    "Entrant",
    "Round",
    "Runtime",
    "competitors",
    "describe",
    "load",
    "load_runtime",
    "method_names",
    "read_entrant",
    "ready",
]
