"""Waits until a Ray cluster has so many machines: `python launch/wait_for_ray.py HOST:PORT 4`. Else it ends with 1."""

import os
import sys
import time

import ray

LIMIT_S = 300.0

if __name__ == "__main__":
    address, wanted = sys.argv[1], int(sys.argv[2])
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(address=address, log_to_driver=False, logging_level="error")
    deadline = time.monotonic() + LIMIT_S
    while (there := sum(node["Alive"] for node in ray.nodes())) < wanted:
        if time.monotonic() > deadline:
            sys.exit(f"wait_for_ray.py: after {LIMIT_S:g} s the Ray at {address} has {there} of {wanted} machines")
        time.sleep(0.5)
