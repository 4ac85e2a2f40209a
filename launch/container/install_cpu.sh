#!/usr/bin/env bash
# The CPU stage of the Dockerfile; also for a machine without Docker:
#   launch/container/install_cpu.sh PREFIX      # PREFIX/bin/attvae, a virtual environment of its own
# Needs Python 3.11 or newer and nothing else, no compiler. pip's settings (PIP_INDEX_URL, PIP_EXTRA_INDEX_URL,
# PIP_FIND_LINKS) say where packages come from: from PyTorch's own CPU index, torch comes without gigabytes of CUDA.
set -euo pipefail
prefix=${1:?usage: install_cpu.sh PREFIX}
source=$(cd "$(dirname "$0")/../.." && pwd)

python3 -m venv "$prefix"
pip=("$prefix/bin/pip" install --quiet --constraint "$source/constraints.txt")
"${pip[@]}" torch
"${pip[@]}" "${source}[official,s3]"
"$prefix/bin/attvae" --version
