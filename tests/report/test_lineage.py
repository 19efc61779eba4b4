import re

from report.archive import Archive
from report.evidence import Evidence
from report.lineage import details, direct, graph, took, totals
from report.view import Node
from storage import Ref
from tests.report.conftest import Campaign


def node(label: str, *inputs: str) -> Node:
    return Node(label, "train", Ref("model", "train", "0" * 16), inputs)


def test_edges_that_follow_from_others_are_left_out() -> None:
    nodes = [node("a"), node("b", "a"), node("c", "b", "a", "elsewhere"), node("d", "a", "c"), node("e", "a", "b")]
    assert direct(nodes) == [("a", "b"), ("b", "c"), ("c", "d"), ("b", "e")]


def test_what_each_stage_took_is_said_only_when_it_has_ended(partial: Campaign) -> None:
    evidence = Evidence(partial.view, Archive(partial.store))
    found = {one.label: one for one in took(evidence)}
    assert found["base"].state == "done" and found["base"].wall == "2.5 s" and found["base"].memory == "300 MB"
    assert (found["r1-select"].state, found["r1-select"].wall, found["r1-select"].bytes) == ("not yet", "", "")
    sums = totals(evidence)
    assert (sums["done"], sums["stages"]) == (11, 13) and sums["seconds"] == "27.5 s"


def test_gates_stand_in_their_round_and_what_sees_all_versions_stands_last(finished: Campaign) -> None:
    svg = graph(Evidence(finished.view, Archive(finished.store)))
    across = dict(re.findall(r'data-node="([^"]+)"[^>]*transform="translate\(([0-9.]+) ', svg))
    assert across["v1-gate"] == across["v1-evaluate"] == across["v1"] != across["v0"]
    assert across["matrix"] == across["compare"] == max(across.values(), key=float)
    width = float(re.search(r'width="([0-9.]+)"', svg)[1])  # type: ignore[index]
    assert float(across["compare"]) + 140 + 26 <= width  # the arcs inside the last column are not cut off


def test_a_node_tells_its_recipe_inputs_time_bytes_and_cost(partial: Campaign) -> None:
    found = details(Evidence(partial.view, Archive(partial.store)))
    v0 = found["v0"]
    assert v0["recipe"]["method"] == "sft" and v0["inputs"] == ["base"] and v0["seconds"] == "2.5 s"
    assert v0["bytes"].endswith("kB") or v0["bytes"].endswith(" B")
    assert v0["cost"] == "2.2 s of CPU, 300 MB of memory at most, on 1 x cpu"  # 2.25 s to one decimal, ties to even
    assert (found["r1-select"]["done"], found["r1-select"]["cost"]) == (False, "")
