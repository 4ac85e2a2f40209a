#!/bin/sh
# Needs a GPU, python3 with torch and Triton, and no other package: everything else is in this checkout. Under 8 minutes.
#
#   benchmarks/gpu.sh [--rehearse] [FOLDER]     PYTHON=... for another than python3
#
# Writes gpu_HARDWARE_DATE.json into FOLDER, by default benchmarks/results. A part that fails, or takes longer than its
# limit, is in the file with its reason and with the rows it got to; then the exit code is 1, and the file, as until all
# parts are done, gpu_HARDWARE_DATE_incomplete.json. Exit code 2: it cannot begin. --rehearse: tiny, on the CPU; the
# figures mean nothing.
set -eu

refuse() {
    echo "gpu.sh: $1" >&2
    exit 2
}

rehearse=
if [ "${1:-}" = --rehearse ]; then
    rehearse=--rehearse
    shift
fi
checkout=$(cd "$(dirname "$0")/.." && pwd)
folder=${1:-$checkout/benchmarks/results}
if mkdir -p "$folder" && probe=$(mktemp "$folder/.gpu.XXXXXX"); then
    rm "$probe"
    folder=$(cd "$folder" && pwd)
else
    refuse "cannot write into $folder: name another folder, as in gpu.sh /tmp/results"
fi
python=$(command -v "${PYTHON:-python3}") || refuse "there is no ${PYTHON:-python3}: name a Python that has torch with PYTHON=..."
case $python in
    /*) ;;
    *) python=$PWD/$python ;;
esac
cd "$checkout"

code=0
# shellcheck disable=SC2086  # empty: no argument
name=$(timeout --kill-after 5 25 "$python" - $rehearse <<'NAME'
import re
import sys
from datetime import date

import torch

if sys.argv[1:]:
    hardware = "rehearsal"
elif torch.cuda.is_available():
    hardware = re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-")
else:
    raise SystemExit(3)
print(f"gpu_{hardware}_{date.today()}")
NAME
) || code=$?
case $code in
    0) ;;
    3) refuse "torch finds no GPU here: --rehearse runs the same lines without one" ;;
    124 | 137) refuse "$python needs more than 25 s to import torch and find the GPU" ;;
    *) refuse "$python has no torch: name one that has with PYTHON=..." ;;
esac
export PYTHONPATH=".${PYTHONPATH:+:$PYTHONPATH}"
# Where these are not installed, a few lines stand in for them.
"$python" -c 'import jaxtyping, pydantic' 2>/dev/null || PYTHONPATH="benchmarks/bare:$PYTHONPATH"

parts=$(mktemp -d)
trap 'rm -rf "$parts"' EXIT

# part NAME SECONDS SCRIPT [ARGUMENT...]
part() {
    part=$1 limit=$2
    shift 2
    [ -z "$rehearse" ] || limit=600
    echo "gpu.sh: $part, up to $limit s" >&2
    code=0
    timeout --kill-after 5 "$limit" "$python" "$@" >"$parts/$part.jsonl" 2>"$parts/$part.err" || code=$?
    echo "$code" >"$parts/$part.code"
    [ "$code" = 0 ] || tail -n 5 "$parts/$part.err" >&2
    all_good=0
    written=$("$python" benchmarks/gpu_results.py "$parts" "$folder/$name.json") || all_good=$?
}

# 420 s, 20 s to kill what does not end, at most 30 s before: under 8 minutes.
# shellcheck disable=SC2086
{
    part eager 160 benchmarks/gpu_step.py eager $rehearse
    part optimizers 40 benchmarks/gpu_step.py optimizers $rehearse
    part depth_attention 85 benchmarks/gpu_attention.py $rehearse
    part compiled 135 benchmarks/gpu_step.py compiled $rehearse
}
echo "$written"
exit "$all_good"
