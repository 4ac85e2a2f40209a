#!/usr/bin/env bash
# systemd-analyze, by which a test holds the tracking server's unit against systemd itself, on Debian or Ubuntu, as root or
# with sudo; does nothing where it is there. Nothing is started.
set -euo pipefail
if type systemd-analyze >/dev/null 2>&1; then
    exit
fi
as_root=()
((EUID == 0)) || as_root=(sudo)
"${as_root[@]}" apt-get update -qq
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get install --yes -qq --no-install-recommends systemd
