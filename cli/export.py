"""Copy a version out of the store: verified files and a model card, in a folder that any tool can load."""

import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from configs import ConfigError
from report import View, model_card
from report.archive import Archive
from report.evidence import Evidence
from storage import Corrupt, Store, sha256_file


def export_version(store: Store, view: Mapping[str, Any], version: str, folder: Path) -> Path:
    """Copy a version with its card to `folder`, which must not exist or be empty; appears whole or not at all.

    Args:
        view: the campaign as `tasks.outcome.view` gives it.

    Raises:
        ConfigError: the folder is in use or cannot be written, or there is no such version.
        StorageError: the version is not made yet, or its files are damaged.
    """
    campaign = View.from_json(view)
    found = next((one for one in campaign.versions if one.label == version), None)
    if found is None:
        raise ConfigError(
            f"no version {version!r} in {campaign.name}; it has {', '.join(v.label for v in campaign.versions)}"
        )
    folder = folder.expanduser().absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} exists and is not empty: give a new folder")
    source = store.fetch(found.model)
    manifest = store.manifest(found.model)
    if manifest is None:
        raise Corrupt(f"{found.model}: it was altered while it was read; run its stage again to make it anew")
    draft = folder.parent / f".{folder.name}.{secrets.token_hex(4)}.part"
    try:
        for name, info in manifest.files.items():
            place = draft / name
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, place)
            if sha256_file(place) != info.sha256:
                raise Corrupt(f"{found.model}: {name} was altered while it was copied; export it again")
        (draft / "README.md").write_text(model_card(Evidence(campaign, Archive(store)), version), encoding="utf-8")
        if folder.exists():
            folder.rmdir()
        os.rename(draft, folder)
    except OSError as error:
        raise ConfigError(f"cannot write {folder}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder
