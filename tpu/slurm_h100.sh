#!/usr/bin/env bash
# An experiment on nodes of 8 H100 each, a process a node.
#   sbatch --account my-project --nodes 2 tpu/slurm_h100.sh run pld --preset paper
# From a clone on a disk that all nodes share, with uv on the PATH. A job that is
# preempted or requeued goes on with its run.
#SBATCH --job-name jaxkd
#SBATCH --nodes 1
#SBATCH --ntasks-per-node 1
#SBATCH --gpus-per-node 8
#SBATCH --cpus-per-task 64
#SBATCH --time 24:00:00
#SBATCH --requeue
#SBATCH --signal TERM@120
#SBATCH --output runs/slurm-%j.log
set -euo pipefail

[[ $# -gt 0 ]] || { echo "say what to run, such as: run pld --preset paper" >&2; exit 2; }
FOLDER=${FOLDER:-runs/slurm-${SLURM_JOB_ID:?start this with sbatch}}
uv sync --locked --extra tfds
uv pip install 'jax[cuda12]'
exec srun --kill-on-bad-exit=1 uv run --no-sync python tpu/launch.py "$@" --folder "$FOLDER"
