"""A real vLLM prefill/decode pair on this machine, to try docs/fleets.md on; it runs until Ctrl-C.

python bench/peers.py --only vllm --setup         once
python bench/_pair.py                             prints what to attach
"""

from __future__ import annotations

import argparse
import signal
import threading

from _peers import PeerFailed, running
from _role_swaps import WORKERS
from _vllm_environment import MODEL
from _vllm_pair import VllmPair

ROLES = ("prefill", "decode")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    print("two servers start; this takes one to three minutes on two cores", flush=True)
    try:
        with running(VllmPair()) as pair:
            assert isinstance(pair, VllmPair)
            rows = zip(ROLES, WORKERS, pair.urls, strict=True)
            targets = " ".join(f"--targets {role}:{name}={url}" for role, name, url in rows)
            print(f".venv/bin/phaseline attach pair --kind vllm {targets} --model {MODEL} --dtype float32", flush=True)
            stop.wait()
    except PeerFailed as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()
