"""The whole micro campaign over a network that fails: 30 % of all requests, and every result has the same bytes."""

from pathlib import Path

import pytest
from faultproxy import KINDS, Proxy, random_rule

from configs import load
from flows.rounds import align
from storage import open_store
from tasks import Run, Stopped
from tasks.launch import stop_all


def roots(url: str, cache: Path, until: str | None = None) -> tuple[dict[str, str], int]:
    """Run the campaign in this process; returns the root of every stage, and how many requests this process repeated."""
    config = load("micro")
    with open_store(url, cache=cache) as store:
        run = Run(config, store, config.runtime, mode="direct", until=until)
        try:
            align(run)
        except Stopped:
            assert until is not None
        made = {label: artifact.made() for label, artifact in run.artifacts.items()}
        return {label: found.manifest.root for label, found in made.items() if found is not None}, store.retries


CASES = [pytest.param("rclone", "v0", marks=pytest.mark.slow_short), ("rclone", None), ("moto", None)]


@pytest.mark.slow
@pytest.mark.s3
@pytest.mark.parametrize(("s3_server", "until"), CASES, indirect=["s3_server"])
def test_thirty_percent_of_a_campaigns_requests_fail(s3_server, until, monkeypatch, tmp_path, tally) -> None:
    stop_all()  # the warm server keeps the environment it was started with
    wanted, _ = roots((tmp_path / "store").as_uri(), tmp_path / "none", until)
    stop_all()
    with Proxy(s3_server.endpoint, random_rule(0.3, 5)) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.endpoint)
        monkeypatch.setenv("ROUNDHOUSE_CACHE", str(tmp_path / "cache"))
        try:
            found, retries = roots(s3_server.url(), tmp_path / "cache", until)
        finally:
            stop_all()
    faults = proxy.faults.total()
    assert found == wanted and len(found) >= (7 if until else 19)
    assert faults > 0.25 * proxy.requests and set(proxy.faults) == set(KINDS)
    assert 0 < retries < faults
    what = "campaign" if until is None else f"campaign up to {until}"
    note = f"requests, {faults} faults, {retries} repeated by the flow's process, {len(found)} stages alike"
    tally(f"30 % of all requests of a {what} to {s3_server.name} fail", proxy.requests, note)
