"""Writes that wait for the history on the plane's own disk: numbered frames in segment files, bounded in bytes.

    <owner>.<number of its first frame>.spool      magic, then frames without a gap
    frame                                          length u32, CRC-32 u32, payload

Decided here: the format, that a torn tail counts as not written, and that the oldest segment goes when there is no more
room. An owner is one life of one plane, so two planes never append to one file; whoever opens the folder reads them
all, oldest owner first. Not decided here: what a payload says, when to write one, and that each is written to the
history once (`History.replay` keeps the number of the last frame in the transaction that writes it).
"""

from __future__ import annotations

import errno
import os
import struct
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from secrets import token_hex
from typing import Final
from zlib import crc32

MAGIC: Final = b"PHSPOOL1"
_HEAD: Final = struct.Struct("<II")
#: When there is no more room the oldest of so many parts is dropped.
NUM_SEGMENTS: Final = 16


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Where a frame stands: which owner's, and its number there, from 1."""

    owner: str
    number: int


@dataclass(frozen=True, slots=True)
class Frame:
    place: Place
    payload: bytes


def pack(payload: bytes) -> bytes:
    """One frame as it lies in a segment."""
    return _HEAD.pack(len(payload), crc32(payload)) + payload


def unpack(data: bytes, offset: int) -> bytes | None:
    """The payload of the frame at `offset`; None where there is no whole one."""
    if offset + _HEAD.size > len(data):
        return None
    length, checksum = _HEAD.unpack_from(data, offset)
    payload = data[offset + _HEAD.size : offset + _HEAD.size + length]
    return payload if len(payload) == length and crc32(payload) == checksum else None


def whole_frames(data: bytes) -> list[bytes]:
    """Payloads up to the first frame that is torn. Nothing of a file that is not a segment."""
    found: list[bytes] = []
    offset = len(MAGIC) if data.startswith(MAGIC) else len(data)
    while (payload := unpack(data, offset)) is not None:
        found.append(payload)
        offset += _HEAD.size + len(payload)
    return found


@dataclass(slots=True)
class _Segment:
    """One file. `num_frames`, `num_bytes`: whole frames in it; `num_read`: of those, how many were forgotten."""

    path: Path
    first: Place
    num_frames: int = 0
    num_bytes: int = len(MAGIC)
    num_read: int = 0

    @property
    def num_left(self) -> int:
        return self.num_frames - self.num_read


def _read(path: Path) -> list[bytes]:
    """Whole frames of one file; none when another plane has written and deleted it."""
    try:
        return whole_frames(path.read_bytes())
    except FileNotFoundError:
        return []


def _found(path: Path) -> _Segment:
    owner, _, number = path.stem.rpartition(".")
    segment = _Segment(path, Place(owner, int(number)))
    for payload in _read(path):
        segment.num_frames += 1
        segment.num_bytes += _HEAD.size + len(payload)
    return segment


def new_owner() -> str:
    """Names of later owners are greater, as far as clocks agree."""
    return f"{time.time_ns():016x}-{token_hex(4)}"


@dataclass(slots=True)
class Spool:
    """Frames on disk, oldest first. Not for two threads at once; the counts may be read from any."""

    folder: Path
    max_bytes: int
    owner: str = field(default_factory=new_owner)
    num_frames: int = 0
    num_bytes: int = 0
    _segments: list[_Segment] = field(default_factory=list)
    _appending: int | None = None  # file descriptor of the newest segment, while frames may be added to it
    _next_number: int = 1

    def open(self) -> None:
        """Take over what earlier planes left here. Raises OSError."""
        self._segments = sorted((_found(path) for path in self.folder.glob("*.spool")), key=lambda each: each.first)
        self._count()

    def append(self, payloads: Sequence[bytes]) -> int:
        """Add frames and wait until they are on the disk; returns how many old ones had to go for them.

        Raises OSError: then none of them counts as written, and the next try begins a segment of its own.
        """
        data = b"".join(map(pack, payloads))
        if len(data) + len(MAGIC) > self.max_bytes:
            raise OSError(errno.EFBIG, f"{len(data)} bytes at once, and spool_max_bytes is {self.max_bytes}")
        num_dropped = self._make_room(len(data) + len(MAGIC))
        segment = self._segment_for(len(data))
        try:
            _write_durably(self._descriptor(), data, segment.num_bytes)
        except OSError:
            self._give_up(segment)
            raise
        segment.num_frames += len(payloads)
        segment.num_bytes += len(data)
        self._next_number += len(payloads)
        self._count()
        return num_dropped

    def peek(self, limit: int) -> list[Frame]:
        """The oldest frames, at most so many, of one segment; none when they are gone. Raises OSError."""
        for segment in self._segments:
            if segment.num_left:
                payloads = _read(segment.path)[segment.num_read : segment.num_read + limit]
                first = segment.first.number + segment.num_read
                return [Frame(Place(segment.first.owner, first + i), each) for i, each in enumerate(payloads)]
        return []

    def forget(self, places: Iterable[Place]) -> None:
        """The oldest frames are in the history, or can never be. A segment without any left is deleted."""
        for place in places:
            for segment in self._segments:
                if segment.first.owner == place.owner and 0 <= place.number - segment.first.number < segment.num_frames:
                    segment.num_read = max(segment.num_read, place.number - segment.first.number + 1)
        for segment in [each for each in self._segments if not each.num_left]:
            self._delete(segment)
        self._count()

    def drop_oldest(self) -> int:
        """Delete the oldest segment; returns how many frames went with it."""
        num_dropped = self._segments[0].num_left
        self._delete(self._segments[0])
        self._count()
        return num_dropped

    def close(self) -> None:
        """Keep what is there for the next plane."""
        self._close()

    # --- parts ------------------------------------------------------------------------------------------------------

    def _count(self) -> None:
        self.num_frames = sum(each.num_left for each in self._segments)
        self.num_bytes = sum(each.num_bytes for each in self._segments)

    def _make_room(self, num_bytes: int) -> int:
        """Delete the oldest segments until so much fits; returns how many frames went with them."""
        num_dropped = 0
        while self._segments and self.num_bytes + num_bytes > self.max_bytes:
            num_dropped += self.drop_oldest()
        return num_dropped

    def _segment_for(self, num_bytes: int) -> _Segment:
        """The segment that takes so much more: the newest, or a new one."""
        newest = self._segments[-1] if self._segments and self._appending is not None else None
        if newest is not None and newest.num_bytes + num_bytes <= self.max_bytes // NUM_SEGMENTS:
            return newest
        self._close()
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{self.owner}.{self._next_number:012d}.spool"
        self._appending = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        segment = _Segment(path, Place(self.owner, self._next_number))
        self._segments.append(segment)
        try:
            _write_durably(self._appending, MAGIC, 0)
            _sync_folder(self.folder)
        except OSError:
            self._give_up(segment)
            raise
        return segment

    def _descriptor(self) -> int:
        assert self._appending is not None
        return self._appending

    def _give_up(self, segment: _Segment) -> None:
        """After a failed write nobody knows what is on the disk: go on under another name, so no number comes twice."""
        self._close()
        self.owner, self._next_number = f"{self.owner}+", 1
        if segment.num_frames:
            _cut(segment)
        else:
            self._delete(segment)

    def _delete(self, segment: _Segment) -> None:
        if segment is self._segments[-1]:
            self._close()
        segment.path.unlink(missing_ok=True)
        self._segments.remove(segment)

    def _close(self) -> None:
        if self._appending is not None:
            os.close(self._appending)
            self._appending = None


def _write_durably(descriptor: int, data: bytes, offset: int) -> None:
    """All of it at `offset`, synced. Raises OSError; also when the file has been deleted by whoever took it over."""
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written
    os.fdatasync(descriptor)
    if os.fstat(descriptor).st_nlink == 0:
        raise OSError(errno.ESTALE, "another plane has taken this spool over")


def _cut(segment: _Segment) -> None:
    """Leave nothing of a failed write behind; what cannot be cut is found torn."""
    try:
        os.truncate(segment.path, segment.num_bytes)
    except OSError:
        return


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
