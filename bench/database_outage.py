"""PostgreSQL is stopped for a minute under traffic and commands: what is lost of points, commands and requests.

    phaseline bench database_outage [-- --outage 60 --workers 24 --rate 8]

Paced workers (simulated), the product's own processes, a PostgreSQL of its own with fsync on. It is ended as
`pg_ctl stop -m immediate` does, and started again; afterwards it must hold, to the last step, what the workers' own
counters say: for each worker and phase, for each role and for the fleet. Every command that was accepted must be
there, none that was refused; every request must have been served and have its record once.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from _deployment import Deployment, deployment, report_of
from _postgresql import Cluster, private_cluster
from control.client import PhaselineClient
from control.errors import ControlError
from control.history.store import History
from control.settings import Settings
from control.types.commands import Action, CommandRequest, Verb
from engine.meter_reader import MeterReader, scan

COLUMNS: Final = ("tokens", "steps", "flops", "bytes", "busy_s")
SETTLE_LIMIT_S: Final = 120.0
Totals = dict[tuple[str, str, str], dict[str, float]]  # by scope, name and phase


@dataclass(slots=True)
class Story:
    """What happened to commands and charts, in the order of time."""

    accepted: list[int] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    answer_s: list[float] = field(default_factory=list)
    chart_errors: list[str] = field(default_factory=list)
    first_notice: str = ""
    most_spooled: int = 0
    tick_ages_s: list[float] = field(default_factory=list)

    def ask(self, client: PhaselineClient, number: int) -> None:
        """One command: another weight for a worker. One chart. What the screen says."""
        action = Action(verb=Verb.SET_ROUTING, weights={"w0": 0.5 + number % 5 / 10})
        begun_s = time.monotonic()
        try:
            self.accepted.append(client.submit(CommandRequest(action=action, why=f"bench {number}")).command_id)
        except ControlError as error:
            self.refused.append(error.detail)
        self.answer_s.append(time.monotonic() - begun_s)
        try:
            client.series("decode_tokens_per_s", since_unix_s=time.time() - 60, until_unix_s=time.time())
        except ControlError as error:
            self.chart_errors.append(error.detail)
        snapshot = client.snapshot()
        self.tick_ages_s.append(time.time() - snapshot.at_unix_s)
        told = [each for each in snapshot.notices if "history" in each]
        self.first_notice = self.first_notice or next(iter(told), "")
        found = re.search(r"(\d+) in the spool", " ".join(told))
        self.most_spooled = max(self.most_spooled, int(found.group(1)) if found else 0)


def tell(fleet: Deployment, story: Story, pages: Pages, seconds: float, every_s: float) -> None:
    """Commands and charts for so long."""
    until_s = time.monotonic() + seconds
    while time.monotonic() < until_s:
        pages.look()
        story.ask(fleet.client, len(story.accepted) + len(story.refused))
        time.sleep(every_s)


class Page(MeterReader):
    """A meter page that is read to the end of its life, whatever is put in its place."""

    def _is_replaced(self) -> bool:
        return False


@dataclass(slots=True)
class Pages:
    """The pages of all lives of all workers, also of those that were started anew meanwhile."""

    folder: Path
    _pages: dict[int, Page] = field(default_factory=dict)  # by inode

    def look(self) -> None:
        for path in scan(self.folder):
            if path.stat().st_ino not in self._pages:
                page = Page(path)
                self._pages[page._inode] = page

    @property
    def num_lives(self) -> int:
        return len(self._pages)

    def totals(self) -> Totals:
        """What they say, by worker, role and fleet."""
        self.look()
        found: Totals = defaultdict(lambda: dict.fromkeys(COLUMNS, 0.0))
        for reading in [page.read() for page in self._pages.values()]:
            for key, counters in reading.counters.items():
                role, _, phase = key.partition("/")
                for line in (("worker", reading.worker_id, phase), ("role", role, phase), ("fleet", "", phase)):
                    for column in COLUMNS:
                        found[line][column] += getattr(counters, column)
        return {line: values for line, values in found.items() if values["steps"]}


def counted_totals(cluster: Cluster) -> Totals:
    """What the history says, all seconds together."""
    history = History.open(cluster.url)
    try:
        found = history.totals("local")
    finally:
        history.close()
    return {
        (scope, "" if scope == "fleet" else name, phase): {column: sums[column] for column in COLUMNS}
        for (scope, name, phase), sums in found.items()
    }


def differing(own: Totals, counted: Totals) -> list[str]:
    """Lines whose totals are not equal; floats may be added up in another order."""
    found = []
    for line in sorted(own.keys() | counted.keys()):
        mine, theirs = own.get(line, {}), counted.get(line, {})
        for column in COLUMNS:
            one, other = mine.get(column, 0.0), theirs.get(column, 0.0)
            if abs(one - other) > 1e-9 * max(abs(one), abs(other)):
                found.append(f"{' '.join(line)} {column}: workers {one}, history {other}")
    return found


def until_settled(cluster: Cluster, pages: Pages, offered: int) -> list[str]:
    """Wait until the history has caught up, with the records of the last requests too; what still differs then."""
    until_s = time.monotonic() + SETTLE_LIMIT_S
    while True:
        found = differing(pages.totals(), counted_totals(cluster))
        if time.monotonic() > until_s or (not found and num_records(cluster)[0] >= offered):
            return found
        time.sleep(1.0)


def num_records(cluster: Cluster) -> tuple[int, int]:
    """Written, and of different requests."""
    with cluster.connect() as connection:
        wanted = "SELECT count(*), count(DISTINCT request_id) FROM request_records"
        total, unique = connection.execute(wanted).fetchall()[0]
    return total, unique


def measure(options: argparse.Namespace) -> dict[str, Any]:
    settings = {"num_workers": options.workers, "num_prefill": options.workers // 6, "worker_kind": "paced"}
    with (
        private_cluster("shared_buffers=32MB") as cluster,
        deployment(**settings, profile="production", database_url=cluster.url) as fleet,
    ):
        pages = Pages(Settings(run_dir=fleet.run_dir).effective_shm_dir)
        story, found = outage(fleet, cluster, pages, options)
        begun_s, offered = time.monotonic(), found["requests"]["offered"]
        different = until_settled(cluster, pages, offered)
        return found | {
            **records_and_commands(cluster, story, offered),
            "workers": f"{options.workers} paced (simulated)",
            "worker_lives": pages.num_lives,
            "totals_compared": len(pages.totals()) * len(COLUMNS),
            "totals_different": len(different),
            "some_that_differ": different[:5],
            "decode_steps": counted_totals(cluster)["fleet", "", "decode"]["steps"],
            "history_equal_s_after_traffic": round(time.monotonic() - begun_s, 1),
        }


def outage(
    fleet: Deployment, cluster: Cluster, pages: Pages, options: argparse.Namespace
) -> tuple[Story, dict[str, Any]]:
    """Traffic and commands before, during and after it; what came of them."""
    story, seconds = Story(), options.before + options.outage + options.after
    traffic = fleet.start_traffic(
        *("--profile", "gentle", "--rate", str(options.rate), "--seed", "7"),
        *("--duration", str(seconds), "--limit", str(int(options.rate * seconds))),
    )
    tell(fleet, story, pages, options.before, options.every)
    begun_s = time.monotonic()
    cluster.stop()
    tell(fleet, story, pages, options.outage, options.every)
    cluster.start()
    outage_s, refused = time.monotonic() - begun_s, len(story.refused)
    tell(fleet, story, pages, options.after, options.every)
    report = report_of(traffic)
    return story, {
        "outage_s": round(outage_s, 1),
        "requests": {name: report[name] for name in ("offered", "failed", "rejected", "errors")},
        "commands_refused_after_it_was_back": len(story.refused) - refused,
        "slowest_answer_s": round(max(story.answer_s), 2),
        "oldest_snapshot_s": round(max(story.tick_ages_s), 2),
        "refusals": sorted(set(story.refused))[:4],
        "chart_errors": sorted(set(story.chart_errors))[:3],
        "first_notice": story.first_notice,
        "most_spooled": story.most_spooled,
    }


def records_and_commands(cluster: Cluster, story: Story, offered: int) -> dict[str, Any]:
    total, unique = num_records(cluster)
    with cluster.connect() as connection:
        rows = connection.execute("SELECT command_id FROM commands WHERE who <> 'phaseline'").fetchall()
    there = {row[0] for row in rows}
    return {
        "records": {"requests": offered, "written": total, "unique": unique},
        "commands": {
            "accepted": len(story.accepted),
            "accepted_and_lost": len(set(story.accepted) - there),
            "refused": len(story.refused),
            "refused_and_there": len(there - set(story.accepted)),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=24)
    parser.add_argument("--rate", type=float, default=8.0, help="requests per second")
    parser.add_argument("--before", type=float, default=15.0, help="seconds of traffic before the outage")
    parser.add_argument("--outage", type=float, default=60.0)
    parser.add_argument("--after", type=float, default=20.0)
    parser.add_argument("--every", type=float, default=1.0, help="seconds between two commands")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = measure(options)
    print(json.dumps(found) if options.json else json.dumps(found, indent=2))
    records = found["records"]
    lost = found["commands"]["accepted_and_lost"] or found["requests"]["failed"]
    if lost or found["totals_different"] or not records["requests"] == records["written"] == records["unique"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
