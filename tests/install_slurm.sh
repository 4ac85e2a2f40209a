#!/usr/bin/env bash
# What the tests marked `slurm` need: Slurm's programs and munge, on Debian or Ubuntu, as root or with sudo.
# The tests start daemons of their own, with a configuration of their own.
set -euo pipefail
PATH=$PATH:/usr/sbin
if type munged slurmctld slurmd sbatch >/dev/null 2>&1; then
    exit
fi
as_root=()
((EUID == 0)) || as_root=(sudo)
"${as_root[@]}" apt-get update -qq
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get install --yes -qq --no-install-recommends munge slurm-client slurmctld slurmd
