"""What can go wrong with a store, each as one clear line without secrets."""

from __future__ import annotations

import errno

from storage.redact import redact


class StorageError(Exception):
    """Something is wrong with the store; the message is one line fit for a user."""

    def __init__(self, message: str) -> None:
        super().__init__(redact(" ".join(message.split())))


class NotFound(StorageError):
    """The store answered that the object does not exist. Nothing else counts as a miss."""


class AlreadyExists(StorageError):
    """A create-only write found other bytes under the key."""


class Corrupt(StorageError):
    """Stored bytes are torn, missing or altered."""


class LeaseLost(StorageError):
    """Another process has taken over this work; this one must not publish."""


class Unwritable(StorageError):
    """The store cannot be read or written: no space, no permission, no such bucket, wrong credentials."""


class Refused(StorageError, ValueError):
    """A name, URL or file format that this store does not take."""


_ADVICE = {
    errno.ENOSPC: "No space left: free some or run `roundhouse gc`, then run the same command again",
    errno.EDQUOT: "The disk quota is used up: free some space, then run the same command again",
    errno.EFBIG: "The file is larger than this file system or its limits allow: put the store elsewhere",
    errno.EACCES: "Permission denied: make it writable for this user, or choose another store",
    errno.EPERM: "Operation not permitted: make it writable for this user, or choose another store",
    errno.EROFS: "Read-only file system: remount it for writing, or choose another store",
    errno.EIO: "Input/output error: check the disk (dmesg), then run the same command again",
    errno.EMFILE: "Too many open files: raise the limit (ulimit -n)",
    errno.ENAMETOOLONG: "Name too long for this file system: choose a store nearer to the root",
    errno.ELOOP: "A symbolic link is in the way: a store does not follow links",
}


def unwritable(err: OSError, where: object) -> Unwritable:
    """Return the one-line error for a failed file operation at `where`, with what to do about it."""
    advice = _ADVICE.get(err.errno or 0, f"{err.strerror or type(err).__name__}: check the path")
    return Unwritable(f"{where}: {advice}")


def one_line(err: BaseException) -> str:
    """Return an error's text as one line, its type's name where there is none. A KeyError's own text is the key alone."""
    text = " ".join(str(err).split())
    if text and not isinstance(err, KeyError):
        return text
    return f"{type(err).__name__}: {text}" if text else type(err).__name__
