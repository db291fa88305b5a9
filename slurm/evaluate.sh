#!/usr/bin/env bash
# mean@k of a checkpoint on held-out problems; writes evaluation.json.
#
#     slurm/submit.sh slurm/evaluate.sh --config-name=CONFIG model.restore_from_path=.../checkpoints/step-000100 \
#       exp_manager.exp_dir=results/evaluation
#
#SBATCH --job-name=rlad_8b_to_1.7b_logic
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@600
#SBATCH --time=0-12:00:00
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --gpus-per-node=8
#SBATCH --mem=0
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}"
# shellcheck source=slurm/common.sh
source slurm/common.sh
rlkd_job evaluate rlad_8b_to_1.7b_logic "$@"
