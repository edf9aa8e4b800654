"""The lease of a fleet: which one plane acts, and when another may take over. Pure.

Decided here: the rule by which a standby takes the lease, and what a renewal means. The row in the database decides who
has it; a death that the kernel tells of only shortens the wait. Not decided here: SQL (`control.history.leases`), when
to look (`control.lease_keeper`). Times are of the database's clock, so that no two hosts have to agree on theirs.

    standing by ──take: the fence rises──> active ──renew──> active ──released, or ended and noticed──> (free)
                                             └─ not renewed for lease_s: expired, and still active, as long as nobody
                                                takes it: a standby does after it has reached the database for lease_s
"""

from __future__ import annotations

import os
import secrets
import socket
from dataclasses import dataclass
from pathlib import Path

from control.processes import ProcessId, identify

#: A lease is renewed so many times before it would expire.
RENEWALS = 3
#: A transaction that waited longer for its lock has met a busy database: the active plane may have waited as well.
MAX_LOCK_WAIT_S = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """One life of a plane's process, and where its API listens while it is active."""

    holder_id: str
    hostname: str
    machine: str  # boot and pid namespace: where they are equal, pids mean the same
    pid: int
    started_unix_s: float
    address: str

    @property
    def process(self) -> ProcessId:
        return ProcessId(self.pid, self.started_unix_s)

    @property
    def words(self) -> str:
        return f"pid {self.pid} on {self.hostname}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """The row: who has the fleet, under which fence, until when if it says nothing more."""

    holder: Holder
    fence: int
    taken_unix_s: float
    expires_unix_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What a standby knows besides the row. `dead_fence`: the kernel says that the holder of this fence has ended."""

    reachable_s: float  # the database has answered without a break for so long
    dead_fence: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """`may_take`, or how long to wait at least before looking again. `reason` is for a person."""

    may_take: bool
    reason: str
    wait_s: float = 0.0


def judge(lease: Lease | None, me: Holder, standing: Standing, lease_s: float, now_unix_s: float) -> Verdict:
    """Whether `me` may take the lease now."""
    if lease is None:
        return Verdict(may_take=True, reason="nobody has had this fleet")
    if lease.holder.holder_id == me.holder_id:
        return Verdict(may_take=True, reason="it is ours")  # the answer to the commit was lost
    if is_released(lease):
        return Verdict(may_take=True, reason=f"{lease.holder.words} has released it")
    if standing.dead_fence == lease.fence:
        return Verdict(may_take=True, reason=f"{lease.holder.words} has ended")
    left_s = lease.expires_unix_s - now_unix_s
    if left_s > 0:
        return Verdict(may_take=False, reason=f"{lease.holder.words} is active", wait_s=left_s)
    if standing.reachable_s < lease_s:
        reason = f"{lease.holder.words} has not renewed it; the database is back only for {standing.reachable_s:.1f} s"
        return Verdict(may_take=False, reason=reason, wait_s=lease_s - standing.reachable_s)
    return Verdict(may_take=True, reason=f"{lease.holder.words} has not renewed it for {lease_s - left_s:.1f} s")


def is_released(lease: Lease) -> bool:
    """Its holder has given it back."""
    return lease.expires_unix_s <= lease.taken_unix_s


def is_same_machine(one: Holder, other: Holder) -> bool:
    """A pid of the one means the same process to the other."""
    return one.machine != "" and one.machine == other.machine


def this_process(address: str) -> Holder:
    """The holder that this process would be."""
    me = identify(os.getpid())
    assert me is not None
    return Holder(
        holder_id=secrets.token_hex(8),
        hostname=socket.gethostname(),
        machine=this_machine(),
        pid=me.pid,
        started_unix_s=me.started_unix_s,
        address=address,
    )


def this_machine() -> str:
    """This boot of this kernel, and this pid namespace; "" where the system does not tell."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""
