#!/usr/bin/env bash
# RLKD on one node: trainer, sampler and scoring by rules in one component (layout.gsrm.nodes=0).
#
#     sbatch slurm/single_node.sh objective.alpha=0.3
#     slurm/submit.sh slurm/single_node.sh --config-name=rlad_8b_to_1.7b_logic      another config, and its own options
#
#SBATCH --job-name=rlkd_demo
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@600
#SBATCH --time=0-04:00:00
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=2
#SBATCH --cpus-per-task=1
#SBATCH --mem=0
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?submit this with sbatch, from the root of the checkout}"
# shellcheck source=slurm/common.sh
source slurm/common.sh
rlkd_job train rlkd_demo "$@"
