#!/usr/bin/env bash
# Submits a script of this folder with the site's settings and the options that its config asks for:
#
#     slurm/submit.sh slurm/rlkd_70b_to_8b.sh model.optim.lr=2e-6 [--sbatch=--time=30 ...]
#
# A wrong config is refused here, before anything is submitted.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# The login node's own Python: needs hydra-core, omegaconf and rich, no torch.
python=${RLKD_LOGIN_PYTHON:-}
# shellcheck source=slurm/site.sh
source slurm/site.sh
if [[ -z $python ]]; then
  python=$(if [[ $RLKD_RUNTIME == none ]]; then echo "$RLKD_PYTHON"; else echo python3; fi)
fi
# As in common.sh: the checkout, not an installed copy of it; the secret the job inherits.
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
if [[ -z ${RLKD_GSRM_TOKEN:-} ]]; then
  RLKD_GSRM_TOKEN=$(head -c 32 /dev/urandom | base64)
  export RLKD_GSRM_TOKEN RLKD_TOKEN_MADE=yes
fi
exec "$python" -m rlkd_nemo.launch.slurm submit "$@"
