"""The verbs that a flow is written in."""

from tasks.adopt import adopt
from tasks.annotate import annotate
from tasks.certify import Uncertified, certify
from tasks.continuing import continue_pretraining
from tasks.decide import decide
from tasks.evaluate import compare, evaluate
from tasks.gate import accepted, gate, leads
from tasks.gather import gather, listings
from tasks.ingest import ingest
from tasks.leakage import Leaked, screen
from tasks.matrix import matrix
from tasks.measure import measure
from tasks.online import online
from tasks.pack import pack
from tasks.pretrain import pretrain
from tasks.rank import rank
from tasks.reward import reward
from tasks.run import Artifact, Rejected, Run, Stopped, connect
from tasks.sample import probe, sample
from tasks.score import score
from tasks.select import select
from tasks.train import train
from tasks.transplant import transplant

__all__ = [
    "Artifact",
    "Leaked",
    "Rejected",
    "Run",
    "Stopped",
    "Uncertified",
    "accepted",
    "adopt",
    "annotate",
    "certify",
    "compare",
    "connect",
    "continue_pretraining",
    "decide",
    "evaluate",
    "gate",
    "gather",
    "ingest",
    "leads",
    "listings",
    "matrix",
    "measure",
    "online",
    "pack",
    "pretrain",
    "probe",
    "rank",
    "reward",
    "sample",
    "score",
    "screen",
    "select",
    "train",
    "transplant",
]
