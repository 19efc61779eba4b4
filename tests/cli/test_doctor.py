"""`doctor` names what is wrong, says what to do, and takes seconds."""

import socket
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
from servers import Server, free_port

from cli import doctor
from cli.doctor import Finding, examine, show
from cli.site import TOML_HEADER, Site


def site(root: Path) -> Site:
    return Site(root, free_port(), free_port())


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.what: finding for finding in findings}


def installed(**other: str) -> Callable[[str], str]:
    return lambda name: other.get(name) or metadata.version(name)


def test_this_machine_is_examined_in_seconds(tmp_path: Path) -> None:
    began = time.monotonic()
    found = by_name(examine((tmp_path / "store").as_uri(), site(tmp_path)))
    assert time.monotonic() - began < 10
    assert {"python", "versions", "rooms", "disk", "memory", "cores", "clock", "server", "s3", "store"} <= set(found)
    assert found["versions"].level == found["rooms"].level == found["store"].level == "ok"


@pytest.mark.parametrize(
    ("name", "version", "why"),
    [
        ("fastapi", "0.165.0", "server does not start"),
        ("s3fs", "0.4.2", "silently gives 0.4.2"),
        ("prefect", "3.9.1", "certifi"),
        ("certifi", "2022.12.7", "root store"),
        ("fsspec", "2026.6.0", "one release"),
        ("torch", "2.12.1", "byte-identical"),
    ],
)
def test_a_known_clash_is_named_with_its_reason(name: str, version: str, why: str, tmp_path: Path) -> None:
    found = by_name(list(doctor._versions(site(tmp_path), installed(**{name: version}))))
    assert found[name].level == "bad" and version in found[name].found and why in found[name].advice
    assert "make install" in found[name].advice


def test_a_local_build_of_the_wanted_version_is_no_clash(tmp_path: Path) -> None:
    found = by_name(list(doctor._versions(site(tmp_path), installed(torch="2.13.0+cpu"))))
    assert "torch" not in found and "torch 2.13.0+cpu" in found["versions"].found


def test_a_missing_package_is_bad(tmp_path: Path) -> None:
    def nothing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    findings = list(doctor._versions(site(tmp_path), nothing))
    assert len(findings) == len(doctor.CLASHES) and all(f.level == "bad" for f in findings)


def test_a_taken_port_and_a_stale_prefect_toml_are_seen(tmp_path: Path) -> None:
    where = site(tmp_path)
    where.toml.write_text(TOML_HEADER)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", where.port))
        taken.listen()
        found = by_name(list(doctor._ports(where)))
    assert found["server"].level == "warn" and "ROUNDHOUSE_PORT" in found["server"].advice
    assert found["s3"].level == "ok"
    assert found["prefect.toml"].level == "warn"


def test_a_store_that_cannot_be_used_is_bad_and_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for url in ((tmp_path / "file" / "store").as_uri(), "ftp://nowhere/x"):
        found = by_name(list(doctor._store(site(tmp_path), url)))
        assert found["store"].level == "bad" and "\n" not in found["store"].found, found


def test_too_little_disk_is_bad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "DISK_GB", 1e9)
    assert by_name(list(doctor._disk(site(tmp_path))))["disk"].level == "bad"
    assert by_name(list(doctor._store(site(tmp_path), (tmp_path / "store").as_uri())))["store's disk"].level == "bad"


def test_a_secret_in_the_url_is_not_shown(tmp_path: Path) -> None:
    lines: list[str] = []
    show(list(doctor._store(site(tmp_path), "s3://AKIAEXAMPLEEXAMPLE12:topsecretvalue123@bucket/x")), lines.append)
    assert "bad" in lines[0] and not any("topsecret" in line or "AKIA" in line for line in lines)


def test_a_server_that_is_not_there_is_told_in_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b",
                        "AWS_REGION": "us-east-1"}.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(doctor, "PATIENCE", 0.5)
    began = time.monotonic()
    found = by_name(list(doctor._store(site(tmp_path), "s3://bucket/x")))
    assert found["store"].level == "bad" and time.monotonic() - began < 20


@pytest.mark.s3
def test_a_store_without_conditions_is_said_to_be_one(
    s3_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3_server.env.items():
        monkeypatch.setenv(name, value)
    found = by_name(list(doctor._store(site(tmp_path), s3_server.url())))
    assert found["store"].level == "ok", found
    assert found["conditions"].level == ("ok" if s3_server.conditional else "warn")


def test_one_line_each_and_the_status_tells_if_something_is_bad() -> None:
    lines: list[str] = []
    good, bad = Finding("ok", "disk", "9 GB"), Finding("bad", "store", "gone", "look for it")
    assert show([good], lines.append) == 0
    assert show([good, bad], lines.append) == 1
    assert lines[-2] == "bad  store         gone  ->  look for it" and lines[-1] == "2 checks: 1 bad, 0 to look at"
