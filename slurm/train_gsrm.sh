#!/usr/bin/env bash
# The GSRM itself: a model taught to decompose reasoning into steps, by supervised training; the published recipe.
#
#     sbatch slurm/train_gsrm.sh gsrm.training.data=data/gsrm.jsonl
#
#SBATCH --job-name=gsrm_7b
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@600
#SBATCH --time=0-04:00:00
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=2
#SBATCH --cpus-per-task=12
#SBATCH --gpus-per-node=2
#SBATCH --mem=0
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}"
# shellcheck source=slurm/common.sh
source slurm/common.sh
rlkd_job train_gsrm gsrm_7b "$@"
