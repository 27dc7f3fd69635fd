"""Folders that are whole or absent: written beside, synced, hashed, renamed. To open one is to verify it.

manifest.json holds what the artefact is, what it was made from, and the size and SHA-256 of every file. It holds no
time and no path, so equal input gives equal bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from armillary.records import fingerprint
from armillary.refusal import Refusal

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Manifest:
    """kind: corpus, tokenizer, packed, checkpoint. about: plain facts. files: name → {bytes, sha256}."""

    kind: str
    about: dict[str, Any]
    files: dict[str, dict[str, Any]]


@contextlib.contextmanager
def writing(folder: Path, kind: str, about: dict[str, Any]) -> Iterator[Path]:
    """Yields a temporary folder beside `folder`; renames it into place when the block ends well.

    `about` may be filled inside the block. An existing artefact of that name is replaced. What an interrupted
    writer left is swept away by the next one of the same name.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    for stale in folder.parent.glob(f".{folder.name}.writing-*"):
        if not _is_alive(stale):
            shutil.rmtree(stale, ignore_errors=True)
    beside = folder.parent / f".{folder.name}.writing-{os.getpid()}"
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir()
    try:
        with naming(folder):
            yield beside
            files = {
                str(p.relative_to(beside)): {"bytes": p.stat().st_size, "sha256": sha256_of(p)}
                for p in sorted(beside.rglob("*"))
                if p.is_file()
            }
            manifest = json.loads(json.dumps({"kind": kind, "about": about, "files": files}))
            manifest["sha256"] = fingerprint(manifest)
            (beside / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n", encoding="utf-8")
            for path in beside.rglob("*"):
                sync(path)
            sync(beside)
            old = folder.parent / f".{folder.name}.writing-old-{os.getpid()}"
            if folder.exists():
                folder.rename(old)
            beside.rename(folder)
            sync(folder.parent)
            shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def read(folder: Path, kind: str | None = None, *, verify: bool = True) -> Manifest:
    """The manifest, after every file's size and SHA-256 were checked. Raises Refusal that names the file."""
    path = folder / MANIFEST
    if not path.is_file():
        raise Refusal(f"{folder}: no {MANIFEST} here; give the folder of an artefact or checkpoint")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if raw.pop("sha256") != fingerprint(raw):
            raise ValueError
        manifest = Manifest(raw["kind"], raw["about"], raw["files"])
    except (ValueError, KeyError, TypeError, AttributeError):
        raise Refusal(f"{path}: is not a manifest (torn or edited); make the artefact again") from None
    if kind is not None and manifest.kind != kind:
        raise Refusal(f"{folder}: holds a {manifest.kind}, not a {kind}; give the folder of a {kind}")
    if verify:
        for name, facts in manifest.files.items():
            fault = _fault(folder / name, facts)
            if fault:
                raise Refusal(f"{folder / name}: {fault}; the file changed after it was written, make it again")
    return manifest


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a file to write beside `path`; synced and renamed into its place when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with naming(path):
            yield beside
            sync(beside)
            beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Names the path in an OSError that does not, as that of a full disk."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Forces a file or folder to the disk, where the system can (a folder cannot be opened on Windows)."""
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)  # Windows syncs only what it may write
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _fault(path: Path, facts: dict[str, Any]) -> str | None:
    if not path.is_file():
        return "is missing"
    if path.stat().st_size != facts["bytes"]:
        return f"has {path.stat().st_size:,} bytes, its manifest says {facts['bytes']:,}"
    if (actual := sha256_of(path)) != facts["sha256"]:
        return f"has SHA-256 {actual[:12]}…, its manifest says {facts['sha256'][:12]}…"
    return None


def _is_alive(stale: Path) -> bool:
    pid = stale.name.rsplit("-", 1)[-1]
    if os.name == "nt":  # where signal 0 would end the process
        return True
    if not pid.isdigit() or int(pid) == os.getpid():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
