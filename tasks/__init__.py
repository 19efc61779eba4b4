"""The verbs that a flow is written in."""

from tasks.adopt import adopt
from tasks.annotate import annotate
from tasks.evaluate import compare, evaluate
from tasks.gather import gather, listings
from tasks.ingest import ingest
from tasks.online import online
from tasks.pretrain import pretrain
from tasks.reward import reward
from tasks.run import Artifact, Run, Stopped, connect
from tasks.sample import probe, sample
from tasks.score import score
from tasks.select import select
from tasks.train import train

__all__ = [
    "Artifact",
    "Run",
    "Stopped",
    "adopt",
    "annotate",
    "compare",
    "connect",
    "evaluate",
    "gather",
    "ingest",
    "listings",
    "online",
    "pretrain",
    "probe",
    "reward",
    "sample",
    "score",
    "select",
    "train",
]
