#!/usr/bin/env bash
# RLKD: a 70B teacher, an 8B student, the structure reward from GSRM servers beside them; one heterogeneous job.
#
#     slurm/rlkd_70b_to_8b.sh model.optim.lr=2e-6 trainer.num_nodes=2     the doctor looks, and then it is submitted
#     sbatch slurm/rlkd_70b_to_8b.sh model.optim.lr=2e-6      from the root of the checkout; the options below as they are
#
#SBATCH --job-name=rlkd_70b_to_8b
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@600
#SBATCH --time=0-12:00:00
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --gpus-per-node=8
#SBATCH --mem=0
#SBATCH hetjob
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
rlkd_job train rlkd_70b_to_8b "$@"
