"""Where results live: immutable artifacts, leases, save points and campaign records in a folder or on S3."""

from storage.campaign import CampaignRecord
from storage.draft import Draft
from storage.errors import AlreadyExists, Corrupt, LeaseLost, NotFound, Refused, StorageError, Unwritable
from storage.lease import Lease
from storage.manifest import FileInfo, Manifest
from storage.names import Ref, canonical_json, digest, sha256_file
from storage.redact import install_redactor, redact
from storage.savepoints import SavePoint, SavePoints
from storage.store import Store, open_store

__all__ = [
    "AlreadyExists",
    "CampaignRecord",
    "Corrupt",
    "Draft",
    "FileInfo",
    "Lease",
    "LeaseLost",
    "Manifest",
    "NotFound",
    "Ref",
    "Refused",
    "SavePoint",
    "SavePoints",
    "StorageError",
    "Store",
    "Unwritable",
    "canonical_json",
    "digest",
    "install_redactor",
    "open_store",
    "redact",
    "sha256_file",
]
