#!/usr/bin/env bash
# What the tests marked `browser` need: Chromium and its driver, on Debian, as root or with sudo; does nothing where they
# are there.
set -euo pipefail
if type chromium chromedriver >/dev/null 2>&1; then
    exit
fi
as_root=()
((EUID == 0)) || as_root=(sudo)
"${as_root[@]}" apt-get update -qq
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get install --yes -qq --no-install-recommends chromium chromium-driver
