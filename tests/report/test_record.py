import dataclasses

import pytest

from report.archive import Archive
from report.evidence import Evidence
from report.lineage import totals
from report.record import view_of
from storage import NotFound, Ref, Store
from tests.report.conftest import Campaign


def finish(store: Store, label: str, work: str, kind: str, digest: str, **inputs: object) -> Ref:
    ref = Ref(kind, work, digest * 16)
    draft = store.draft(ref)
    (draft.path / "notes.json").write_text("{}")
    draft.commit({"identity": {"work": work, "inputs": inputs}})
    return ref


def test_a_record_gives_the_newest_result_of_each_label_and_who_read_whom(store: Store) -> None:
    base = finish(store, "base", "pretrain", "model", "a")
    old = finish(store, "v0", "train", "model", "b", model=base.key)
    new = finish(store, "v0", "train", "model", "c", model=base.key, rows=["rows/ingest-" + "9" * 16])
    judged = finish(store, "v0-evaluate", "evaluate", "report", "d", policy=new.key, earlier=[])
    record = store.campaign("toy", "e" * 16)
    record.create({"name": "toy", "seed": 3})
    for label, ref in (("base", base), ("v0", old), ("v0", new), ("v0-evaluate", judged)):
        record.note(label, ref)
    view = view_of(store, "toy-" + "e" * 16)
    assert [(node.label, node.stage, node.inputs) for node in view.nodes] == [
        ("base", "pretrain", ()),
        ("v0", "train", ("base",)),
        ("v0-evaluate", "evaluate", ("v0",)),
    ]
    assert [(v.label, v.model, v.evaluate) for v in view.versions] == [("base", base, None), ("v0", new, judged)]
    assert view.config["seed"] == 3 and view.compare is None


def test_an_unknown_campaign_is_refused_with_those_there_are(store: Store) -> None:
    store.campaign("toy", "e" * 16).create({"name": "toy"})
    with pytest.raises(NotFound, match=r"no campaign tiny; it has toy-eeee"):
        view_of(store, "tiny")
    with pytest.raises(NotFound, match="made nothing yet"):
        view_of(store, "toy-" + "e" * 16)


def test_a_record_does_not_know_what_is_still_to_come(finished: Campaign) -> None:
    whole = Evidence(finished.view, Archive(finished.store))
    recorded = Evidence(dataclasses.replace(finished.view, planned=False, compare=None), Archive(finished.store))
    count = len(whole.done)
    assert totals(whole)["progress"] == f"{count} of {count} stages done" and totals(whole)["finished"]
    assert totals(recorded)["progress"] == f"{count} stages done" and not totals(recorded)["finished"]
