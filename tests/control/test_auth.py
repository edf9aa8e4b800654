from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from control.auth import LOGIN_CODE_S, SESSION_S, Auth, open_auth, read_token
from control.errors import CommandRefused, NotAllowed, NotFound, SettingsError
from control.types.api import Principal
from tests.control.builders import NOW


@pytest.fixture
def auth(tmp_path: Path) -> Auth:
    return open_auth(tmp_path, NOW)


def test_first_start_makes_operator_and_service_tokens_that_only_the_owner_reads(auth: Auth, tmp_path: Path) -> None:
    for name in ("operator", "service"):
        path = tmp_path / "secrets" / f"{name}_token"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert auth.principal(read_token(tmp_path, name), NOW) == Principal(name=name, role=name)
    assert stat.S_IMODE(auth.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(auth.secrets_dir.stat().st_mode) == 0o700


def test_no_token_lies_in_the_file_of_principals(auth: Auth, tmp_path: Path) -> None:
    assert read_token(tmp_path, "operator") not in auth.path.read_text()


def test_a_second_start_keeps_the_tokens(auth: Auth, tmp_path: Path) -> None:
    before = read_token(tmp_path, "operator")
    assert open_auth(tmp_path, NOW + 1).principal(before, NOW + 1).name == "operator"
    assert read_token(tmp_path, "operator") == before


def test_a_token_made_by_another_process_works_at_once(auth: Auth, tmp_path: Path) -> None:
    token = Auth(tmp_path / "secrets").create_token("vera", "viewer", NOW)
    assert auth.principal(token, NOW) == Principal(name="vera", role="viewer")
    assert Principal(name="vera", role="viewer") in auth.principals()


def test_a_revoked_name_gets_in_no_more(auth: Auth) -> None:
    token = auth.create_token("vera", "viewer", NOW)
    assert auth.revoke("vera", NOW) == 1
    with pytest.raises(NotAllowed) as refused:
        auth.principal(token, NOW)
    assert refused.value.status == 401


def test_a_login_code_opens_one_session_once(auth: Auth) -> None:
    code = auth.create_login_code("operator", NOW)
    token, principal, expires = auth.login(code, NOW + 1)
    assert principal == Principal(name="operator", role="operator")
    assert expires == NOW + 1 + SESSION_S
    assert auth.principal(token, NOW + 2) == principal
    with pytest.raises(NotAllowed):
        auth.login(code, NOW + 2)
    with pytest.raises(NotAllowed):
        auth.principal(token, expires)


def test_a_login_code_is_over_after_its_time_and_is_no_token(auth: Auth) -> None:
    code = auth.create_login_code("operator", NOW)
    with pytest.raises(NotAllowed):
        auth.principal(code, NOW)
    auth.create_token("later", "viewer", NOW + LOGIN_CODE_S)
    with pytest.raises(NotAllowed):
        auth.login(code, NOW + LOGIN_CODE_S)


def test_a_token_is_no_login_code(auth: Auth, tmp_path: Path) -> None:
    token = read_token(tmp_path, "operator")
    with pytest.raises(NotAllowed):
        auth.login(token, NOW)
    assert auth.principal(token, NOW).name == "operator"


@pytest.mark.parametrize(
    ("name", "role", "field"),
    [("Vera", "viewer", "name"), ("", "viewer", "name"), ("vera", "admin", "role"), ("operator", "viewer", "role")],
)
def test_a_bad_name_or_role_is_refused_by_field(auth: Auth, name: str, role: str, field: str) -> None:
    with pytest.raises(CommandRefused) as refused:
        auth.create_token(name, role, NOW)
    assert refused.value.field == field


def test_a_code_for_nobody_is_refused(auth: Auth) -> None:
    with pytest.raises(NotFound):
        auth.create_login_code("nobody", NOW)


def test_a_broken_file_is_one_clear_error(auth: Auth, tmp_path: Path) -> None:
    auth.path.write_text(json.dumps({"entries": [{"wrong": 1}]}))
    with pytest.raises(SettingsError, match="principals"):
        Auth(tmp_path / "secrets").principals()


def test_a_token_of_any_bytes_is_only_unknown(auth: Auth) -> None:
    for token in ("", "\udcff", "x" * 10_000):
        with pytest.raises(NotAllowed):
            auth.principal(token, NOW)
