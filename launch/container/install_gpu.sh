#!/usr/bin/env bash
# The GPU stage of the Dockerfile; also for a node without Docker:
#   launch/container/install_gpu.sh PREFIX      # PREFIX/bin/attvae, a virtual environment of its own
# Needs Python 3.11 or newer with its headers, git, a C++ compiler, and the CUDA toolkit (nvcc) of the version that torch
# is built for. TORCH_CUDA_ARCH_LIST says for which GPUs; by default A100, H100, B200 and newer.
set -euo pipefail
prefix=${1:?usage: install_gpu.sh PREFIX}
source=$(cd "$(dirname "$0")/../.." && pwd)
apex=becbb77cea4cb54f2929f7c938a0a6f7dd1fdc39 # others have built it with CUDA 13.0 and torch 2.12
export TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-"8.0;9.0;10.0+PTX"}
export MAX_JOBS=${MAX_JOBS:-8} # a compiler takes up to 4 GB

if ! command -v nvcc > /dev/null; then
    echo "install_gpu.sh: no nvcc on the PATH: install the CUDA toolkit, or use install_cpu.sh" >&2
    exit 1
fi
python3 -m venv "$prefix"
pip=("$prefix/bin/pip" install --quiet --constraint "$source/constraints.txt")
"${pip[@]}" torch setuptools wheel ninja packaging
cuda=$("$prefix/bin/python" -c 'import torch; print(torch.version.cuda)')
if ! nvcc --version | grep --fixed-strings "release $cuda," > /dev/null; then
    echo "install_gpu.sh: torch is built for CUDA $cuda, but nvcc is not: $(nvcc --version | grep release)" >&2
    exit 1
fi

# What is compiled here must find the torch that it will run with: no isolation. Of DeepSpeed's kernels only what runs on
# every node: those for the CPU are compiled for this machine's.
DS_BUILD_FUSED_ADAM=1 "${pip[@]}" --no-build-isolation --no-binary deepspeed deepspeed
APEX_CPP_EXT=1 APEX_CUDA_EXT=1 "${pip[@]}" --no-build-isolation --no-deps "git+https://github.com/NVIDIA/apex@$apex"
"${pip[@]}" "${source}[official,s3,kuberay]"
"$prefix/bin/python" -c 'import torch, amp_C; from apex.optimizers import FusedAdam'
"$prefix/bin/attvae" --version
