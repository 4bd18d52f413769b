"""Where pictures are kept until clients have fetched them: the one door to them.

A folder by default, or an object store by the URL of ``EDGEFILL_STORAGE_URL``. Either way a picture
is whole or not there, its name cannot be guessed, and nothing that is not ours is touched. Imports
fsspec, whose drivers are loaded only when a URL asks for one.
"""

from __future__ import annotations

from pathlib import Path

from service.storage.base import Storage
from service.storage.folder import Folder
from service.storage.location import Location
from service.storage.names import CONTENT_TYPES, FOLDER, content_type, file_name, new_prefix
from service.storage.objects import ObjectStore

__all__ = [
    "CONTENT_TYPES",
    "FOLDER",
    "Folder",
    "Location",
    "ObjectStore",
    "Storage",
    "content_type",
    "file_name",
    "new_prefix",
    "open_storage",
]


def open_storage(url: str | None, data_dir: Path) -> Storage:
    """The storage that the settings name; not used before its own ``open``.

    Args:
        url: An object store or a folder; where None, a folder in ``data_dir``.
        data_dir: Where the job store lies, whose disk must have room too.

    Raises:
        SettingsError: When the URL is not one of a storage.
    """
    if url is None:
        return Folder(data_dir / FOLDER, disks=(data_dir,))
    location = Location.parse(url)
    if location.scheme == "file":
        return Folder(Path(location.root), disks=(data_dir,))
    return ObjectStore(location, disks=(data_dir,))
