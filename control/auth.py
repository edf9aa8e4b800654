"""Who may ask: named principals with a role, hashed tokens, sessions and one-time login codes, in 0600 files.

Decided here: how a token becomes a `Principal`, and where secrets lie. Not here: which route needs which role
(`control.api.context`). Tokens carry 256 random bits, so one SHA-256 keeps them; nothing stored can be used to log in.
Files are changed under a lock and replaced whole, so that the CLI and the plane may both write them.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import os
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from control.errors import CommandRefused, NotAllowed, NotFound, SettingsError
from control.types.api import Principal

PrincipalRole = Literal["viewer", "operator", "service"]
ROLES: tuple[PrincipalRole, ...] = ("viewer", "operator", "service")
NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,63}$"
SESSION_S = 12 * 3600.0
LOGIN_CODE_S = 600.0
MAX_SESSIONS = 1000


@dataclass(frozen=True, slots=True)
class Entry:
    """One stored credential. `kind`: token (until revoked), session (until it expires), code (once, until then)."""

    name: str
    role: PrincipalRole
    kind: str
    digest: str
    created_unix_s: float
    expires_unix_s: float | None = None

    def holds(self, now_unix_s: float) -> bool:
        return self.expires_unix_s is None or now_unix_s < self.expires_unix_s


@dataclass(slots=True)
class Auth:
    """The credentials below `secrets_dir`. Re-read whenever the file changes, so a new token works at once."""

    secrets_dir: Path
    _mark: tuple[int, int] = (0, 0)
    _entries: dict[str, Entry] = field(default_factory=dict)  # by digest

    @property
    def path(self) -> Path:
        return self.secrets_dir / "principals.json"

    def principal(self, token: str, now_unix_s: float) -> Principal:
        """Raises NotAllowed (401) on a token that is unknown, revoked or over."""
        self._refresh()
        digest = digest_of(token)
        entry = self._entries.get(digest)
        if entry is None or entry.kind == "code" or not hmac.compare_digest(entry.digest, digest):
            raise unauthenticated("the token is not known")
        if not entry.holds(now_unix_s):
            raise unauthenticated("the session is over: log in again")
        return Principal(name=entry.name, role=entry.role)

    def login(self, code: str, now_unix_s: float) -> tuple[str, Principal, float]:
        """Exchange a one-time code for a session: (token, principal, expiry). The code is gone afterwards."""
        token, expires = new_token(), now_unix_s + SESSION_S
        with self._editing(now_unix_s) as entries:
            entry = entries.pop(digest_of(code), None)
            if entry is None or entry.kind != "code":
                raise unauthenticated("the login code is not known, was used already, or is over")
            entries[digest_of(token)] = Entry(entry.name, entry.role, "session", digest_of(token), now_unix_s, expires)
        return token, Principal(name=entry.name, role=entry.role), expires

    def create_token(self, name: str, role: str, now_unix_s: float) -> str:
        """A new token for a new or known name. Raises CommandRefused on a bad name or role."""
        kind = _checked(name, role)
        token = new_token()
        with self._editing(now_unix_s) as entries:
            taken = next((each for each in entries.values() if each.name == name and each.role != kind), None)
            if taken is not None:
                raise CommandRefused(f"{name} is a {taken.role} already", field="role", value=role, bound=taken.role)
            entries[digest_of(token)] = Entry(name, kind, "token", digest_of(token), now_unix_s)
        return token

    def create_login_code(self, name: str, now_unix_s: float) -> str:
        """A code that logs `name` in once, within ten minutes. Raises NotFound on an unknown name."""
        code = new_token()
        with self._editing(now_unix_s) as entries:
            known = next((each for each in entries.values() if each.name == name and each.kind == "token"), None)
            if known is None:
                raise NotFound(f"no principal is named {name}", field="name", value=name)
            expires = now_unix_s + LOGIN_CODE_S
            entries[digest_of(code)] = Entry(name, known.role, "code", digest_of(code), now_unix_s, expires)
        return code

    def revoke(self, name: str, now_unix_s: float) -> int:
        """Forget every credential of `name`; returns how many there were."""
        with self._editing(now_unix_s) as entries:
            gone = [digest for digest, each in entries.items() if each.name == name]
            for digest in gone:
                del entries[digest]
        return len(gone)

    def principals(self) -> list[Principal]:
        """Everybody who holds a token, each once, by name."""
        self._refresh()
        found = {each.name: each.role for each in self._entries.values() if each.kind == "token"}
        return [Principal(name=name, role=found[name]) for name in sorted(found)]

    def _refresh(self) -> None:
        try:
            stat = self.path.stat()
        except FileNotFoundError:
            self._mark, self._entries = (0, 0), {}
            return
        mark = (stat.st_mtime_ns, stat.st_ino)
        if mark != self._mark:
            self._entries, self._mark = _read(self.path), mark

    @contextmanager
    def _editing(self, now_unix_s: float) -> Iterator[dict[str, Entry]]:
        """The entries under a file lock; written back on a clean exit, with what is over left out."""
        self.secrets_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(self.secrets_dir / ".lock", "a", opener=_private) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            entries = _read(self.path)
            yield entries
            kept = {digest: each for digest, each in entries.items() if each.holds(now_unix_s)}
            _write(self.path, _bounded(kept))
        self._refresh()


def open_auth(run_dir: Path, now_unix_s: float) -> Auth:
    """Open the credentials below `run_dir`/secrets; the first start makes an operator and a service token (0600)."""
    auth = Auth(run_dir / "secrets")
    auth.secrets_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    auth.secrets_dir.chmod(0o700)
    for name, role in (("operator", "operator"), ("service", "service")):
        path = auth.secrets_dir / f"{name}_token"
        if path.exists() and _known(auth, path, now_unix_s):
            continue
        write_private(path, auth.create_token(name, role, now_unix_s) + "\n")
    return auth


def read_token(run_dir: Path, name: str) -> str:
    """The token that lies in `run_dir`/secrets/<name>_token. Raises SettingsError, one line, when it cannot be read."""
    path = run_dir / "secrets" / f"{name}_token"
    try:
        return path.read_text().strip()
    except OSError as error:
        raise SettingsError(f"cannot read the {name} token {path}: {error.strerror}") from error


def digest_of(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def new_token() -> str:
    return secrets.token_urlsafe(32)


def unauthenticated(detail: str) -> NotAllowed:
    """The 401 form of NotAllowed: nobody is known; the 403 form knows who asks and refuses the role."""
    error = NotAllowed(detail)
    error.status = 401
    return error


def write_private(path: Path, text: str) -> None:
    """Replace `path` whole, readable by its owner alone from the first byte."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    with open(scratch, "w", opener=_private) as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())
    os.replace(scratch, path)


_private: Callable[[str, int], int] = lambda path, flags: os.open(path, flags, 0o600)  # noqa: E731


def _known(auth: Auth, path: Path, now_unix_s: float) -> bool:
    try:
        auth.principal(path.read_text().strip(), now_unix_s)
    except NotAllowed:
        return False
    return True


def _checked(name: str, role: str) -> PrincipalRole:
    if not re.match(NAME_PATTERN, name):
        raise CommandRefused(f"name {name!r} is not valid", field="name", value=name, bound=NAME_PATTERN)
    for known in ROLES:
        if known == role:
            return known
    raise CommandRefused(f"role {role!r} is not known", field="role", value=role, bound=", ".join(ROLES))


def _bounded(entries: dict[str, Entry]) -> dict[str, Entry]:
    """At most MAX_SESSIONS sessions and codes, the newest ones."""
    brief = sorted((each for each in entries.values() if each.kind != "token"), key=lambda each: each.created_unix_s)
    over = {each.digest for each in brief[: max(0, len(brief) - MAX_SESSIONS)]}
    return {digest: each for digest, each in entries.items() if digest not in over}


def _read(path: Path) -> dict[str, Entry]:
    try:
        rows: list[dict[str, Any]] = json.loads(path.read_text())["entries"]
        entries = [Entry(**row) for row in rows]
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise SettingsError(f"the file of principals {path} cannot be read: {error}") from error
    return {each.digest: each for each in entries}


def _write(path: Path, entries: dict[str, Entry]) -> None:
    rows = [{name: getattr(each, name) for name in Entry.__slots__} for each in entries.values()]
    write_private(path, json.dumps({"entries": rows}, indent=1) + "\n")
