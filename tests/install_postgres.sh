#!/usr/bin/env bash
# What tests/postgres.py needs: PostgreSQL's programs, on Debian or Ubuntu, as root or with sudo; does nothing where they
# are there. The tests start servers of their own, this machine needs none.
set -euo pipefail
if compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null; then
    exit
fi
as_root=()
((EUID == 0)) || as_root=(sudo)
"${as_root[@]}" apt-get update -qq
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get install --yes -qq --no-install-recommends postgresql-common
# Before the server's package is there, which would make and start a cluster otherwise.
echo 'create_main_cluster = false' | "${as_root[@]}" tee -a /etc/postgresql-common/createcluster.conf >/dev/null
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get install --yes -qq --no-install-recommends postgresql
