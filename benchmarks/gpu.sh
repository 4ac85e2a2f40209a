#!/bin/sh
# Needs a GPU, python3 with torch and Triton, and no other package: everything else is in this checkout. Under 8 minutes.
#
#   benchmarks/gpu.sh [--rehearse] [FOLDER]     PYTHON=... for another than python3
#
# Writes gpu_HARDWARE_DATE.json into FOLDER, by default benchmarks/results. A part that fails, or takes longer than its
# limit, is in the file with its reason and with the rows it got to; then the exit code is 1, and the file, as until all
# parts are done, gpu_HARDWARE_DATE_incomplete.json. Exit code 2: it cannot begin; 130, 143: it was interrupted or ended.
# --rehearse: tiny, on the CPU; the figures mean nothing.
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
name=$(timeout --foreground --kill-after 5 35 "$python" - $rehearse <<'NAME'
import re
import sys
from datetime import date

try:
    import torch
except ModuleNotFoundError:
    raise SystemExit(4)

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
    124 | 137) refuse "$python needs more than 35 s to import torch and find the GPU" ;;
    4) refuse "$python has no torch: name one that has with PYTHON=..." ;;
    *) refuse "torch cannot be imported by $python, as it says above" ;;
esac
export PYTHONPATH=".${PYTHONPATH:+:$PYTHONPATH}"
# Where these are not installed, a few lines stand in for them.
"$python" -c 'import jaxtyping, pydantic' 2>/dev/null || PYTHONPATH="benchmarks/bare:$PYTHONPATH"

parts=$(mktemp -d)
in_part=
# shellcheck disable=SC2329  # called by the traps
# stop EXIT_CODE: nothing goes on using the GPU. The timeout command passes the signal on, and kills what ignores it.
stop() {
    if [ -n "$in_part" ] && [ -n "${!:-}" ]; then
        kill "$!" 2>/dev/null || true
        wait "$!" || true
    fi
    exit "$1"
}
trap 'rm -rf "$parts"' EXIT
trap 'stop 130' INT
trap 'stop 143' TERM

# part NAME SECONDS SCRIPT [ARGUMENT...]
part() {
    part=$1 limit=$2
    shift 2
    [ -z "$rehearse" ] || limit=600
    echo "gpu.sh: $part, up to $limit s" >&2
    code=0
    in_part=yes
    # In the background, so that a signal ends the waiting for it.
    timeout --foreground --kill-after 5 "$limit" "$python" "$@" >"$parts/$part.jsonl" 2>"$parts/$part.err" &
    wait "$!" || code=$?
    in_part=
    echo "$code" >"$parts/$part.code"
    [ "$code" = 0 ] || tail -n 5 "$parts/$part.err" >&2
    all_good=0
    written=$("$python" benchmarks/gpu_results.py "$parts" "$folder/$name.json") || all_good=$?
}

# 410 s, 20 s to kill what does not end, at most 40 s before: under 8 minutes.
# shellcheck disable=SC2086
{
    part eager 160 benchmarks/gpu_step.py eager $rehearse
    part optimizers 40 benchmarks/gpu_step.py optimizers $rehearse
    part depth_attention 75 benchmarks/gpu_attention.py $rehearse
    part compiled 135 benchmarks/gpu_step.py compiled $rehearse
}
echo "$written"
exit "$all_good"
