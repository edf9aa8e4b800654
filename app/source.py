"""The one reader of the plane that all sessions share: a snapshot a tick, and the live series that somebody looks at.

Decided here: what is read when, what is kept, and how old it is. Not decided here: who may look (`app.session`) and how
it is drawn (`app.frames`, `app.charts`). Reading uses the token of any session that is logged in, since every principal
sees the same; acting always uses the session's own.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from app.live import LiveKey, LiveSeries
from app.marks import MOVE_KINDS, RARE_KINDS
from app.plane import Plane
from app.visits import MAX_VISITS, Visits
from control.errors import ControlError, NotAllowed, PlaneUnreachable
from control.types.api import Principal
from control.types.commands import Command
from control.types.events import FleetEvent
from control.types.fleet import FleetSnapshot

T = TypeVar("T")
LOG = logging.getLogger("phaseline.console")
STALE_AFTER_S = 3.5  # the plane ticks once a second: three missed answers
FORGET_AFTER_S = 15.0  # a live series that nobody asked for is no longer read
MAX_METRICS = 20  # of one question to the plane
OVERLAP_S = 12.0  # the youngest points may still change: read them again
COMMANDS_EVERY_S = 5.0
NUM_COMMANDS = 50
MAX_COMMANDS = 500  # of one window
EVENTS_EVERY_S = 2.0
MAX_EVENTS = 1_000  # of the rare kinds, and of moves
RANGES_KEPT = 64
LEAST_S = 0.3  # of a period: between two readings, whatever the plane says
PATIENCE = 1.1  # of a period: without a word from the plane
MAX_READERS = 16  # tokens that reading may use
MAX_CLIENTS = 32  # connections kept open for those who look and act
IDLE_S = 60.0  # beyond MAX_CLIENTS one that nobody used for so long is closed
RECHECK_S = 20.0  # whether the plane still knows a token, for all tabs together


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What the console knows of the plane at one instant. `snapshot` is the last one that came, however old."""

    snapshot: FleetSnapshot | None
    answered_unix_s: float | None
    error: str
    reading: int  # counts snapshots; charts and cards are rebuilt when it moves

    def age_s(self, now_unix_s: float) -> float | None:
        return None if self.answered_unix_s is None else max(0.0, now_unix_s - self.answered_unix_s)

    def is_stale(self, now_unix_s: float) -> bool:
        age_s = self.age_s(now_unix_s)
        return bool(self.error) and age_s is not None and age_s > STALE_AFTER_S


@dataclass(slots=True)
class Hub:
    """Shared by every session of this console process. `refresh` is called by one thread; the rest by any."""

    base_url: str
    connect: Callable[[str], Plane]
    now: Callable[[], float] = time.time
    period_s: float = 1.0
    visits: Visits = field(default_factory=Visits)
    listeners: list[Callable[[], None]] = field(default_factory=list)  # told after each reading, from any thread
    _tokens: list[str] = field(default_factory=list)
    _clients: dict[str, tuple[Plane, float]] = field(default_factory=dict)  # by token, with when it was last asked for
    _honoured: dict[str, tuple[Principal, float]] = field(default_factory=dict)  # by token, as the plane said last
    _look: Look = Look(snapshot=None, answered_unix_s=None, error="", reading=0)
    _live: dict[LiveKey, LiveSeries] = field(default_factory=dict)
    _commands: tuple[Command, ...] = ()
    _commands_unix_s: float = 0.0
    _events: dict[str | None, list[FleetEvent]] = field(default_factory=dict)  # as read last, of all or of one worker
    _memo: dict[Hashable, tuple[Hashable, Any]] = field(default_factory=dict)
    _ranges: dict[Hashable, tuple[float, Any]] = field(default_factory=dict)
    _asking: dict[Hashable, threading.Lock] = field(default_factory=dict)  # ranges that somebody reads just now
    _building: threading.RLock = field(default_factory=threading.RLock)  # one memo at a time: they are arithmetic
    _lock: threading.RLock = field(default_factory=threading.RLock)  # the fields above; never held over a network call
    _reading: threading.RLock = field(default_factory=threading.RLock)  # one reading at a time
    _stop: threading.Event = field(default_factory=threading.Event)
    _ticked: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    # --- who reads ------------------------------------------------------------

    def client(self, token: str) -> Plane:
        """The connection of one principal, kept open while it is used."""
        with self._lock:
            kept = self._clients.pop(token, None)
            client = self.connect(token) if kept is None else kept[0]
            self._clients[token] = (client, self.now())
            idle = self._idle_clients()
        for each in idle:
            each.close()
        return client

    def _idle_clients(self) -> list[Plane]:
        """Beyond MAX_CLIENTS, those that nobody asked for lately, the oldest first. They are kept no longer."""
        before = self.now() - IDLE_S
        spare = list(self._clients)[: max(0, len(self._clients) - MAX_CLIENTS)]
        return [self._clients.pop(token)[0] for token in spare if self._clients[token][1] < before]

    def admit(self, token: str) -> None:
        """A session has proved this token: reading may use it."""
        with self._lock:
            if token not in self._tokens:
                self._tokens = [*self._tokens, token][-MAX_READERS:]

    @property
    def readers(self) -> tuple[str, ...]:
        """Tokens that reading may use."""
        return tuple(self._tokens)

    def honours(self, reference: str) -> bool:
        """Whether that visit is open and the plane knows its token still; asked now and then, once for all tabs.

        An unreachable plane logs nobody out: it shows as stale.
        """
        visit = self.visits.find(reference, self.now())
        if visit is None:
            return False
        kept = self._honoured.get(visit.token)
        if kept is None or self.now() - kept[1] >= RECHECK_S:
            kept = (kept[0] if kept is not None else visit.principal, self.now())
            try:
                kept = (self.client(visit.token).whoami(), kept[1])
            except NotAllowed:
                self.visits.close(reference)
                return False
            except ControlError:
                pass
            with self._lock:
                self._honoured.pop(visit.token, None)
                while len(self._honoured) >= MAX_VISITS:
                    self._honoured.pop(next(iter(self._honoured)))
                self._honoured[visit.token] = kept
        return True

    def principal(self, token: str) -> Principal | None:
        """Whom the plane last said this token is."""
        kept = self._honoured.get(token)
        return None if kept is None else kept[0]

    def _reader(self) -> Plane | None:
        with self._lock:
            return self.client(self._tokens[-1]) if self._tokens else None

    def _drop_reader(self, client: Plane) -> None:
        with self._lock:
            self._tokens = [token for token in self._tokens if self._clients.get(token, (None, 0.0))[0] is not client]

    # --- the tick ------------------------------------------------------------

    def start(self) -> None:
        """Read in the background until `stop`: after each tick of the plane, at least about once a second."""
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="console-reader", daemon=True)
                self._thread.start()
                threading.Thread(target=self._listen, name="console-listener", daemon=True).start()

    def stop(self) -> None:
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self.refresh()
            except Exception as error:  # the one broad except: a reader that dies would leave every tab silent
                LOG.exception("a reading failed")
                self._fail(f"the console could not read the plane's answer ({type(error).__name__}: {error})")
                self._tell()
            self._stop.wait(LEAST_S * self.period_s)  # a burst of events is one reading
            self._ticked.wait((PATIENCE - LEAST_S) * self.period_s)
            self._ticked.clear()

    def _listen(self) -> None:
        """The plane says when it has ticked; without its word the reader goes on by the clock."""
        while not self._stop.is_set():
            client = self._reader()
            try:
                for _ in client.events() if client is not None else ():
                    self._ticked.set()
                    if self._stop.is_set():
                        return
            except (ControlError, ValueError):
                pass  # silence is the reader's to notice: its next question fails too
            self._stop.wait(self.period_s)

    def refresh(self) -> None:
        """One reading. Never raises: what went wrong is in `look().error`."""
        client = self._reader()
        if client is None:
            return
        self._read(client)
        self._tell()

    def _tell(self) -> None:
        for listener in self.listeners:
            listener()

    def _read(self, client: Plane) -> None:
        with self._reading:
            try:
                snapshot = client.snapshot()
                self._look = Look(
                    snapshot=snapshot, answered_unix_s=self.now(), error="", reading=self._look.reading + 1
                )
                self._refresh_commands(client, snapshot)
                self._refresh_live(client)
            except NotAllowed:
                self._drop_reader(client)
            except ControlError as error:
                self._fail(str(error))

    def _fail(self, error: str) -> None:
        look = self._look
        self._look = Look(
            snapshot=look.snapshot, answered_unix_s=look.answered_unix_s, error=error, reading=look.reading
        )

    def _refresh_commands(self, client: Plane, snapshot: FleetSnapshot) -> None:
        newest = self._commands[0].version_after if self._commands else -1
        moving = bool(snapshot.active_command_ids) or any(
            each.command_id in _unended(self._commands) for each in self._commands
        )
        overdue = self.now() - self._commands_unix_s >= COMMANDS_EVERY_S
        if moving or overdue or newest != snapshot.desired.version:
            self._commands = tuple(client.commands(NUM_COMMANDS))
            self._commands_unix_s = self.now()

    def _refresh_live(self, client: Plane) -> None:
        now = self.now()
        alike: dict[tuple[str, int, int, bool], list[LiveSeries]] = {}
        for key, live in list(self._live.items()):
            if now - live.wanted_unix_s > FORGET_AFTER_S:
                del self._live[key]
            elif now - live.read_unix_s >= max(self.period_s, key.step_s / 2) - 0.1:
                alike.setdefault((key.by, key.window_s, key.step_s, live.result is None), []).append(live)
        for due in alike.values():
            for start in range(0, len(due), MAX_METRICS):
                self._read_alike(client, due[start : start + MAX_METRICS])

    def _read_alike(self, client: Plane, due: Sequence[LiveSeries]) -> None:
        """Those that differ in their metric alone are one question; one by one where it is refused: one is at fault."""
        now, key = self.now(), due[0].key
        since = min(self._since(each, now) for each in due)
        try:
            read = client.many_series([each.key.metric for each in due], since, now, key.step_s, key.by)
        except PlaneUnreachable:
            raise
        except ControlError:
            for each in due:
                self._read_live(client, each)
            return
        for live, fresh in zip(due, read, strict=True):
            live.take(fresh, now)

    def _read_live(self, client: Plane, live: LiveSeries) -> None:
        now, key = self.now(), live.key
        try:
            fresh = client.series(key.metric, self._since(live, now), now, key.step_s, key.by)
        except PlaneUnreachable:
            raise
        except ControlError as error:
            live.error, live.read_unix_s = str(error), now
            return
        live.take(fresh, now)

    @staticmethod
    def _since(live: LiveSeries, now: float) -> float:
        """Where its young end begins."""
        since = now - live.key.window_s
        if live.result is None:
            return since
        return max(since, live.result.until_unix_s - OVERLAP_S - 2 * live.key.step_s)

    # --- what sessions ask ------------------------------------------------------------

    def look(self) -> Look:
        if self._look.reading == 0 and not self._look.error:
            self.refresh()
        return self._look

    def commands(self) -> tuple[Command, ...]:
        """The newest commands first, as of the last reading."""
        return self._commands

    def commands_in(self, since_unix_s: float, until_unix_s: float) -> list[Command]:
        """Of [since, until), newest first, each as it was read last. May raise."""
        newest = {each.command_id: each for each in self._commands}
        bounds = (int(since_unix_s // COMMANDS_EVERY_S), int(until_unix_s // COMMANDS_EVERY_S))
        reach = min((each.created_unix_s for each in self._commands), default=self.now())
        if len(newest) < NUM_COMMANDS or reach <= since_unix_s or self._look.error:
            found = list(self._commands)
        else:

            def read(plane: Plane) -> list[Command]:
                return plane.commands(MAX_COMMANDS, since_unix_s=since_unix_s, until_unix_s=until_unix_s)

            found = [newest.get(each.command_id, each) for each in self.cached(("commands", *bounds), 60.0, read)]
        return [each for each in found if since_unix_s <= each.created_unix_s < until_unix_s]

    def learn(self, command: Command) -> None:
        """A command that this console has just submitted is shown at once, before the next reading."""
        with self._lock:
            rest = tuple(each for each in self._commands if each.command_id != command.command_id)
            self._commands = (command, *rest)[:NUM_COMMANDS]

    def live(self, metric: str, by: str, window_s: int, step_s: int) -> LiveSeries:
        """A series that is read again each tick while somebody asks for it."""
        key = LiveKey(metric, by, window_s, step_s)
        live = self._live.get(key)
        if live is not None:
            live.wanted_unix_s = self.now()
            return live
        live = self._live.setdefault(key, LiveSeries(key=key, wanted_unix_s=self.now()))
        client = self._reader()
        if client is None or self._look.error:
            return live
        with self._reading:
            if live.result is None:
                try:
                    self._read_live(client, live)
                except ControlError as error:
                    live.error = str(error)
        return live

    def cached(self, key: Hashable, ttl_s: float, read: Callable[[Plane], T]) -> T:
        """A reading that all sessions share for `ttl_s`: a range of the past, the metric catalogue. May raise."""
        kept = self._ranges.get(key)
        if kept is not None and self.now() - kept[0] < ttl_s:
            return kept[1]  # type: ignore[no-any-return]
        with self._lock:
            asking = self._asking.setdefault(key, threading.Lock())
        with asking:  # whoever comes meanwhile waits for the same answer
            kept = self._ranges.get(key)
            if kept is not None and self.now() - kept[0] < ttl_s:
                return kept[1]  # type: ignore[no-any-return]
            try:
                return self._ask(key, read)
            finally:
                with self._lock:
                    self._asking.pop(key, None)

    def _ask(self, key: Hashable, read: Callable[[Plane], T]) -> T:
        client = self._reader()
        if client is None:
            raise PlaneUnreachable("nobody is logged in to this console")
        value = read(client)
        with self._lock:
            while len(self._ranges) >= RANGES_KEPT:
                self._ranges.pop(next(iter(self._ranges)))
            self._ranges[key] = (self.now(), value)
        return value

    def events(self, since_unix_s: float, until_unix_s: float, worker_id: str | None = None) -> list[FleetEvent]:
        """What happened in [since, until), newest first, EVENTS_EVERY_S old at most. Moves crowd no death out.

        While the plane is silent: what was read last, at once, as each question would wait for its answer.
        """
        if self._look.error:
            return [each for each in self._events.get(worker_id, ()) if since_unix_s <= each.at_unix_s < until_unix_s]
        bounds = (int(since_unix_s // EVENTS_EVERY_S), int(until_unix_s // EVENTS_EVERY_S))

        def read(plane: Plane) -> list[FleetEvent]:
            found: list[FleetEvent] = []
            for kinds in (RARE_KINDS, MOVE_KINDS):
                found += plane.fleet_events(
                    since_unix_s, until_unix_s, kinds=kinds, worker_id=worker_id, limit=MAX_EVENTS
                )
            return sorted(found, key=lambda each: each.at_unix_s, reverse=True)

        found = self._events[worker_id] = self.cached(("events", worker_id, *bounds), 60.0, read)
        return found

    def memo(self, key: Hashable, version: Hashable, build: Callable[[], T]) -> T:
        """Build once per version for all sessions (a frame, a card row)."""
        kept = self._memo.get(key)
        if kept is not None and kept[0] == version:
            return kept[1]  # type: ignore[no-any-return]
        with self._building:
            kept = self._memo.get(key)
            if kept is not None and kept[0] == version:
                return kept[1]  # type: ignore[no-any-return]
            value = build()
            with self._lock:
                while len(self._memo) >= 4 * RANGES_KEPT:
                    self._memo.pop(next(iter(self._memo)))
                self._memo[key] = (version, value)
        return value


def _unended(commands: tuple[Command, ...]) -> frozenset[int]:
    return frozenset(each.command_id for each in commands if each.state in ("accepted", "running"))
