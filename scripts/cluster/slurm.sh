#!/usr/bin/env bash
# Workers of one study as a Slurm array: one a task, as many at once as the array allows.
#
# Make the study first, where the databases can be reached; this trains nothing itself:
#   study run RECIPE --data DATA --workers 0 --threads 4 --storage ... --tracking-uri ... --checkpoint-dir SHARED
# then:
#   export SKIPREC_STORAGE=postgresql+psycopg://me@db/optuna SKIPREC_TRACKING_URI=http://mlflow:5000
#   export SKIPREC_CHECKPOINT_DIR=/shared/skiprec      # every node sees it
#   sbatch --array=0-15 scripts/cluster/slurm.sh STUDY
# The password comes from ~/.pgpass, PGPASSFILE or PGPASSWORD, never from the command line.
#
#SBATCH --job-name=skiprec
#SBATCH --array=0-7
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=4
#SBATCH --time=12:00:00
# A worker needs seconds to give its cell back: it is told a minute before its time is over, or when it is preempted.
#SBATCH --signal=TERM@60
#SBATCH --requeue
#SBATCH --open-mode=append
# One worker a GPU: add --gres=gpu:1, and --device cuda below.
set -euo pipefail

study_name=${1:?usage: sbatch slurm.sh STUDY}
: "${SKIPREC_STORAGE:?the address of the database of Optuna}"
: "${SKIPREC_TRACKING_URI:?the address of the MLflow server}"
: "${SKIPREC_CHECKPOINT_DIR:?a folder that all nodes share}"

# exec: signals reach srun, which hands them on to the worker.
exec srun study worker "$study_name" --storage "$SKIPREC_STORAGE" --tracking-uri "$SKIPREC_TRACKING_URI" \
    --checkpoint-dir "$SKIPREC_CHECKPOINT_DIR" --mlruns "$SKIPREC_CHECKPOINT_DIR/mlruns" --device auto
