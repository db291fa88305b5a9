#!/usr/bin/env bash
# One component: trainer, sampler and scoring by rules on the same nodes (layout.gsrm.nodes=0); here RLAD's logic setting.
#
#     sbatch slurm/single_node.sh objective.alpha=0.3
#     slurm/submit.sh slurm/single_node.sh --config-name=CONFIG       another config, and its own options
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
rlkd_job train rlad_8b_to_1.7b_logic "$@"
