#!/usr/bin/env bash
# One node of sweep.sbatch: Ray runs here, and on the first node the sweep. All of it ends with this script.
#   launch/slurm_ray_node.sh HEAD PORT SEARCH [key=value ...] [--out DIR]
# Not by `ray symmetric-run`, which ends by `ray stop`: that acts on all Rays of the machine, also of other jobs.
set -uo pipefail
head=$1 port=$2
shift 2
folder=/tmp/attvae-ray-$SLURM_JOB_ID-$SLURM_NODEID # short: the names of Ray's sockets have at most 107 bytes
stopped='' ray='' sweep=''

# Slurm's signals go to all processes of the node. SIGTERM ends Ray and the sweep by itself; SIGUSR1 is for the ranks.
trap 'stopped=1; [[ -z $sweep ]] || kill -TERM "$sweep" 2>/dev/null' TERM USR1
trap 'end_ray; rm -rf "$folder"' EXIT

start_ray() { # options of ray start, beside those that all nodes have
    local address
    if ! address=$(python -c 'import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.connect((sys.argv[1], 1))
print(s.getsockname()[0])' "$head" 2>/dev/null); then
        echo "slurm_ray_node.sh: on $SLURMD_NODENAME the first node's name, $head, has no address" >&2
        exit 1
    fi
    rm -rf "$folder" # of this job before it was requeued
    mkdir -m 700 "$folder" || exit 1
    # Worker ports from 0 on are any free ones: another Ray may share the node. Next to nothing goes through the store.
    (
        trap '' USR1
        export RAY_worker_niceness=0 # 15 by default: a trial is a training like any other
        exec ray start --block --disable-usage-stats --node-ip-address "$address" --temp-dir "$folder" \
            --num-cpus "${SLURM_CPUS_ON_NODE:-1}" --num-gpus "${SLURM_GPUS_ON_NODE:-0}" \
            --min-worker-port 0 --max-worker-port 0 --object-store-memory 200000000 "$@"
    ) >"$folder/start.log" 2>&1 &
    ray=$!
}

end_ray() {
    [[ -n $ray ]] || return
    kill -TERM "$ray" 2>/dev/null
    wait_for "$ray"
}

wait_for() { # a process, whatever signals come meanwhile; its exit code
    local code
    while wait "$1"; code=$?; kill -0 "$1" 2>/dev/null; do :; done
    return "$code"
}

ranks_are_saving() { # of this job; they are in sessions of their own
    local pid
    for pid in $(pgrep --full -- '-m attvae.cli train '); do
        ! grep --quiet --no-messages --null-data "^SLURM_JOB_ID=$SLURM_JOB_ID\$" "/proc/$pid/environ" || return 0
    done
    return 1
}

head_answers() {
    (: <>"/dev/tcp/$head/$port") 2>/dev/null
}

ray_runs() { # else says why not
    ! kill -0 "$ray" 2>/dev/null || return 0
    [[ -n $stopped ]] || tail -n 20 "$folder/start.log" >&2
    return 1
}

if ((SLURM_NODEID)); then
    trap '' USR1
    for ((second = 0; second < 300; second++)); do
        [[ -z $stopped ]] || exit 0
        ! head_answers || break
        sleep 1
    done
    start_ray --address "$head:$port"
    while head_answers || { sleep 5 && head_answers; }; do # until the sweep is over
        ray_runs || break
        sleep 1
    done
    end_ray
    while ranks_are_saving; do sleep 1; done
    exit 0 # the first node has the word
fi

start_ray --head --port "$port" --include-dashboard false
until head_answers; do
    ray_runs || exit $((stopped ? 75 : 1))
    sleep 1
done
python launch/wait_for_ray.py "$head:$port" "$SLURM_JOB_NUM_NODES" || exit $((stopped ? 75 : 1))
[[ -z $stopped ]] || exit 75
(
    trap '' USR1
    exec launch/sweep.sh "$@" --address "$head:$port"
) &
sweep=$!
[[ -z $stopped ]] || kill -TERM "$sweep"
wait_for "$sweep"
code=$?
while ranks_are_saving; do sleep 1; done
# A sweep that is asked before it listens ends by the signal, or as Ray then does.
[[ -z $stopped || $code == [02] ]] || code=75
exit "$code"
