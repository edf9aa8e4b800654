"""A fleet in memory, driven by a clock: its roles over time, its workers, pools and traffic, its roofline."""

from __future__ import annotations

from collections.abc import Callable

from control.types.bottleneck import Bottleneck, Resource
from control.types.commands import Desired
from control.types.fleet import Blended, Capability, Ceilings, FleetSnapshot, PoolStatus, TrafficStatus
from control.types.roofline import Roof, Roofline, RooflinePoint
from control.types.routing import RoutingPolicy
from control.types.workers import Phase, PhaseUtilization, Role, WorkerState, WorkerStatus
from tests.app.fake_series import course, metric_names

CEILINGS = Ceilings(
    compute=0.6, bandwidth=0.8, provenance="assumed", target_in_phase=(0.75, 1.0), target_wall=(0.5, 0.85)
)


class FakeFleet:
    """`scene`: ok | empty | starting | broken | silent (answers nothing)."""

    def __init__(
        self,
        now: Callable[[], float],
        *,
        scene: str = "ok",
        num_workers: int = 4,
        prefill: int = 1,
        simulated: bool = False,
    ) -> None:
        self.now = now
        self.scene = scene
        self.simulated = simulated or num_workers > 4
        self.started = now() - 5400.0
        roles = {f"w{i}": Role.PREFILL if i < prefill else Role.DECODE for i in range(num_workers)}
        policy = RoutingPolicy(min_fleet_devices=2, min_remote_prefill_tokens=16, max_local_output_tokens=8)
        self.desired = Desired(version=7, roles={} if scene == "empty" else roles, policy=policy)
        self.past: list[tuple[float, Desired]] = [(self.started, self.desired)]
        self.has_gpm = False  # its devices answer NVML's GPM
        self.kind = ""  # "": the usual one

    def desired_at(self, at_s: float) -> Desired:
        return next((desired for since, desired in reversed(self.past) if since <= at_s), self.past[0][1])

    def value(self, metric: str, label: str, at_s: float) -> float | None:
        """Of a metric, as it was then. None: a gap, or before the fleet was."""
        if at_s < self.started:
            return None
        return course(metric, label, at_s, self.desired_at(at_s), has_gpm=self.has_gpm)

    def phase(self, name: str) -> PhaseUtilization:
        now = self.now()
        read = {
            f"{b}_{r}": self.value(f"{name}_{r}_{b}", "", now)
            for b in ("wall", "in_phase")
            for r in ("compute", "bandwidth")
        }
        return PhaseUtilization(
            wall_compute=read["wall_compute"],
            wall_bandwidth=read["wall_bandwidth"],
            in_phase_compute=read["in_phase_compute"],
            in_phase_bandwidth=read["in_phase_bandwidth"],
            busy=0.48,
            tokens_per_s=240.0,
            basis="datasheet" if self.simulated else "calibrated",
            provenance="simulated" if self.simulated else "derived",
        )

    def worker(self, index: int, worker_id: str, role: Role) -> WorkerStatus:
        starting = self.scene == "starting" and index > 0
        failed = self.scene == "broken" and index == 1
        state = WorkerState.STARTING if starting else WorkerState.FAILED if failed else WorkerState.READY
        held = 300 + 37 * index % 400
        return WorkerStatus(
            worker_id=worker_id,
            epoch=2 if failed else 1,
            fleet_id="local",
            model_id="smollm2-135m-instruct",
            simulated=self.simulated,
            role=role,
            desired_role=role,
            state=state,
            reason="loading weights" if starting else "process exited with code 137" if failed else "",
            role_since_unix_s=self.started,
            started_unix_s=self.started,
            num_restarts=1 if failed else 0,
            last_restart_reason="killed by signal 9" if failed else "",
            pid=4000 + index,
            hostname="node-1",
            device="h100-sxm-80gb" if self.simulated else "cpu",
            address=f"127.0.0.1:{18600 + index}",
            version="0.1.0",
            weight=self.desired.weights.get(worker_id, 1.0),
            drained=worker_id in self.desired.drained,
            alive=not failed,
            heartbeat_age_s=0.3,
            step_running_s=0.04,
            kv_usage=None if starting else held / 1024,
            kv_blocks_total=1024,
            kv_blocks_held=held,
            kv_blocks_reserved=60,
            queued_prefill_tokens=180 if role == Role.PREFILL else 0,
            num_waiting=index % 2,
            num_running=0 if role == Role.PREFILL else 3,
            num_leased=0,
            prefill=None if starting else self.phase("prefill") if role != Role.DECODE else None,
            decode=None if starting else self.phase("decode") if role != Role.PREFILL else None,
            measured_tensor_active=0.61 if self.has_gpm else None,
            measured_dram_active=0.35 if self.has_gpm else None,
            gpu_utilization=1.0 if self.has_gpm else None,
            power_w=612.0 if self.has_gpm else None,
            memory_used_bytes=71 * 2**30 if self.has_gpm else None,
        )

    def roofline(self, since_unix_s: float | None, until_unix_s: float) -> Roofline:
        """Prefill near its roof, decode on the slope, at a batch that grows with the worker's number."""
        roof = Roof(name="h100-sxm-80gb", peak_flops=989e12, peak_bytes_per_s=3.35e12, achievable_flops=593e12,
                    achievable_bytes_per_s=2.68e12, basis="datasheet", achievable_provenance="assumed")  # fmt: skip
        points, starts = (
            [],
            [until_unix_s - 60.0] if since_unix_s is None else [since_unix_s + 60.0 * i for i in range(9)],
        )
        workers = [] if self.scene in ("empty", "starting") else list(self.desired.roles.items())
        for number, (worker_id, role) in enumerate(workers):
            for step, start in enumerate(starts):
                batch = 4.0 + 5.0 * number + 3.0 * step
                is_prefill = role == Role.PREFILL
                x = 700.0 + 90.0 * number if is_prefill else 0.95 * batch
                y = 540e12 - 9e12 * number if is_prefill else 0.9 * x * 2.68e12
                phase = Phase.PREFILL if is_prefill else Phase.DECODE
                points.append(
                    RooflinePoint(worker_id=worker_id, role=role, phase=phase, roof=roof.name, t_unix_s=start,
                                  length_s=60.0, intensity=x, flops_per_s=y, tokens_per_step=batch)
                )  # fmt: skip
        return Roofline(fleet_id="local", since_unix_s=since_unix_s or until_unix_s - 60.0, until_unix_s=until_unix_s,
                        roofs=(roof,), points=tuple(points), simulated=self.simulated)  # fmt: skip

    def pool(self, role: Role, workers: tuple[WorkerStatus, ...]) -> PoolStatus:
        own = [each for each in workers if each.role == role]
        ready = sum(1 for each in own if each.state == WorkerState.READY)
        return PoolStatus(
            role=role,
            num_desired=self.desired.pool_size(role),
            num_ready=ready,
            num_other=len(own) - ready,
            prefill=self.phase("prefill") if own and role != Role.DECODE else None,
            decode=self.phase("decode") if own and role != Role.PREFILL else None,
            load=(0.42 if role == Role.PREFILL else 0.61) if own else None,
            load_unit="s" if role == Role.PREFILL else "fraction",
            headroom_rps=1.8 if own else None,
            batch=None if role == Role.PREFILL or not own else 3.0,
            largest_batch=None if role == Role.PREFILL or not own else 14.2,
        )

    def snapshot(self) -> FleetSnapshot:
        now, empty = self.now(), self.scene in ("empty", "starting")
        workers = tuple(self.worker(i, each, role) for i, (each, role) in enumerate(self.desired.roles.items()))
        health = {"ok": "ok", "empty": "starting", "starting": "starting", "broken": "broken"}[self.scene]
        text = {
            "ok": "both pools are ready; decode has room for 1.80 req/s more",
            "empty": "no worker has started yet",
            "starting": f"1 of {len(workers)} workers is ready, the others load weights",
            "broken": "worker w1 has failed: process exited with code 137; the decode pool is one short",
        }[self.scene]
        return FleetSnapshot(
            fleet_id="local",
            model_id="llama-3.1-70b-fp8" if self.simulated else "smollm2-135m-instruct",
            kind=self.kind or ("sim" if self.simulated else "ray"),
            simulated=self.simulated,
            capabilities=tuple(Capability),
            at_unix_s=now,
            started_unix_s=self.started,
            tick=int(now - self.started),
            stale_s=0.2,
            health=health,
            health_text=text,
            desired=self.desired,
            workers=workers,
            pools=tuple(self.pool(role, workers) for role in (Role.PREFILL, Role.DECODE, Role.MIXED))
            if workers
            else (),
            prefill=None if empty else self.phase("prefill"),
            decode=None if empty else self.phase("decode"),
            ceilings=None if empty else CEILINGS,
            blended=None if empty else Blended(value=0.97, source="steps"),
            traffic=self.traffic(empty),
            notices=() if self.simulated else ("Routing thresholds of the local profile: not production values.",),
            bottleneck=self.bottleneck(now),
        )

    def bottleneck(self, now: float) -> Bottleneck:
        """Prefill limits where a worker has failed; else nothing does."""
        limited = self.scene == "broken"
        gains = {Resource.PREFILL: 0.18, Resource.DECODE_BANDWIDTH: 0.06} if limited else {}
        return Bottleneck(
            kind="prefill" if limited else "none",
            resources=(Resource.PREFILL,) if limited else (),
            text="Prefill is the bottleneck: 21% of requests are refused for want of it, 98% busy"
            if limited
            else "No bottleneck: 98% of requests are good",
            at_unix_s=now,
            since_unix_s=now - 40.0,
            window_s=60.0,
            gains={each.value: gains.get(each, 0.0) for each in Resource},
            simulated=self.simulated,
        )

    def traffic(self, empty: bool) -> TrafficStatus:
        now = self.now()
        read = {name: None if empty else self.value(name, "", now) for name in metric_names()}
        return TrafficStatus(
            window_s=60.0,
            num_gateways=0 if empty else 1,
            offered_rps=read["offered_rps"],
            goodput_rps=read["goodput_rps"],
            attainment=None if empty else 0.982,
            error_rps=None if empty else 0.0,
            rejected_rps=None if empty else 0.0,
            num_in_flight=0 if empty else 7,
            oldest_waiting_s=None if empty else 0.21,
            ttft_p50_s=read["ttft_p50_s"],
            ttft_p99_s=read["ttft_p99_s"],
            itl_p50_s=read["itl_p50_s"],
            itl_p99_s=read["itl_p99_s"],
            tpot_p50_s=read["itl_p50_s"],
            e2e_p50_s=None if empty else 3.4,
            prompt_tokens_per_s=None if empty else 900.0,
            output_tokens_per_s=read["decode_tokens_per_s"],
            by_rule={} if empty else {"remote": 160, "short_local": 14},
            slo_text="Good: TTFT ≤ 3 s + 20 ms per uncached token, TPOT ≤ 500 ms, gap ≤ 2 s.",
        )
