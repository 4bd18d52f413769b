"""A checkpoint by name: fetched with ``huggingface_hub`` into its cache, only what is needed.

``HF_ENDPOINT``, ``HF_HOME``, ``HF_TOKEN`` and ``HF_HUB_OFFLINE`` are honoured, since
``huggingface_hub`` reads them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from export.checkpoint import WEIGHT_STEMS
from export.errors import ExportError, in_a_line

_PART: Final = r"[A-Za-z0-9_](?:[\w.-]*\w)?"
_NAME: Final = re.compile(rf"(?!.*(?:--|\.\.)){_PART}(?:/{_PART})?(?<!\.git)", re.ASCII)
_LONGEST_NAME: Final = 96
_SMALL: Final = ("model_index.json", "README.md", "LICENSE", "LICENSE.md", "LICENSE.txt")
_FOLDERS: Final = (
    "text_encoder",
    "text_encoder_2",
    "tokenizer",
    "tokenizer_2",
    "scheduler",
    "unet",
    "vae",
)
_SAFETY_FOLDERS: Final = ("safety_checker", "feature_extractor")
_SMALL_SUFFIXES: Final = (".json", ".txt")


def is_hub_name(source: str) -> bool:
    """Whether a text can be the name of a repository, such as ``owner/model``.

    The rules are the hub's; what begins with ``.``, ``/`` or ``~`` is a path by them.
    """
    return len(source) <= _LONGEST_NAME and _NAME.fullmatch(source) is not None


def wanted(files: Iterable[str], *, safety_checker: bool = True) -> list[str]:
    """Choose from a repository's files what an export reads.

    Taken are the configuration, the tokenizer and, per network, the plain ``.safetensors`` or,
    where there are none, their fp16 variant. Pickles, single-file checkpoints, second copies of
    the weights and, unless it is asked for, the safety checker are left where they are.
    """
    have = sorted(files)
    chosen = [name for name in have if name in _SMALL]
    for folder in (*_FOLDERS, *(_SAFETY_FOLDERS if safety_checker else ())):
        inside = [name for name in have if name.startswith(f"{folder}/") and name.count("/") == 1]
        chosen += [
            name
            for name in inside
            if name.endswith(_SMALL_SUFFIXES) and not name.endswith(".index.json")
        ]
        if folder in WEIGHT_STEMS:
            chosen += _one_copy(inside, f"{folder}/{WEIGHT_STEMS[folder]}")
    return chosen


def _one_copy(files: list[str], stem: str) -> list[str]:
    """One complete copy of a network's weights, with the index of its shards."""
    shard = r"-\d{5}-of-\d{5}"
    index = r"\.safetensors\.index(\.fp16)?\.json"
    for variant in ("", r"\.fp16"):
        whole = re.compile(rf"{re.escape(stem)}{variant}\.safetensors")
        parts = re.compile(rf"{re.escape(stem)}({variant}{shard}|{shard}{variant})\.safetensors")
        for pattern in (whole, parts):
            found = [name for name in files if pattern.fullmatch(name)]
            if found and pattern is parts:
                found += [name for name in files if re.fullmatch(re.escape(stem) + index, name)]
            if found:
                return found
    return []


def fetch(
    name: str, *, revision: str | None = None, safety_checker: bool = True
) -> tuple[Path, str]:
    """Fetch a checkpoint's files from the hub.

    Args:
        name: Repository, such as ``"owner/model"``.
        revision: Branch, tag or commit; the default branch where None.
        safety_checker: Fetch the safety checker too, where there is one.

    Returns:
        The folder in the hub's cache, and the commit.

    Raises:
        ExportError: When the name is unknown or the hub cannot be reached.
    """
    import requests
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    at = f" at revision {revision}" if revision else ""
    try:
        if constants.HF_HUB_OFFLINE:
            folder = Path(snapshot_download(name, revision=revision, local_files_only=True))
            return folder, folder.name
        info = HfApi().model_info(name, revision=revision)
        names = (item.rfilename for item in info.siblings or [])
        files = wanted(names, safety_checker=safety_checker)
        folder = Path(snapshot_download(name, revision=info.sha, allow_patterns=files))
    except HFValidationError as exc:
        raise ExportError(f"{name}: is no name that the hub could have: {in_a_line(exc)}") from exc
    except RevisionNotFoundError as exc:
        raise ExportError(f"{name}: has no revision {revision!r} on {constants.ENDPOINT}") from exc
    except RepositoryNotFoundError as exc:
        raise ExportError(
            f"{name}: is neither a folder here nor a public repository on {constants.ENDPOINT}; "
            "check the name, or set HF_TOKEN where it is private or gated"
        ) from exc
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as exc:
        raise ExportError(
            f"{name}{at}: is not in the local cache and {constants.ENDPOINT} cannot be asked"
        ) from exc
    except (HfHubHTTPError, requests.RequestException, OSError) as exc:
        raise ExportError(
            f"{name}{at}: cannot be fetched from {constants.ENDPOINT} ({type(exc).__name__}); "
            "check the connection, or name a folder on this machine"
        ) from exc
    return folder, str(info.sha)
