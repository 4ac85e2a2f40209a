#!/usr/bin/env bash
# What the test of `attvae compress` beside JPEG XL needs: its reference encoder, on Debian or Ubuntu, as root or with
# sudo; does nothing where it is there.
set -euo pipefail
if type cjxl djxl >/dev/null 2>&1; then
    exit
fi
as_root=()
((EUID == 0)) || as_root=(sudo)
"${as_root[@]}" apt-get update -qq
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get install --yes -qq --no-install-recommends libjxl-tools
