"""`roundhouse certify` from the outside: bad input is one line."""

import subprocess
import sys
from pathlib import Path

import pytest

from configs.load import FOLDER


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["nowhere", "--suite", "none-such"], "no suite 'none-such'"),
        (["nowhere", "--suite", "{suite}"], "nowhere: no model folder"),
        (
            ["micro/r9-helpfulness", "--suite", "{suite}", "--store", "{store}"],
            "no model 'r9-helpfulness' in micro; it has base",
        ),
        (["micro/v1", "--suite", "{suite}", "--store", "{store}"], "v1 of micro has not been made yet"),
        ([], "Missing argument 'model'.\n"),
        (["micro/v1", "--bogus"], "No such option: --bogus"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], wanted: str, tmp_path: Path) -> None:
    (tmp_path / "suite.jsonl").write_text('{"prompt": "x", "chosen": "a", "rejected": "b"}')
    given = [a.format(suite=tmp_path / "suite.jsonl", store=(tmp_path / "store").as_uri()) for a in arguments]
    done = subprocess.run(
        [sys.executable, "-m", "cli", "certify", *given], cwd=FOLDER.parent, capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stderr.startswith("error: ") and wanted in done.stderr, done.stderr
    assert done.stderr.count("\n") == 1
