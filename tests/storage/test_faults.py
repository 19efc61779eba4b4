"""A bad network: the result is the same, nothing torn is seen, and no random draw of anybody else is disturbed."""

import random
import socket
import time

import pytest
from faultproxy import FLIPS, KINDS, Proxy, random_rule
from scenario import CAMPAIGN, REF, STEPS, check_nothing_torn, expected_root, in_child, run_stage

from storage import AlreadyExists, NotFound, Ref, Unwritable, connection, open_store, sha256_file
from storage.verify import verify

pytestmark = [pytest.mark.s3, pytest.mark.parametrize("s3_server", ["rclone", "moto"], indirect=True)]


@pytest.fixture
def proxy(s3_server, monkeypatch):
    with Proxy(s3_server.endpoint) as running:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", running.endpoint)
        yield running


def check_result(url, tmp_path, proxy, log):
    proxy.rule = lambda *_: None
    with open_store(url, cache=tmp_path / "clean") as store:
        check_nothing_torn(store)
        assert store.manifest(REF).root == expected_root()
        store.fetch(REF)
        assert store.campaign(*CAMPAIGN).notes() == {"v0": [REF]}
        assert verify(store, *CAMPAIGN).problems == ()
    assert log.read_text().split() == [str(step) for step in range(1, STEPS + 1)]


@pytest.mark.parametrize("seed", [11, pytest.param(2, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)])
def test_thirty_percent_of_all_requests_fail(s3_server, proxy, tmp_path, tally, seed):
    url = s3_server.url()
    proxy.rule = random_rule(0.3, seed)
    random.seed(5)
    before = random.getstate()
    run_stage(url, tmp_path / "cache", tmp_path / "log")
    assert random.getstate() == before, "a retry drew from the global generator"
    tally(f"30 % of all requests to {s3_server.name} fail", proxy.requests, f"requests, {proxy.faults.total()} faults")
    assert sum(proxy.faults.values()) > 0.2 * proxy.requests and set(proxy.faults) == set(KINDS)
    check_result(url, tmp_path, proxy, tmp_path / "log")


def test_flipped_bits_both_ways(s3_server, proxy, tmp_path, tally):
    url = s3_server.url()
    proxy.rule = random_rule(0.1, 4, (*FLIPS, "503", "reset_after"))
    run_stage(url, tmp_path / "cache", tmp_path / "log")
    tally(f"flipped bits to and from {s3_server.name}", proxy.requests, f"requests, {proxy.faults.total()} faults")
    assert proxy.faults["flip_request"] + proxy.faults["flip_response"] > 3
    check_result(url, tmp_path, proxy, tmp_path / "log")


def test_requests_that_are_never_answered(s3_server, proxy, tmp_path, monkeypatch, tally):
    monkeypatch.setattr(connection, "READ_TIMEOUT", 1.0)  # the proxy is silent for 1.5 s, then drops the connection
    url = s3_server.url()
    proxy.rule = lambda index, method, path: "hang" if index % 20 == 7 else None
    run_stage(url, tmp_path / "cache", tmp_path / "log")
    tally(f"requests to {s3_server.name} that time out", proxy.faults["hang"], f"of {proxy.requests}")
    assert proxy.faults["hang"] >= 4
    check_result(url, tmp_path, proxy, tmp_path / "log")


def test_listings_that_miss_objects(s3_server, proxy, tmp_path, tally):
    url = s3_server.url()

    def rule(index, method, path):
        return "drop_list" if "list-type=2" in path and index % 3 else None

    proxy.rule = rule
    run_stage(url, tmp_path / "cache", tmp_path / "log")
    tally(f"listings of {s3_server.name} that miss an object", proxy.faults["drop_list"])
    assert proxy.faults["drop_list"] > 3
    check_result(url, tmp_path, proxy, tmp_path / "log")


SLOW = pytest.mark.slow


@pytest.mark.parametrize("kind", ["faults", pytest.param("", marks=SLOW), pytest.param("error_200", marks=SLOW)])
def test_a_large_file_in_parts(s3_server, proxy, tmp_path, kind):
    source = tmp_path / "big.json"
    source.write_bytes(random.Random(1).randbytes(40 * 2**20))
    sha = sha256_file(source)

    def once(index, method, path):
        return "error_200" if method == "POST" and "uploadId" in path and not proxy.faults else None

    proxy.rule = {"": proxy.rule, "faults": random_rule(0.3, 7), "error_200": once}[kind]
    with open_store(s3_server.url(), cache=tmp_path / "cache") as store:
        draft = store.draft(REF)
        source.rename(draft.path / "big.json")
        made = draft.commit({})
        assert made.files["big.json"].sha256 == sha
        assert sha256_file(store.fetch(REF) / "big.json") == sha
        assert proxy.requests >= 3 + 1 + 3 + 3  # three parts up, three parts read back, three parts down
        assert bool(proxy.faults) == bool(kind)
        proxy.rule = lambda *_: None
        assert store.backend.abandoned(-100, remove=False) == 0


def test_create_whose_answer_is_lost_is_known_to_be_ours(s3_server, proxy, tmp_path):
    puts = []

    def rule(index, method, path):
        if method == "PUT" and "/once" in path:
            puts.append(path)
            return "reset_after" if len(puts) == 1 else None
        return None

    proxy.rule = rule
    with open_store(s3_server.url()) as store:
        store.create("once", b"nonce 1")
        assert len(puts) == 2  # repeated by our loop, or by aiohttp behind its back on a reused connection
        with pytest.raises(AlreadyExists):
            store.create("once", b"nonce 2")


def test_a_permanent_failure_is_one_clear_line_in_bounded_time(s3_server, proxy, tmp_path):
    with open_store(s3_server.url()) as store:
        store.backend.patience = dict.fromkeys(store.backend.patience, 1.0)
        proxy.rule = lambda *_: "503"
        start = time.monotonic()
        with pytest.raises(Unwritable, match=r"no success in \d+ tries over \d+ s") as caught:
            store.put("x", b"1")
        assert time.monotonic() - start < 10 and "\n" not in str(caught.value)
        assert store.url in str(caught.value) and "run again" in str(caught.value)
        assert store.retries >= 1


def test_only_not_found_is_a_miss(s3_server, proxy, tmp_path):
    """A lookup that is refused must not be taken for a miss: the stage would be computed again."""
    with open_store(s3_server.url()) as store:
        assert store.manifest(REF) is None
        store.backend.patience = dict.fromkeys(store.backend.patience, 0.5)
        for fault in ("503", "500", "reset_before"):
            proxy.rule = lambda *_, fault=fault: fault
            with pytest.raises(Unwritable):
                store.manifest(REF)
            with pytest.raises(Unwritable):
                store.exists("x")


def test_wrong_credentials_end_at_once_and_stay_secret(s3_server, proxy, monkeypatch):
    if s3_server.name == "moto":
        pytest.skip("moto checks no credentials")
    secret = "wrong0secret0wrong0secret"
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    with open_store(s3_server.url()) as store:
        with pytest.raises(Unwritable, match="credentials from env") as caught:
            store.manifest(REF)
        assert proxy.requests == 1 and secret not in str(caught.value)
        for error in (caught.value, caught.value.__cause__, caught.value.__context__):
            assert secret not in repr(error)


def test_a_missing_bucket_is_not_a_miss(s3_server, proxy):
    with open_store("s3://no-such-bucket/x") as store:
        for touch in (store.check_writable, lambda: store.manifest(REF), lambda: store.exists("x")):
            with pytest.raises(Unwritable, match="bucket does not exist: create it"):
                touch()


def test_a_server_that_is_away(s3_server, monkeypatch):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{probe.getsockname()[1]}")
        with open_store(s3_server.url()) as store:
            store.backend.patience = dict.fromkeys(store.backend.patience, 0.5)
            with pytest.raises(Unwritable, match="check the network and the server"):
                store.exists("x")


def test_no_credentials_is_one_clear_line(s3_server, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with open_store(s3_server.url()) as store, pytest.raises(Unwritable, match="no S3 credentials: set AWS_ACCESS"):
        store.exists("x")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("AWS_ENDPOINT_URL_S3", "http://169.254.169.254"),
        ("AWS_ENDPOINT_URL_S3", "http://user:pass@host"),
        ("AWS_ENDPOINT_URL_S3", "ftp://host"),
        ("ROUNDHOUSE_S3_SSE", "not json"),
        ("ROUNDHOUSE_S3_SSE", '{"Unknown": 1}'),
    ],
)
def test_settings_are_checked(s3_server, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=name.replace("_", ".")):
        open_store(s3_server.url())


@SLOW
def test_encryption_settings_reach_every_write(s3_server, proxy, monkeypatch, tmp_path):
    if s3_server.name == "rclone":
        pytest.skip("rclone ignores the header")
    monkeypatch.setenv("ROUNDHOUSE_S3_SSE", '{"ServerSideEncryption": "aws:kms", "BucketKeyEnabled": true}')
    with open_store(s3_server.url(), cache=tmp_path) as store:
        draft = store.draft(REF)
        (draft.path / "x.json").write_bytes(b"1" * (33 * 2**20))
        draft.commit({})
        for key in store.list("artifacts"):
            head = store.backend._call("head_object", key, "small", Key=store.backend._prefix + key)
            assert head["ServerSideEncryption"] == "aws:kms", key


def test_a_forked_child_and_its_parent_do_not_disturb_each_other(s3_server, tmp_path):
    """s3fs alone makes the parent wait 60 s in half of these: the child closes connections in a shared epoll set."""
    for number in range(4):
        with open_store(s3_server.url(), cache=tmp_path) as store:
            store.put("a", b"1")

            def work(store=store):
                assert store.get("a") == b"1"
                with open_store(store.url) as fresh:
                    fresh.put("b", b"2")

            assert in_child(work) == 0, number
            start = time.monotonic()
            assert store.get("b") == b"2"
            assert time.monotonic() - start < 30
            with pytest.raises(NotFound):
                store.get("c")
            assert store.manifest(Ref("a", "b", "0" * 16)) is None
