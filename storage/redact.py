"""Keep credentials out of logs and error messages."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Iterator

_HIDDEN = "[redacted]"
# What may follow a secret's label: a value up to the next separator, quoted or not.
_END = r"\s\"',;&}\])"
_SCHEME = r"(?:AWS4-HMAC-SHA256|Bearer|Basic)\s+"
# After a colon and a space a bare short word is prose ("my-secret: no such folder"); a value is long, or not of letters only.
_BARE = rf"(?:{_SCHEME}[^{_END}]+|(?=[^{_END}]*[\d+/=_.$!@#%^*~-])[^{_END}]{{6,}}|[^{_END}]{{12,}})"
_VALUE = (
    rf"[\"']?(?:\s*=\s*[\"']?(?:{_SCHEME})?[^{_END}]+|:[\"']?[^{_END}]+"
    rf"|\s*:\s*[\"'](?:{_SCHEME})?[^{_END}]+|\s*:\s+{_BARE})"
)
_LABELS = (
    r"[a-z_-]*secret_?access_?key|x-amz-(?:signature|credential)|authorization|signature(?==)"
    r"|sse-?customer-?key(?:-?md5)?|[a-z-]*server-side-encryption-customer-key(?:-md5)?"
    r"|[a-z_-]*(?:access|auth|api|hf|session|security|refresh)[_-]?token"  # but not eos_token
    r"|[a-z_-]*(?:password|passwd|api[_-]?key|secret|auth[_-]string)"
)
_PATTERNS = (
    re.compile(rf"(?i)(?P<keep>(?<![a-z])(?:{_LABELS})){_VALUE}"),
    re.compile(r"(?P<keep>)\b(?:AKIA|ASIA|AROA|AIDA)[A-Z0-9]{12,}\b"),
    re.compile(r"(?P<keep>)\bhf_[A-Za-z0-9]{16,}\b"),
    re.compile(r"(?P<keep>[a-z][a-z0-9+.-]*://)(?:[^/\s@]+|[^/\s@:]*:[^\s@]*)@"),
)
# Variables whose values are secrets, wherever they turn up.
_NAMES = re.compile(
    r"(?i)(?:secret|password|passwd|token|api_?key|access_key(?:_id)?|auth_string|auth_key|_sse)$|secret_"
)
_LEAST = 8  # characters; a shorter value would be found in ordinary words


def _secrets() -> Iterator[tuple[str, str]]:
    """The environment's secrets: (name, value)."""
    for name, value in os.environ.items():
        if len(value) >= _LEAST and _NAMES.search(name):
            yield name, value


def secret_in(text: str) -> str | None:
    """Return the name of an environment variable whose secret value `text` holds, or None."""
    return next((name for name, value in _secrets() if value in text), None)


def redact(text: str) -> str:
    """Return `text` with access keys, signatures, tokens, passwords and the environment's secrets replaced by a mark."""
    for _, value in _secrets():
        text = text.replace(value, _HIDDEN)
    for pattern in _PATTERNS:
        text = pattern.sub(lambda found: found.group("keep") + _HIDDEN, text)
    return text


class Redactor(logging.Filter):
    """Logging filter that redacts the message, its arguments and the traceback of every record."""

    def filter(self, record: logging.LogRecord) -> bool:
        """See `logging.Filter`."""
        record.msg, record.args = redact(record.getMessage()), ()
        if record.exc_info and not record.exc_text:
            record.exc_text = logging.Formatter().formatException(record.exc_info)
        if record.exc_text:
            record.exc_text = redact(record.exc_text)
        if record.stack_info:
            record.stack_info = redact(record.stack_info)
        return True


def install_redactor(handlers: Iterable[logging.Handler] | None = None) -> None:
    """Redact what `handlers` (default: those of every logger) write, and keep the chatty client loggers at INFO.

    Filters belong on handlers: one on a logger would miss the records of its children. botocore and
    s3fs print customer encryption keys at DEBUG.
    """
    for handler in _all() if handlers is None else handlers:
        if not any(isinstance(known, Redactor) for known in handler.filters):
            handler.addFilter(Redactor())
    for name in ("botocore", "aiobotocore", "s3fs", "fsspec", "urllib3", "aiohttp"):
        logger = logging.getLogger(name)
        if logger.level < logging.INFO:  # NOTSET would inherit a DEBUG root
            logger.setLevel(logging.INFO)


def _all() -> set[logging.Handler]:
    named = (known for known in logging.root.manager.loggerDict.values() if isinstance(known, logging.Logger))
    return {handler for logger in (logging.root, *named) for handler in logger.handlers}
