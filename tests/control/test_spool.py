"""Frames on disk: what was appended comes back in order, once, whole, and within the bound."""

from __future__ import annotations

import os
import resource
import signal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control.spool import MAGIC, NUM_SEGMENTS, Place, Spool, pack, whole_frames

ROOMY = 2**20


def opened(folder: Path, max_bytes: int = ROOMY, owner: str = "a") -> Spool:
    spool = Spool(folder, max_bytes, owner)
    spool.open()
    return spool


def payloads(spool: Spool, limit: int = 1000) -> list[bytes]:
    """Everything that is left, taken from the front and forgotten."""
    found = []
    while frames := spool.peek(limit):
        found += [frame.payload for frame in frames]
        spool.forget([frame.place for frame in frames])
    return found


def test_an_empty_spool_needs_no_folder(tmp_path: Path) -> None:
    spool = opened(tmp_path / "none")
    assert (spool.num_frames, spool.num_bytes, spool.peek(9)) == (0, 0, [])
    assert not (tmp_path / "none").exists()


def test_frames_come_back_in_order_and_then_the_disk_is_empty(tmp_path: Path) -> None:
    spool = opened(tmp_path)
    assert spool.append([b"one", b"two"]) == 0
    spool.append([b"three"])
    assert (spool.num_frames, spool.num_bytes) == (3, len(MAGIC) + 3 * 8 + 11)
    assert [frame.place for frame in spool.peek(2)] == [Place("a", 1), Place("a", 2)]
    assert payloads(spool, limit=2) == [b"one", b"two", b"three"]
    assert (spool.num_frames, spool.num_bytes, list(tmp_path.iterdir())) == (0, 0, [])
    spool.append([b"four"])
    assert [frame.place for frame in spool.peek(1)] == [Place("a", 4)]


def test_the_next_plane_finds_what_the_last_one_left_and_then_its_own(tmp_path: Path) -> None:
    opened(tmp_path, owner="a").append([b"one", b"two"])
    spool = opened(tmp_path, owner="b")
    spool.append([b"three"])
    assert spool.num_frames == 3
    assert payloads(spool) == [b"one", b"two", b"three"]


@given(st.lists(st.binary(max_size=40), max_size=6), st.data())
def test_a_file_cut_anywhere_holds_the_frames_before_the_cut(written: list[bytes], data: st.DataObject) -> None:
    whole = MAGIC + b"".join(map(pack, written))
    cut = data.draw(st.integers(0, len(whole)))
    ends = [len(MAGIC) + sum(len(pack(each)) for each in written[:count]) for count in range(len(written) + 1)]
    num_whole = sum(1 for end in ends[1:] if end <= cut)
    assert whole_frames(whole[:cut]) == written[:num_whole]


@given(st.lists(st.binary(min_size=1, max_size=40), min_size=1, max_size=5), st.data())
def test_a_changed_bit_is_found(written: list[bytes], data: st.DataObject) -> None:
    whole = bytearray(MAGIC + b"".join(map(pack, written)))
    whole[data.draw(st.integers(0, len(whole) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    found = whole_frames(bytes(whole))
    assert len(found) < len(written)
    assert found == written[: len(found)]


def test_a_torn_tail_counts_as_not_written(tmp_path: Path) -> None:
    opened(tmp_path).append([b"one", b"two"])
    path = next(tmp_path.iterdir())
    os.truncate(path, path.stat().st_size - 1)
    assert payloads(opened(tmp_path, owner="b")) == [b"one"]


def test_when_it_is_full_the_oldest_go_and_are_counted(tmp_path: Path) -> None:
    spool = opened(tmp_path, max_bytes=NUM_SEGMENTS * 100)
    dropped = [spool.append([b"%03d" % number + bytes(37)]) for number in range(100)]
    kept = [int(payload[:3]) for payload in payloads(spool)]
    assert kept == list(range(100 - len(kept), 100))
    assert sum(dropped) == 100 - len(kept)
    assert len(kept) > 20  # of 40 + 8 bytes in 1600


def test_what_can_never_fit_is_refused_and_drops_nothing(tmp_path: Path) -> None:
    spool = opened(tmp_path, max_bytes=1000)
    spool.append([b"one"])
    with pytest.raises(OSError, match="spool_max_bytes is 1000"):
        spool.append([bytes(1000)])
    assert payloads(spool) == [b"one"]


def test_a_disk_without_room_refuses_whole_frames_and_keeps_what_was_there(tmp_path: Path) -> None:
    """RLIMIT_FSIZE stands for the full disk: a write is cut short, and then fails."""
    spool = opened(tmp_path)
    spool.append([b"one"])
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            spool.append([bytes(500)])
        with pytest.raises(OSError, match="too large"):
            spool.append([bytes(500)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    spool.append([b"two"])
    assert opened(tmp_path, owner="~").num_frames == 2
    assert payloads(spool) == [b"one", b"two"]


def test_an_owner_whose_files_were_taken_over_is_told(tmp_path: Path) -> None:
    old = opened(tmp_path, owner="a")
    old.append([b"one"])
    payloads(opened(tmp_path, owner="b"))
    with pytest.raises(OSError, match="another plane has taken this spool over"):
        old.append([b"two"])
    assert opened(tmp_path, owner="c").num_frames == 0


def test_frames_that_can_no_longer_be_read_are_dropped_and_counted(tmp_path: Path) -> None:
    spool = opened(tmp_path)
    spool.append([b"one", b"two"])
    path = next(tmp_path.iterdir())
    path.write_bytes(b"something else")
    assert spool.peek(9) == []
    path.unlink()
    assert spool.peek(9) == []
    assert (spool.drop_oldest(), spool.num_frames) == (2, 0)
