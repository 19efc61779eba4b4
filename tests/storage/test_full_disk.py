"""A disk that is full or fails: one clear line, nothing torn, and the same bytes once it is repaired."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from scenario import REF, check_nothing_torn, expected_root, in_child, run_stage

import storage
from benchmarks.reliability.events import watch
from storage import StorageError, open_store

HOME = os.path.dirname(storage.__file__)
TOLD = 7  # exit code: our own error, in one line
WRITES = ("open", "fsync", "os.rename", "os.link", "os.mkdir", "os.remove", "os.rmdir")


def by_the_store() -> bool:
    """Whether the operation that is about to happen is the store's, not of the work that writes into a draft."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(HOME):
            return True
        if name.endswith("scenario.py"):
            return False
        frame = frame.f_back
    return False


def stage_with_a_fault(url: Path, log: Path, at: int, number: int, tally: Path) -> int:
    """Run the stage with its store's operation `at` failing with errno `number`; returns the exit code."""
    seen = 0

    def happened(what: str, path: str) -> None:
        nonlocal seen
        if what not in WRITES or not by_the_store():
            return
        seen += 1
        with open(tally, "a") as file:
            file.write("x")
        if seen == at:
            raise OSError(number, os.strerror(number), path)

    def work() -> None:
        watch(url, happened)
        try:
            run_stage(url, None, log)
        except StorageError as error:
            assert "\n" not in str(error) and len(str(error)) < 400
            os._exit(TOLD)

    return in_child(work)


def finished(url: Path) -> None:
    with open_store(url) as store:
        assert store.manifest(REF).root == expected_root() and store.warnings == []
        store.fetch(REF)


@pytest.mark.parametrize("stride", [17, pytest.param(1, marks=pytest.mark.slow)])
def test_each_write_refused_once(tmp_path, tally, stride):
    (tmp_path / "count").mkdir()
    note = tmp_path / "count" / "tally"
    assert stage_with_a_fault(tmp_path / "count" / "s", tmp_path / "count" / "log", -1, 0, note) == 0
    points = range(1, len(note.read_text()) + 1, stride)
    codes = {0: 0, TOLD: 0}
    for at in points:
        home = tmp_path / str(at)
        home.mkdir()
        code = stage_with_a_fault(home / "s", home / "log", at, (errno.ENOSPC, errno.EIO)[at % 2], home / "tally")
        assert code in codes, f"operation {at}: the error is not ours"
        codes[code] += 1
        with open_store(home / "s") as store:
            check_nothing_torn(store)
        assert in_child(lambda home=home: run_stage(home / "s", None, home / "log")) == 0, at
        finished(home / "s")
    note = f"{codes[TOLD]} told in one line, {codes[0]} did no harm; all with the same bytes afterwards"
    tally("writes that a full or failing disk refuses", len(points), note)
    assert codes[TOLD] > len(points) / 2


def test_a_file_system_that_is_really_full(tmp_path, tally):
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k,mode=0700", "tmpfs", str(disk)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no right to mount a tmpfs")
    told = 0
    try:
        for pages in range(5, 60, 6):
            url = disk / f"s{pages}"
            subprocess.run(["mount", "-o", f"remount,size={4 * pages}k", str(disk)], check=True)

            def work(url=url):
                try:
                    run_stage(url, None, tmp_path / "log")
                except StorageError as error:
                    assert "No space left" in str(error) and "\n" not in str(error)
                    os._exit(TOLD)
                except OSError as error:  # of the work itself, which writes into its draft
                    assert error.errno == errno.ENOSPC
                    os._exit(TOLD)

            code = in_child(work)
            assert code in (0, TOLD)
            told += code == TOLD
            subprocess.run(["mount", "-o", "remount,size=4m", str(disk)], check=True)
            with open_store(url) as store:
                check_nothing_torn(store)
            assert in_child(lambda url=url: run_stage(url, None, tmp_path / "log")) == 0
            finished(url)
            subprocess.run(["rm", "-rf", str(url)], check=True)
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    tally("writes that a full or failing disk refuses", told, "sizes of a real file system that was too small")
    assert told > 2
