"""What this host's CPU reaches: FLOP/s and bytes/s, all cores together and one thread alone, measured once and cached.

It runs before any worker starts, in a process of its own (`python -m engine.calibrate`), so that torch stays out of the
caller and the caller's thread settings out of the measurement. Deliberately not here: GPUs, whose peaks are datasheet
figures.

A ceiling is what the device can do when nothing disturbs it, and the machine may be busy. So:
- a rate is work per CPU second of the thread that did it: time in which somebody else had the core does not count,
  as it does not count in a worker's in-phase time (`PhaseTiming.cpu_s`), which is divided by these rates;
- all cores together is one thread per core at once, their rates added up, so that they share caches and memory;
- of several rounds the best counts, among those in which the threads had the cores most: threads that took turns on a
  busy core have not shared the memory.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Final

from engine.errors import CalibrationError

FILE_NAME = "calibration.json"
#: How it is measured. A cached calibration of another method is measured again.
METHOD: Final = 2
NUM_ROUNDS: Final = 5
#: Rounds whose threads had at least this part of the most that any round had are compared.
_LEAST_PART: Final = 0.9
_MATRIX = 1024
_RUN_LIMIT_S = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Measured float32 ceilings of one host. `cpu` and `num_cores` say for which host they hold."""

    cpu: str
    num_cores: int
    flops: float
    bytes_per_s: float
    thread_flops: float
    thread_bytes_per_s: float
    measured_unix_s: float
    how: str
    method: int = METHOD


@dataclass(frozen=True, slots=True)
class Round:
    """One measurement: work per CPU second, summed over the threads, and the part of their time they had a core."""

    rate: float
    part: float


def cpu_name() -> str:
    """Model name of this host's CPU, as the kernel says."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def calibrate(run_dir: Path) -> Calibration:
    """The cached calibration of this host, or a new one (some seconds). Raises CalibrationError."""
    cached = load(run_dir)
    if cached is not None:
        return cached
    inherited = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "engine.calibrate"],
            cwd=Path(__file__).resolve().parent.parent,
            env=inherited,
            capture_output=True,
            text=True,
            timeout=_RUN_LIMIT_S,
            check=True,
        )
        result = Calibration(**json.loads(done.stdout.splitlines()[-1]))
    except subprocess.CalledProcessError as error:
        reason = (error.stderr.strip().splitlines() or ["no output"])[-1]
        raise CalibrationError(f"the CPU could not be calibrated: {reason}") from error
    except (subprocess.TimeoutExpired, ValueError, TypeError, IndexError) as error:
        raise CalibrationError(f"the CPU could not be calibrated: {error}") from error
    _save(run_dir, result)
    return result


def load(run_dir: Path) -> Calibration | None:
    """The cached calibration, when there is one for this CPU and number of cores, measured as we measure."""
    try:
        found = Calibration(**{"method": 1, **json.loads((run_dir / FILE_NAME).read_text())})
    except (OSError, ValueError, TypeError):
        return None
    return found if (found.cpu, found.num_cores, found.method) == (cpu_name(), num_cores(), METHOD) else None


def _save(run_dir: Path, result: Calibration) -> None:
    run_dir.mkdir(parents=True, exist_ok=True)
    fresh = run_dir / f".{FILE_NAME}.{os.getpid()}"
    fresh.write_text(json.dumps(asdict(result), indent=2) + "\n")
    os.replace(fresh, run_dir / FILE_NAME)


def best(rounds: Sequence[Round]) -> float:
    """The highest rate among the rounds that were disturbed least."""
    most = max(each.part for each in rounds)
    return max(each.rate for each in rounds if each.part >= _LEAST_PART * most)


def run_round(amount: float, runs: Sequence[Callable[[], object]], least_s: float) -> Round:
    """Repeat each of `runs` (work of `amount` each) in a thread of its own, all at once, for at least `least_s`."""
    together = threading.Barrier(len(runs))

    def work(run: Callable[[], object]) -> tuple[float, float]:
        together.wait()
        start_s, cpu_start_s, num_runs = time.perf_counter(), time.thread_time(), 0
        while not num_runs or time.perf_counter() - start_s < least_s:
            run()
            num_runs += 1
        cpu_s = max(time.thread_time() - cpu_start_s, 1e-9)
        return amount * num_runs / cpu_s, cpu_s / (time.perf_counter() - start_s)

    with ThreadPoolExecutor(len(runs)) as threads:
        found = list(threads.map(work, runs))
    return Round(sum(rate for rate, _ in found), sum(part for _, part in found) / len(found))


def _best_rate(amount: float, runs: Sequence[Callable[[], object]], least_s: float) -> float:
    """The ceiling of this work, done by all of `runs` at once."""
    for run in runs:  # memory and kernels are there before anything is timed
        run()
    return best([run_round(amount, runs, least_s) for _ in range(NUM_ROUNDS)])


def measure(budget_s: float = 0.6) -> Calibration:
    """Measure here and now: matrix products for FLOP/s, reading and copying for bytes/s, `budget_s` for each."""
    import torch

    torch.set_num_threads(1)  # of torch: the threads here are ours, one per core, and each does all of its own work
    cores, least_s = num_cores(), budget_s / NUM_ROUNDS
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    rows = min(32768, max(4096, memory // 64 // (4 * 4096)))  # 512 MiB where there is room: far beyond any cache
    square, wide, vector = torch.rand(_MATRIX, _MATRIX), torch.rand(rows, 4096), torch.rand(4096)
    target = torch.empty_like(wide)

    def rates(num_threads: int) -> tuple[float, float]:
        """FLOP/s and bytes/s of so many threads at once; each has its own part of the memory."""
        part = rows // num_threads
        sources, targets = ([m[i * part : (i + 1) * part] for i in range(num_threads)] for m in (wide, target))
        size = float(part * 4096 * 4)
        products = [partial(torch.mm, square, square, out=torch.empty_like(square)) for _ in sources]
        readings = [partial(torch.mv, source, vector) for source in sources]
        copies = [partial(to.copy_, source) for to, source in zip(targets, sources, strict=True)]
        bytes_per_s = max(_best_rate(size, readings, least_s), _best_rate(2 * size, copies, least_s))
        return _best_rate(2.0 * _MATRIX**3, products, least_s), bytes_per_s

    size_mib = rows * 4096 * 4 / 2**20
    thread_flops, thread_bytes_per_s = rates(1)
    flops, bytes_per_s = rates(cores)
    return Calibration(
        cpu=cpu_name(),
        num_cores=cores,
        flops=max(flops, thread_flops),
        bytes_per_s=max(bytes_per_s, thread_bytes_per_s),
        thread_flops=thread_flops,
        thread_bytes_per_s=thread_bytes_per_s,
        measured_unix_s=time.time(),
        how=f"torch {torch.__version__}: {_MATRIX}x{_MATRIX} products; {size_mib:.0f} MiB read or copied; "
        f"per CPU second, best of {NUM_ROUNDS} rounds",
    )


if __name__ == "__main__":
    print(json.dumps(asdict(measure())))
