"""Stores to test on: the same claims must hold on each."""

import gc

import pytest

from storage import open_store

STORES = ["folder", pytest.param("rclone", marks=pytest.mark.s3), pytest.param("moto", marks=pytest.mark.s3)]


@pytest.fixture(params=STORES)
def store_url(request, tmp_path, monkeypatch):
    """URL of an empty store; the environment says how to reach it."""
    if request.param == "folder":
        return f"file://{tmp_path}/store"
    server = request.getfixturevalue(request.param)
    for name, value in server.env.items():
        monkeypatch.setenv(name, value)
    return server.url()


@pytest.fixture
def opened(store_url, tmp_path):
    """A function that opens the store once more, as another process would, with a cache of its own."""
    made = []

    def opens():
        made.append(open_store(store_url, cache=tmp_path / f"cache{len(made)}"))
        return made[-1]

    yield opens
    for store in made:
        store.close()
    made.clear()
    gc.collect()  # an unclosed connection would complain here, and warnings are errors


@pytest.fixture
def store(opened):
    return opened()


@pytest.fixture
def another(opened):
    return opened()
