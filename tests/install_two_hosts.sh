#!/usr/bin/env bash
# What tests/test_two_hosts.py and tests/search need of the system, on Debian and its kin; does nothing where it is there. As root.
set -euo pipefail

packages=()
[[ -x /usr/sbin/sshd ]] || packages+=(openssh-server)
command -v ssh >/dev/null || packages+=(openssh-client)
command -v pdsh >/dev/null || packages+=(pdsh)
command -v rsync >/dev/null || packages+=(rsync)
[[ -x /usr/sbin/ip || -x /sbin/ip ]] || packages+=(iproute2)
command -v unshare >/dev/null || packages+=(util-linux)
if ((${#packages[@]} == 0)); then
    exit 0
fi

# The test starts an sshd for each of its hosts; this machine needs none.
if [[ ! -e /usr/sbin/policy-rc.d ]]; then
    printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
    chmod +x /usr/sbin/policy-rc.d
    trap 'rm /usr/sbin/policy-rc.d' EXIT
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update --quiet=2
apt-get install --quiet=2 --no-install-recommends "${packages[@]}"
