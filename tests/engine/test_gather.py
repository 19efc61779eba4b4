"""engine.gather and tasks.gather: what is new in an inbox, with late, changed, repeated and broken files."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs.gathering import File, Gather, Inbox, Listing
from engine import gather
from engine.errors import StageError
from storage.inbox import Moved, look
from storage.rows import read_rows, write_rows
from tasks.gather import listings


def sentence(i: int) -> str:
    return " ".join(f"word{(i * 7919 + j * (j + i)) % 5000}" for j in range(30))


class House:
    """An inbox folder and the looks at it so far."""

    def __init__(self, tmp_path: Path, make_job: Any) -> None:
        self.inbox = tmp_path / "inbox"
        self.inbox.mkdir()
        self.make_job, self.looks = make_job, list[Path]()

    def put(self, name: str, data: str | bytes | list[Any]) -> None:
        path = self.inbox / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(data, list):
            data = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in data)
        path.write_bytes(data.encode() if isinstance(data, str) else data)

    def listed(self, **inbox: Any) -> tuple[Listing, ...]:
        return listings([Inbox(url=str(self.inbox), **inbox)], 0, self.looks)

    def gather(self, found: tuple[Listing, ...] | None = None, **settings: Any) -> tuple[dict[str, Any], list[str]]:
        """One more look; returns its summary and the texts that were new."""
        recipe = Gather(listings=self.listed() if found is None else found, **{"max_rejected": 1.0, **settings})
        job = self.make_job("gather", recipe, out=f"look-{len(self.looks)}", seen=list(self.looks))
        summary = gather.run(job)
        self.looks.append(job.out)
        texts = [
            row["text"] for part in ("rows", "held_out") for row in read_rows(job.out / f"{part}.parquet", "Document")
        ]
        assert len(texts) == summary["documents"] + summary["held_out"]
        return summary, texts

    def lines(self, name: str) -> list[dict[str, str]]:
        return [json.loads(line) for line in (self.looks[-1] / name).read_text().splitlines()]


@pytest.fixture
def house(tmp_path: Path, make_job: Any) -> House:
    return House(tmp_path, make_job)


def test_only_what_was_not_seen_is_new(house: House) -> None:
    house.put("a.txt", sentence(0))
    house.put("sub/b.jsonl", [{"text": sentence(i)} for i in range(1, 5)])
    summary, texts = house.gather()
    assert summary["documents"] == 5 and sorted(texts) == sorted(sentence(i) for i in range(5))
    assert house.listed() == ()
    house.put("late.txt", sentence(9))  # its date does not matter, only that it was not there
    import os

    os.utime(house.inbox / "late.txt", (0, 0))
    summary, texts = house.gather()
    assert texts == [sentence(9)] and summary["seen_before"] == 5 and summary["files"] == 1
    assert house.listed() == ()


def test_touched_file_is_not_new_and_changed_one_gives_only_its_new_documents(house: House) -> None:
    house.put("a.jsonl", [{"text": sentence(i)} for i in range(3)])
    house.gather()
    (house.inbox / "a.jsonl").touch()
    assert house.listed() == ()
    house.put("a.jsonl", [{"text": sentence(i)} for i in range(4)])
    summary, texts = house.gather()
    assert texts == [sentence(3)] and summary["exact_duplicates"] == 3
    (house.inbox / "a.jsonl").unlink()
    assert house.listed() == ()  # a file that goes takes nothing back


def test_duplicates_are_dropped_counted_and_named(house: House) -> None:
    near = sentence(1).rsplit(" ", 1)[0] + " other"  # 25 of 27 shingles of five words are common: J = 25 / 27
    far = " ".join(sentence(1).split()[:15] + sentence(2).split()[:15])
    house.put("a.jsonl", [{"text": t} for t in (sentence(1), sentence(1).upper() + "  ", near, far, near)])
    summary, texts = house.gather()
    assert texts == [sentence(1), far]
    assert (summary["exact_duplicates"], summary["near_duplicates"], summary["read"]) == (1, 2, 5)
    assert [(d["place"].rpartition(":")[2], d["how"]) for d in house.lines("duplicates.jsonl")] == [
        ("2", "exact"), ("3", "near"), ("5", "near"),
    ]  # fmt: skip
    house.put("b.txt", near + " indeed")  # near something of an earlier look
    summary, texts = house.gather()
    assert texts == [] and summary["near_duplicates"] == 1


def test_what_the_base_was_trained_on_is_not_new(house: House, tmp_path: Path) -> None:
    old = tmp_path / "old"
    rows = [{"id": str(i), "text": sentence(i), "source": "old"} for i in range(4)]
    write_rows(old / "rows.parquet", "Document", rows[:3])
    write_rows(old / "held_out.parquet", "Document", rows[3:])
    job = house.make_job("gather", Gather(), out="given", documents=[old])
    assert gather.run(job)["given"] == 4
    house.looks.append(job.out)
    house.put("a.jsonl", [{"text": sentence(i)} for i in range(6)])
    summary, texts = house.gather()
    assert texts == [sentence(4), sentence(5)] and summary["exact_duplicates"] == 4 and summary["given"] == 0


def test_held_out_part_is_a_property_of_the_text(house: House) -> None:
    house.put("a.jsonl", [{"text": sentence(i)} for i in range(100)])
    summary, _ = house.gather(held_out=0.3)
    assert summary["documents"] + summary["held_out"] == 100 and 15 <= summary["held_out"] <= 45


BROKEN: list[tuple[str, bytes, str]] = [
    ("empty.txt", b"", "the file is empty"),
    ("utf16.txt", "hello there".encode("utf-16"), "not UTF-8 at byte 0; it looks like UTF-16"),
    ("latin.txt", "caf\xe9 au lait".encode("latin-1"), "not UTF-8 at byte 3: save it as UTF-8"),
    ("nul.txt", b"a\x00b", "control character U+0000"),
    ("cut.jsonl", b'{"text": "whole row"}\n{"text": "cut', "the file ends inside a row; it was cut off"),
    ("bad.jsonl", b'{"text": NaN}\n', "number NaN is not finite"),
    ("column.jsonl", b'{"body": "x"}\n', "column 'text' is missing"),
    ("torn.parquet", b"PAR1 and no more", "cannot be read as Parquet"),
    ("torn.jsonl.gz", gzip.compress(b'{"text": "x"}\n' * 99)[:20], "damaged or cut-off gzip"),
    ("bad.json", b'{"text": "x"}', "want a JSON array"),
    ("latin.json", '[{"text": "\xe9"}]'.encode("latin-1"), "not UTF-8 at byte 11"),
]


@pytest.mark.parametrize(("name", "data", "reason"), BROKEN, ids=[b[0] for b in BROKEN])
def test_broken_file_is_counted_and_named_and_takes_no_other_along(
    house: House, name: str, data: bytes, reason: str
) -> None:
    house.put(name, data)
    house.put("good.txt", sentence(0))
    summary, texts = house.gather()
    assert sentence(0) in texts and summary["rejected"] == 1
    (refused,) = house.lines("rejected.jsonl")
    assert reason in refused["reason"] and f"{house.inbox}/{name}" in refused["place"]
    assert "/tmp" not in refused["reason"] and len(refused["reason"]) < 250
    assert house.listed() == ()  # not read again and again ..
    house.put(name, data + b" ")  # .. until it is another file
    assert [f.name for f in house.listed()[0].files] == [name]


def test_cut_off_file_gives_its_whole_rows_and_later_the_rest(house: House) -> None:
    rows = [json.dumps({"text": sentence(i)}) + "\n" for i in range(5)]
    house.put("a.jsonl", "".join(rows[:3]) + rows[3][:20])
    summary, texts = house.gather()
    assert len(texts) == 3 and summary["rejected"] == 1
    house.put("a.jsonl", "".join(rows))
    summary, texts = house.gather()
    assert texts == [sentence(3), sentence(4)] and summary["exact_duplicates"] == 3


def test_marks_forms_and_line_ends_of_text_files_do_not_matter(house: House) -> None:
    house.put("bom.txt", b"\xef\xbb\xbf" + b"one\r\ntwo\x0cthree\rfour")
    house.put("hidden/.part.txt", "half of an upload")
    house.put("image.png", b"\x89PNG")
    summary, texts = house.gather()
    assert texts == ["one\ntwo\nthree\nfour"] and summary["files"] == 1


def test_blank_documents_are_counted(house: House) -> None:
    house.put("a.jsonl", [{"text": "  \n"}, {"text": sentence(0)}])
    house.put("b.txt", " \n ")
    summary, texts = house.gather(max_rejected=0.0)
    assert texts == [sentence(0)] and summary["empty"] == 2 and summary["rejected"] == 0


def test_long_document_is_kept_whole_up_to_the_limit_then_refused(house: House) -> None:
    long = " ".join(str(i) for i in range(100_000))  # 0.6 million characters
    house.put("long.txt", long)
    _, texts = house.gather()
    assert texts == [long]
    house.put("longer.txt", long + " and more" * 10)
    _, texts = house.gather(max_chars=len(long))
    assert texts == [] and f"at most {len(long)}" in house.lines("rejected.jsonl")[0]["reason"]


def test_columns_name_the_text(house: House) -> None:
    pq.write_table(pa.table({"body": [sentence(0), sentence(1)], "date": [1, 2]}), house.inbox / "a.parquet")
    _, texts = house.gather(house.listed(columns={"text": "body"}, files=["*.parquet"]))
    assert texts == [sentence(0), sentence(1)]


def test_many_malformed_documents_fail_the_look(house: House) -> None:
    house.put("a.jsonl", [{"text": sentence(0)}, {"txt": "x"}, {"txt": "y"}])
    with pytest.raises(StageError, match=r"2 of 3 documents are malformed, max_rejected is 0.2: .*a.jsonl:2: column"):
        house.gather(max_rejected=0.2)


@pytest.mark.parametrize("how", ["vanished", "changed"])
def test_file_that_moves_between_listing_and_reading_is_one_clear_error(house: House, how: str) -> None:
    house.put("a.txt", sentence(0))
    house.put("b.txt", sentence(1))
    found = house.listed()
    (house.inbox / "b.txt").unlink() if how == "vanished" else house.put("b.txt", sentence(2))
    with pytest.raises(Moved, match=rf"inbox/b.txt: {how} between listing and reading; nothing is lost, run again"):
        house.gather(found)
    summary, _ = house.gather()  # listed anew
    assert summary["documents"] == (1 if how == "vanished" else 2)


def test_links_and_unusable_names_are_counted_not_followed(house: House, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("outside of the inbox")
    (house.inbox / "link.txt").symlink_to(secret)
    Path(str(house.inbox) + "/odd\udcff.txt").write_text("x")
    assert [f.tag[0] for f in look(str(house.inbox))] == ["!", "!"]
    summary, texts = house.gather()
    assert texts == [] and summary["rejected"] == 2
    assert "link" in house.lines("rejected.jsonl")[0]["reason"]


def test_listing_names_the_recipe_and_the_same_files_the_same(house: House) -> None:
    house.put("a.txt", "one")
    first = Gather(listings=house.listed())
    (house.inbox / "a.txt").touch()
    assert Gather(listings=house.listed()) == first
    house.put("a.txt", "two")
    assert Gather(listings=house.listed()) != first
    assert first.listings[0].files == (File(name="a.txt", size=3, tag=first.listings[0].files[0].tag),)


def test_the_world_is_an_inbox_whose_documents_arrive_by_count(house: House) -> None:
    def listing(count: int) -> tuple[Listing, ...]:
        return listings([Inbox(world="second", count=count)], 5, [])

    assert listing(50) == listing(50) != listing(60)
    first, texts = house.gather(listing(50), seed=5)
    assert first["read"] == 50 and len(texts) == 50 - first["exact_duplicates"] - first["near_duplicates"]
    second, more = house.gather(listing(60), seed=5)
    assert second["exact_duplicates"] + second["near_duplicates"] >= 50 and not set(texts) & set(more)


@pytest.mark.parametrize(
    ("inbox", "wanted"),
    [
        ({"url": "a", "world": "main", "count": 3}, "exactly one of url, world"),
        ({}, "exactly one of url, world"),
        ({"world": "main"}, "count goes with world"),
        ({"url": "a", "count": 3}, "count goes with world"),
    ],
)
def test_inbox_is_one_place(inbox: dict[str, Any], wanted: str) -> None:
    with pytest.raises(ValueError, match=wanted):
        Inbox(**inbox)
