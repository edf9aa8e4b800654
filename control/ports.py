"""The ports that a deployment needs, checked before anything starts: an error names the setting."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from control.components import CONSOLE, GATEWAY, PLANE, RAY, Endpoint, kind_of
from control.deployment import ComponentRecord
from control.errors import SettingsError
from control.fleets.ray_head import LOOPBACK
from control.processes import ProcessId, port_is_free, port_owner


def check_ports(listed: Sequence[tuple[str, str, int]], ours: Collection[ProcessId] = ()) -> None:
    """Rows: (host, setting, port). Raises SettingsError naming the first port that is in use, and its setting.

    A port that one of `ours` holds will be free when that process has been ended.
    """
    seen: dict[int, str] = {}
    for host, setting, port in listed:
        if port in seen:
            raise SettingsError(
                f"settings {seen[port]} and {setting} name the same port {port}", field=setting, value=port
            )
        seen[port] = setting
        try:
            is_free = port_is_free(host, port)
        except OSError as error:
            raise SettingsError(f"{host}:{port} cannot be used: {error.strerror}", field=setting, value=port) from error
        owner = None if is_free else port_owner(port)
        if not is_free and (owner is None or owner.pid not in {each.pid for each in ours}):
            by = f" by {owner.name} (pid {owner.pid})" if owner else ""
            raise SettingsError(
                f"setting {setting}: port {port} is in use{by}", field=setting, value=port, bound="a free port"
            )


def ports_to_check(
    listed: Sequence[Endpoint], host: str, ray_port: int | None, kept: dict[str, ComponentRecord]
) -> list[tuple[str, str, int]]:
    """Ports that a component which is not running yet will need."""
    owner = {"gateway_port": GATEWAY, "api_port": PLANE, "console_port": CONSOLE}
    running = {kind_of(name) for name, record in kept.items() if _runs(record)}
    rows = [(host, each.setting, each.port) for each in listed if owner[each.setting] not in running]
    if ray_port is not None and not _runs(kept.get(RAY)):
        rows.append((LOOPBACK, "ray_port", ray_port))
    return rows


def _runs(record: ComponentRecord | None) -> bool:
    return record is not None and bool(record.processes)
