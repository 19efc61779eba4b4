"""Secrets stay out of messages and logs; ordinary text passes."""

import io
import logging

import pytest

from storage import StorageError
from storage.errors import one_line
from storage.redact import install_redactor, redact

SECRET = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
LEAKS = [
    f"aws_secret_access_key = {SECRET}",
    f"AWS_SECRET_ACCESS_KEY={SECRET}",
    f'{{"SecretAccessKey": "{SECRET}"}}',
    f"Authorization: AWS4-HMAC-SHA256 Credential={SECRET}",
    f"GET /x?X-Amz-Signature={SECRET}&y=1",
    f"X-Amz-Security-Token: {SECRET}",
    f"'x-amz-server-side-encryption-customer-key': '{SECRET}'",
    f"SSECustomerKey={SECRET}",
    f"PREFECT_SERVER_API_AUTH_STRING=admin:{SECRET}",
    f"password: {SECRET}",
    f"api_key={SECRET}",
    f"https://user:{SECRET}@host/path",
    f"s3://key:{SECRET}@bucket",
    f"hf_token={SECRET}",
    f"Signature={SECRET}",
]


@pytest.mark.parametrize("text", LEAKS)
def test_secrets_go(text):
    assert SECRET not in redact(text) and "[redacted]" in redact(text)
    assert SECRET not in str(StorageError(text))


@pytest.mark.parametrize(
    "text", ["key AKIAIOSFODNN7EXAMPLE used", "ASIAIOSFODNN7EXAMPLE", "hf_abcdefghijklmnopqrstuvwx"]
)
def test_identifiers_go(text):
    assert not any(word in redact(text) for word in ("AKIAIOS", "ASIAIOS", "hf_abc"))


@pytest.mark.parametrize(
    "text",
    [
        "eos_token: </s>, pad_token_id=0",
        "tokens: 1024",
        "sft/v0-0123456789abcdef has SHA-256 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        "the signature: task(a, b)",
        "s3://bucket/prefix/key and file:///data/x",
        "step 40, loss 1.25, lr=1e-5",
        "max_new_tokens=256",
        "error: ../../etc/passwd: want a mapping at the top",
        "runs/my-secret: no such folder",
        "password: String should have at least 8 characters",
    ],
)
def test_ordinary_text_passes(text):
    assert redact(text) == text


def test_logs_with_arguments_and_tracebacks_are_redacted():
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("test_redact.child")
    logger.addHandler(handler)
    before = {name: logging.getLogger(name).level for name in ("botocore", "s3fs")}
    try:
        install_redactor([handler])
        logger.error("using %s with %d", f"password={SECRET}", 3)
        try:
            raise ValueError(f"secret_access_key={SECRET}")
        except ValueError:
            logger.exception("failed")
        assert SECRET not in out.getvalue() and "with 3" in out.getvalue() and "ValueError" in out.getvalue()
        assert logging.getLogger("botocore").getEffectiveLevel() >= logging.INFO
    finally:
        logger.removeHandler(handler)
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


@pytest.mark.parametrize("name", ["AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN", "PREFECT_API_AUTH_STRING"])
def test_the_environments_own_secrets_go_wherever_they_stand(monkeypatch, name):
    monkeypatch.setenv(name, "no-label-would-give-it-away")
    monkeypatch.setenv("AWS_REGION", "a-public-region")
    text = redact("the server said no-label-would-give-it-away, in a-public-region")
    assert text == "the server said [redacted], in a-public-region"


def test_every_handler_is_found_and_filtered_once():
    handler, logger = logging.StreamHandler(io.StringIO()), logging.getLogger("test_redact.deep.down")
    logger.addHandler(handler)
    try:
        install_redactor()
        install_redactor()
        assert len(handler.filters) == 1
    finally:
        logger.removeHandler(handler)


def test_an_error_is_one_line_that_says_what_it_is():
    assert one_line(ValueError("two\n  lines")) == "two lines"
    assert one_line(KeyError("prompt")) == "KeyError: 'prompt'"
    assert one_line(RuntimeError()) == "RuntimeError"
