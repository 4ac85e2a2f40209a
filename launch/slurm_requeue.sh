# shellcheck shell=bash
# How a job in Slurm ends when its program was stopped as asked; slurm.sbatch and sweep.sbatch source it.
#   ATTVAE_MAX_REQUEUES   how often the job comes back (20)

ask() { # a command of Slurm, whose controller may be busy
    "$@" || { sleep 10 && "$@"; } || { sleep 20 && "$@"; }
}

requeue() { # SCRIPT CODE: has the job come back, unless it was cancelled; else ends with the code
    local script=$1 code=$2 state requeued=${SLURM_RESTART_COUNT:-0} limit=${ATTVAE_MAX_REQUEUES:-20}
    if ! state=$(ask squeue --noheader --jobs "$SLURM_JOB_ID" --format %T); then
        echo "$script: stopped, and not requeued: squeue does not say whether the job was cancelled." \
            "The same sbatch command goes on." >&2
        exit "$code"
    fi
    # Else cancelled: a requeue would bring it back. Or at its end, and Slurm requeues it itself.
    [[ $state == RUNNING ]] || exit "$code"
    if ((requeued >= limit)); then
        echo "$script: stopped, and not requeued: that was done $requeued times (ATTVAE_MAX_REQUEUES=$limit)." \
            "The same sbatch command goes on." >&2
        exit "$code"
    fi
    echo "$script: stopped; requeue $((requeued + 1)) of at most $limit" >&2
    ask scontrol requeue "$SLURM_JOB_ID"
}
