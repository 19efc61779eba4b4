"""Artifacts in, one HTML file out; and the model card of a version."""

from report.model_card import model_card
from report.page import build, write
from report.pair import build_pair, write_pair
from report.view import Node, Version, View

__all__ = ["Node", "Version", "View", "build", "build_pair", "model_card", "write", "write_pair"]
