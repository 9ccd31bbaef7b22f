#!/bin/bash
# Runs a job on a Slurm allocation: a Ray cluster over its nodes, and the job submitted to it.
#
#   sbatch --nodes 2 --gpus-per-node 8 --cpus-per-task 64 --signal=B:TERM@600 jobs/submit.sh train CONFIG run.root=/shared/runs key=value …
#
# Ten minutes before its time is over (--signal), or on `scancel --batch --signal=TERM JOB`, the run writes a checkpoint and ends; the same
# command goes on from there. This folder, its .venv (or PYTHON) and run.root lie on a disk that all nodes share.
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
set -euo pipefail
[ $# -ge 2 ] || { sed -n '2,7s/^# \{0,1\}//p' "$0" >&2; exit 2; }

PATH="$(dirname "$(realpath -s "${PYTHON:-.venv/bin/python}")"):$PATH"
RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n') # who shares the nodes does not share the cluster
export PATH RAY_JOB_STOP_WAIT_TIME_S=540 RAY_AUTH_MODE=token RAY_AUTH_TOKEN
export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-$SLURM_CPUS_ON_NODE}" # srun does not take it over from sbatch
port=$((20000 + SLURM_JOB_ID % 10000))
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p) # not `head`, which breaks the pipe
address=$(srun --nodes 1 --ntasks 1 --nodelist "$head" hostname --ip-address | awk '{print $1}')
dashboard="http://$address:$((port + 1))"
no_proxy="127.0.0.1,localhost,$address,${no_proxy:-${NO_PROXY:-}}" # `ray job` would ask the dashboard through a proxy
export no_proxy NO_PROXY="$no_proxy"

# One step for the whole cluster: where Ray ends on a node, its task ends, and the others go on.
srun --ntasks "$SLURM_NNODES" --no-kill bash -c '
    if [ "$SLURM_PROCID" = 0 ]; then
        exec ray start --block --head --node-ip-address "$0" --port "$1" --dashboard-host "$0" --dashboard-port $(($1 + 1)) --temp-dir "/tmp/ray-$SLURM_JOB_ID" --num-cpus "$SRUN_CPUS_PER_TASK"
    fi
    until ray status --address "$0:$1" >/dev/null 2>&1; do sleep 1; done
    exec ray start --block --address "$0:$1" --num-cpus "$SRUN_CPUS_PER_TASK"' "$address" "$port" &
cluster=$!
trap 'kill "$cluster" 2>/dev/null; wait "$cluster" || true' EXIT

until python - "$address:$port" "$SLURM_NNODES" 2>/dev/null <<'PYTHON'
import sys, ray
ray.init(sys.argv[1])
sys.exit(sum(node["Alive"] for node in ray.nodes()) < int(sys.argv[2]))
PYTHON
do
    kill -0 "$cluster" 2>/dev/null || { echo "error: Ray did not start" >&2; exit 1; }
    sleep 2
done

job="slurm-$SLURM_JOB_ID-$(date +%s)" # another one where Slurm starts the script again
stopping=
trap 'stopping=yes; ray job stop --address "$dashboard" --no-wait "$job"' TERM
ray job submit --address "$dashboard" --submission-id "$job" --working-dir . -- python -m "jobs.$1" "${@:2}" &
submitted=$!
status=0
wait "$submitted" || status=$?
if [ "$stopping" ]; then # the signal ended the wait, not the job
    status=0
    wait "$submitted" || status=$?
fi
exit "$status"
