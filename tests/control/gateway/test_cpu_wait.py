"""Time on a run queue, as the kernel counts it."""

from __future__ import annotations

from pathlib import Path

from control.gateway.cpu_wait import cpu_waited_s


def test_it_is_the_second_number_in_seconds(tmp_path: Path) -> None:
    (tmp_path / "schedstat").write_text("595547000 2916080000 37\n")
    assert cpu_waited_s(tmp_path / "schedstat") == 2.91608


def test_a_system_that_does_not_count_it_is_unknown(tmp_path: Path) -> None:
    assert cpu_waited_s(tmp_path / "schedstat") is None
    (tmp_path / "schedstat").write_text("")
    assert cpu_waited_s(tmp_path / "schedstat") is None


def test_it_only_grows() -> None:
    before = cpu_waited_s()
    after = cpu_waited_s()
    assert (before is None and after is None) or (before is not None and after is not None and after >= before)
