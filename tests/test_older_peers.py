"""Processes of the previous release beside those of this one, as in a rolling upgrade: frames that it sent, recorded
from its own code (`tests.record_wire`), are understood here, and frames from here begin with what it knows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from control.gateway import link
from engine import wire
from tests.record_wire import link_frames, wire_frames

RELEASES = sorted(Path(__file__).parent.glob("wire_*.json"))
RECORDED = {path.stem.removeprefix("wire_"): json.loads(path.read_text()) for path in RELEASES}
WIRE = [(release, name) for release, found in RECORDED.items() for name in found["wire"]]
LINK = [(release, name) for release, found in RECORDED.items() for name in found["link"]]
HEADER_BYTES = 4


def recorded(release: str, channel: str, name: str) -> bytes:
    return bytes.fromhex(RECORDED[release][channel][name])


def payload_of(frame: bytes) -> Any:
    """What a frame of the wire holds, without any type."""
    return msgspec.msgpack.decode(frame[HEADER_BYTES:])


def begins_with(new: Any, old: Any) -> bool:
    """An old reader takes the fields that it knows: the first of a list, its names of a map."""
    if isinstance(old, list):
        return isinstance(new, list) and len(new) >= len(old) and all(map(begins_with, new, old))
    if isinstance(old, dict):
        return isinstance(new, dict) and all(key in new and begins_with(new[key], value) for key, value in old.items())
    return bool(new == old)


def test_a_release_is_recorded() -> None:
    assert "e20684c" in RECORDED


@pytest.mark.parametrize(("release", "name"), WIRE)
def test_a_frame_of_an_older_peer_is_understood(release: str, name: str) -> None:
    frame = recorded(release, "wire", name)
    (message,) = wire.Framer().feed(frame)
    assert type(message).__name__ == name
    assert begins_with(payload_of(wire.encode(message)), payload_of(frame))


@pytest.mark.parametrize(("release", "name"), WIRE)
def test_an_older_peer_finds_what_it_knows_at_the_beginning_of_our_frames(release: str, name: str) -> None:
    assert begins_with(payload_of(wire_frames()[name]), payload_of(recorded(release, "wire", name)))


@pytest.mark.parametrize(("release", "name"), LINK)
def test_a_message_of_an_older_gateway_or_plane_is_understood(release: str, name: str) -> None:
    payload = recorded(release, "link", name)
    message = link.decode(payload)
    assert begins_with(msgspec.msgpack.decode(link.encode(message)), msgspec.msgpack.decode(payload))


@pytest.mark.parametrize(("release", "name"), LINK)
def test_an_older_gateway_or_plane_finds_what_it_knows_in_our_messages(release: str, name: str) -> None:
    payload = msgspec.msgpack.decode(recorded(release, "link", name))
    assert begins_with(msgspec.msgpack.decode(link_frames()[name]), payload)


@pytest.mark.parametrize("release", RECORDED)
def test_new_messages_are_behind_a_feature_that_an_older_worker_does_not_name(release: str) -> None:
    new = set(wire_frames()) - set(RECORDED[release]["wire"])
    assert RECORDED[release]["protocol"] == wire.PROTOCOL
    assert set(wire.FEATURES) >= set(RECORDED[release]["features"])
    assert not new or set(wire.FEATURES) > set(RECORDED[release]["features"])
