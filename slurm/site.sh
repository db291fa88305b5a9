# shellcheck shell=bash
# The one file to edit for a cluster. Every script of this folder reads it inside the job, slurm/submit.sh before
# submission. What is already set in the environment wins: `RLKD_RUNTIME=none sbatch slurm/...` works too.

# Who pays and where it runs: read by sbatch itself, from these variables (`source slurm/site.sh` before a plain sbatch).
# export SBATCH_ACCOUNT=my_account
# export SBATCH_PARTITION=gpu
# export SBATCH_QOS=normal

# Where Python and the package come from, by one variable:
#   none       the nodes themselves, RLKD_PYTHON below
#   pyxis      srun --container-image (enroot): images as docker://... or .sqsh files
#   apptainer  apptainer exec: images as .sif files
export RLKD_RUNTIME=${RLKD_RUNTIME:-none}

# Images by the names that layouts use (layout.*.image); containers/README.md says how each is made. Unused with `none`.
export RLKD_IMAGE_trainer=${RLKD_IMAGE_trainer:-$HOME/images/rlkd-trainer.sqsh}
export RLKD_IMAGE_vllm=${RLKD_IMAGE_vllm:-$HOME/images/rlkd-vllm.sqsh}
export RLKD_IMAGE_cpu=${RLKD_IMAGE_cpu:-$HOME/images/rlkd-cpu.sqsh}
# NeMo-Aligner's, for slurm/aligner_rlkd.sh alone: NVIDIA's as it is.
export RLKD_IMAGE_aligner=${RLKD_IMAGE_aligner:-nvcr.io/nvidia/nemo:25.02}

# What containers see beside the checkout: host:container pairs with commas, for models, data and results.
export RLKD_MOUNTS=${RLKD_MOUNTS:-}

# Python: the checkout's own environment on bare nodes, else the container's.
if [[ $RLKD_RUNTIME == none ]]; then
  export RLKD_PYTHON=${RLKD_PYTHON:-.venv/bin/python}
else
  export RLKD_PYTHON=${RLKD_PYTHON:-python3}
fi

# The network between nodes: an interface for rendezvous and gloo (`ip -brief address`), adapters for NCCL and UCX
# (`ibstat -l`). Unset: the libraries look for themselves.
# export RLKD_NETWORK_INTERFACE=ib0
# export RLKD_INFINIBAND=mlx5_0,mlx5_1,mlx5_2,mlx5_3

# Modules and paths of the site go here:
# module load cuda apptainer
