#!/usr/bin/env bash
# The references of a task or a prompt file, decomposed once ever, before a run needs them; goes on where it stopped.
#
#     slurm/submit.sh slurm/decompose_references.sh --config-name=CONFIG gsrm.reference_store=references/openr1
#
#SBATCH --job-name=rlkd_70b_to_8b
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@600
#SBATCH --time=0-12:00:00
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=64
#SBATCH --gpus-per-node=8
#SBATCH --mem=0
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}"
# shellcheck source=slurm/common.sh
source slurm/common.sh
rlkd_job decompose rlkd_70b_to_8b "$@"
