"""storage.inbox: the same looks at a folder and at S3 prefixes of two real servers."""

from pathlib import Path

import pytest
from servers import Server

from storage import Refused, StorageError
from storage.inbox import LINK, Arrived, Moved, fetch, look
from storage.s3 import S3Backend


class Place:
    """An inbox that a test fills."""

    def __init__(self, url: str) -> None:
        self.url = url

    def put(self, name: str, data: bytes) -> None:
        if self.url.startswith("s3://"):
            bucket, _, prefix = self.url.removeprefix("s3://").partition("/")
            backend = S3Backend(bucket, prefix)
            backend.write(name, data)
            backend.close()
        else:
            path = Path(self.url) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)

    def remove(self, name: str) -> None:
        if self.url.startswith("s3://"):
            bucket, _, prefix = self.url.removeprefix("s3://").partition("/")
            backend = S3Backend(bucket, prefix)
            backend.delete(name)
            backend.close()
        else:
            (Path(self.url) / name).unlink()


@pytest.fixture
def folder(tmp_path: Path) -> Place:
    (tmp_path / "inbox").mkdir()
    return Place(str(tmp_path / "inbox"))


@pytest.fixture(params=["folder", *(pytest.param(n, marks=pytest.mark.s3) for n in ("rclone", "moto"))])
def inbox(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Place:
    if request.param == "folder":
        return request.getfixturevalue("folder")  # type: ignore[no-any-return]
    server: Server = request.getfixturevalue(request.param)
    for name, value in server.env.items():
        monkeypatch.setenv(name, value)
    return Place(server.url())


def test_a_look_shows_names_sizes_and_contents(inbox: Place) -> None:
    for name, data in (("b.txt", b"two"), ("sub/a b.txt", b"one"), (".hidden", b"x"), (".part/c.txt", b"x")):
        inbox.put(name, data)
    first = look(inbox.url)
    assert [(f.name, f.size) for f in first] == [("b.txt", 3), ("sub/a b.txt", 3)]
    assert first == look(inbox.url) and first[0].tag != first[1].tag
    inbox.put("b.txt", b"TWO")
    assert look(inbox.url)[0].tag != first[0].tag and look(inbox.url)[1] == first[1]


def test_a_copy_is_what_was_listed(inbox: Place, tmp_path: Path) -> None:
    data = bytes(range(256)) * 1000
    inbox.put("a b.bin", data)
    (file,) = look(inbox.url)
    fetch(inbox.url, file, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == data


@pytest.mark.parametrize("how", ["vanished", "changed"])
def test_what_moved_is_one_clear_error(inbox: Place, how: str, tmp_path: Path) -> None:
    inbox.put("a.txt", b"one")
    (file,) = look(inbox.url)
    inbox.remove("a.txt") if how == "vanished" else inbox.put("a.txt", b"two")
    with pytest.raises(Moved, match=f"a.txt: {how} between listing and reading; nothing is lost, run again"):
        fetch(inbox.url, file, tmp_path / "copy")


@pytest.mark.s3
@pytest.mark.parametrize("s3_server", ["rclone", "moto"], indirect=True)
def test_a_bucket_that_is_not_there_is_an_error_not_an_empty_inbox(s3_server: Server) -> None:
    with pytest.raises(StorageError, match="the bucket does not exist"):
        look("s3://no-such-bucket/x")
    assert look(s3_server.url()) == []  # a prefix without objects is


@pytest.mark.s3
def test_wrong_credentials_are_an_error(s3_server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "0" * 32)
    with pytest.raises(StorageError, match=r"credentials|denied|permission|403") as told:
        look(s3_server.url())
    assert "\n" not in str(told.value) and "0" * 32 not in str(told.value)


def test_links_are_listed_not_followed(folder: Place, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    (Path(folder.url) / "a.txt").symlink_to(tmp_path / "secret")
    assert look(folder.url) == [Arrived("a.txt", 0, LINK)]


def test_a_file_url_is_a_folder(folder: Place) -> None:
    folder.put("a.txt", b"x")
    assert look(f"file://{folder.url}") == look(folder.url)


@pytest.mark.parametrize(
    ("url", "wanted"),
    [
        ("/no/such/folder", "/no/such/folder: no such folder; create it, or correct the inbox"),
        ("ftp://host/x", "inbox scheme ftp: want a folder, s3://"),
        ("s3://key:secret@bucket/x", "no chain, user, query"),
        ("hf://models/x", "want hf://datasets/owner/name"),
        ("simplecache::s3://bucket/x", "no chain"),
    ],
)
def test_bad_places_are_refused(url: str, wanted: str) -> None:
    with pytest.raises((Refused, StorageError), match=wanted) as told:
        look(url)
    assert "secret" not in str(told.value)
