#!/usr/bin/env bash
# attvae sweep, which goes on with what its folder holds: for whatever starts the same command again.
#   launch/sweep.sh SEARCH [key=value ...] [--address RAY] [--out DIR]      # from the repository's top folder
set -euo pipefail
if [[ ${1:--} == -* ]]; then
    echo "sweep.sh: the search file comes first: launch/sweep.sh SEARCH [key=value ...] [--address RAY] [--out DIR]" >&2
    exit 2
fi
name=${1##*/}
out=runs/search/${name%.*}
previous=
for word in "$@"; do
    case $word in --out=*) out=${word#--out=} ;; esac
    [[ $previous != --out ]] || out=$word
    previous=$word
done
[[ ! -e $out/search.yaml ]] || set -- "$@" --resume
exec attvae sweep "$@"
