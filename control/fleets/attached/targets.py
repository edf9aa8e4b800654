"""The registry of an attached fleet: which engines it has, where they are, and in which role each is, now.

Decided here: how targets are written, in a list or in a watched file, and that a file that is broken changes nothing.
A file has Prometheus's own format (file_sd), so one list serves both: `[{"targets": [...], "labels": {"role": ...}}]`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

from control.errors import CommandRefused
from control.fleets.attached.gpu_join import parse_gpus
from control.types.workers import Role

ROLES: Final = {each.value: each for each in (Role.PREFILL, Role.DECODE, Role.MIXED)}
MAX_TARGETS: Final = 2000
MAX_FILE_BYTES: Final = 4 * 1024 * 1024
_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,99}")
_FORM: Final = "ROLE=URL or ROLE:NAME=URL, ROLE one of prefill, decode, mixed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One engine. `url` is of its metrics page. `page_of`: whose it must say it is; "" where pages do not say.
    `serve_url`: where it takes requests, if not where its page is."""

    worker_id: str
    url: str
    role: Role
    gpus: tuple[str, ...] = ()  # that are said to be its (`gpu_join`)
    page_of: str = ""
    serve_url: str = ""


class TargetSource(Protocol):
    """Where the registry comes from. `problem`: why the last look changed nothing; "" when it was good."""

    problem: str

    def targets(self) -> tuple[Target, ...]:
        """As of now. Never raises: what was known stays."""


def parse_target(text: str) -> Target:
    """`ROLE=URL` or `ROLE:NAME=URL`. Raises CommandRefused."""
    head, equals, url = text.partition("=")
    role, _, name = head.partition(":")
    if not equals:
        raise CommandRefused(f"a target is {_FORM}", field="target", value=text, bound=_FORM)
    return make_target(url, role, name)


def make_target(url: str, role: str, name: str = "", gpus: str = "") -> Target:
    """Raises CommandRefused, which names what is wrong. An engine without a name is called by its host and port."""
    plain = url if "://" in url else f"http://{url}"
    try:
        parts = urlsplit(plain)
        has_port = parts.port is not None or parts.scheme == "https"
    except ValueError as error:
        raise CommandRefused(f"{url!r} is not a URL: {error}", field="target", value=url) from error
    if parts.scheme == "http" and parts.hostname and not (has_port or parts.path):
        raise CommandRefused(
            f"{url!r} names no port: http://{parts.hostname}:8000, say", field="target", value=url, bound=_FORM
        )
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise CommandRefused(f"{url!r} is not the http address of an engine", field="target", value=url, bound=_FORM)
    if parts.username or parts.password:
        raise CommandRefused(
            "a target's address holds a password; give a file with a token", field="target", value=parts.hostname
        )
    if role not in ROLES:
        raise CommandRefused(f"{url}: no role is named {role!r}", field="role", value=role, bound=", ".join(ROLES))
    worker_id = name or parts.netloc
    if not _ID.fullmatch(worker_id):
        raise CommandRefused(f"{worker_id!r} is no name for a worker", field="name", value=worker_id, bound=_ID.pattern)
    address = plain.rstrip("/") if parts.path.strip("/") else f"{parts.scheme}://{parts.netloc}/metrics"
    return Target(worker_id=worker_id, url=address, role=ROLES[role], gpus=parse_gpus(gpus, worker_id) if gpus else ())


def distinct(targets: Iterable[Target], where: str = "the list") -> tuple[Target, ...]:
    """As they are. Raises CommandRefused when two share a name or a page, or when there are too many or none."""
    found: dict[str, Target] = {}
    named: dict[str, str] = {}
    for each in targets:
        other = named.setdefault(each.url, each.worker_id)
        if other != each.worker_id:
            words = f"{other} and {each.worker_id} are one page, {each.url}: its work would count twice"
            raise CommandRefused(words, field="target", value=each.url)
        if each.worker_id in found:
            raise CommandRefused(
                f"two targets are named {each.worker_id}: {found[each.worker_id].url} and {each.url}",
                field="target",
                value=each.worker_id,
            )
        found[each.worker_id] = each
    if not 1 <= len(found) <= MAX_TARGETS:
        raise CommandRefused(
            f"{len(found)} targets in {where}", field="targets", value=len(found), bound=f"1..{MAX_TARGETS}"
        )
    return tuple(found.values())


class ListedTargets:
    """Given once."""

    problem = ""

    def __init__(self, targets: Iterable[Target]) -> None:
        self._targets = distinct(targets)

    def targets(self) -> tuple[Target, ...]:
        return self._targets


class RosterTargets:
    """As what steers the fleet lists its engines: whoever looks there sets them."""

    def __init__(self) -> None:
        self.problem = "not looked at yet"
        self.listed: tuple[Target, ...] | None = None  # None: it has not answered yet

    def targets(self) -> tuple[Target, ...]:
        return self.listed or ()


class FileTargets:
    """A file that somebody else keeps: read again when it has changed. Raises CommandRefused if it is bad at first,
    unless it `may_come` later: then there are no targets until it does."""

    def __init__(self, path: Path, *, may_come: bool = False) -> None:
        self.problem = ""
        self._path = path
        self._targets: tuple[Target, ...] = ()
        self._stamp = 0, 0, 0
        if not may_come:
            self._stamp, self._targets = _stamp(path), read_targets(path)

    def targets(self) -> tuple[Target, ...]:
        try:
            stamp = _stamp(self._path)
            if stamp != self._stamp:
                self._targets = read_targets(self._path)
                self._stamp, self.problem = stamp, ""
        except CommandRefused as error:
            self.problem = f"{error.detail}; the targets before stay"
        return self._targets


def read_targets(path: Path) -> tuple[Target, ...]:
    """All groups of a file_sd file. Labels: `role`; in a group of one `worker_id`, `gpus`, and `serve_url` where
    requests go to another address than that of its page. Raises CommandRefused."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise CommandRefused(f"{path} is too large", field="targets_file", bound=f"{MAX_FILE_BYTES} bytes")
        groups = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CommandRefused(f"{path} cannot be read: {error}", field="targets_file", value=str(path)) from error
    if not isinstance(groups, list):
        raise CommandRefused(f"{path} is not a list of groups", field="targets_file", value=str(path))
    return distinct((target for group in groups for target in _of_group(path, group)), where=str(path))


def _of_group(path: Path, group: Any) -> list[Target]:
    urls = group.get("targets") if isinstance(group, dict) else None
    labels = group.get("labels", {}) if isinstance(group, dict) else None
    if not isinstance(urls, list) or not isinstance(labels, dict) or not all(isinstance(url, str) for url in urls):
        raise CommandRefused(f"{path}: a group is targets (a list of addresses) and labels", field="targets_file")
    own = labels if len(urls) == 1 else {}
    name, gpus, serves = (str(own.get(each, "")) for each in ("worker_id", "gpus", "serve_url"))
    found = [make_target(url, str(labels.get("role", "")), name, gpus) for url in urls]
    return (
        [replace(each, serve_url=base_url(make_target(serves, each.role).url)) for each in found] if serves else found
    )


def write_targets(path: Path, targets: Iterable[Target]) -> None:
    """As `read_targets` reads them, in one step. Raises OSError."""
    groups = [
        {
            "targets": [each.url],
            "labels": {"role": each.role.value, "worker_id": each.worker_id}
            | ({"serve_url": each.serve_url} if each.serve_url else {}),
        }
        for each in targets
    ]
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    scratch = path.with_suffix(f".{os.getpid()}.new")
    scratch.write_text(json.dumps(groups))
    os.replace(scratch, path)


def base_url(url: str) -> str:
    """Scheme, host and port."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


def _stamp(path: Path) -> tuple[int, int, int]:
    try:
        found = os.stat(path)
    except (OSError, ValueError) as error:  # ValueError: a name that none can be
        why = error.strerror if isinstance(error, OSError) else error
        raise CommandRefused(f"{path} cannot be read: {why}", field="targets_file") from error
    return found.st_ino, found.st_mtime_ns, found.st_size
