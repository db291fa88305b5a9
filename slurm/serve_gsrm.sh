#!/usr/bin/env bash
# Structure rewards as a service of its own, for trainers elsewhere (gsrm.service.urls); told to stop, it finishes what it
# took on and is started again in the next allocation. Export RLKD_GSRM_TOKEN first: its clients need the same secret.
#
#     slurm/submit.sh slurm/serve_gsrm.sh --config-name=CONFIG
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
rlkd_job serve_gsrm rlkd_70b_to_8b "$@"
