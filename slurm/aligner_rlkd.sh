#!/usr/bin/env bash
# RLKD inside NeMo-Aligner: the reward server on the first node, the actor on all. See docs/aligner.md.
#
#     sbatch --nodes=2 slurm/aligner_rlkd.sh [hydra overrides of the actor]       from the root of the checkout
#
# Settings, by environment: STUDENT and TEACHER (.nemo), DATA (train.jsonl, validation.jsonl, problems.jsonl), TOKENIZER
# (its directory), RESULTS; REWARD_ARGS (hydra overrides of the reward server). Runtime, image (RLKD_IMAGE_aligner), mounts
# and Python are slurm/site.sh's; without RLKD_MOUNTS the folders just named are mounted.
#
# After TRAIN_TIME of training it saves and ends; submitted again, it goes on. Shorter than --time, which saves nothing.
#SBATCH --job-name=aligner-rlkd
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --time=04:00:00
set -euo pipefail

: "${SLURM_JOB_ID:?submit this with sbatch; the doctor knows nothing of the settings of NeMo-Aligner}"
: "${STUDENT:?path of the student .nemo}" "${TEACHER:?path of the teacher .nemo}" "${DATA:?folder of the jsonl files}"
: "${TOKENIZER:?directory of the tokenizer}" "${RESULTS:?folder for checkpoints and logs}"
cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}"
# shellcheck source=slurm/common.sh
source slurm/common.sh
reward_port=${REWARD_PORT:-5555}
if [[ -z $RLKD_MOUNTS ]]; then
  seen=("$DATA" "$RESULTS" "$TOKENIZER" "$(dirname "$STUDENT")" "$(dirname "$TEACHER")")
  RLKD_MOUNTS=$(printf '%s\n' "${seen[@]}" | sort -u | sed 's/.*/&:&/' | paste -sd,)
fi
first_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
read -r -a reward_args <<<"${REWARD_ARGS:-}"

# What rlkd_start reads; the numbers are those of the #SBATCH lines.
# shellcheck disable=SC2034  # by the names of the components
{
  RLKD_LOGS=$RESULTS/logs RLKD_ATTEMPT=$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}
  RLKD_USES_reward_server=aligner RLKD_USES_actor=aligner
  RLKD_SRUN_reward_server=(--overlap --nodes=1 --ntasks=1 --gpus=0 "--nodelist=$first_node")
  RLKD_COMMAND_reward_server=(examples/aligner/serve_gsrm_reward_model.py)
  # A rank that fails ends the others, which would wait for it.
  RLKD_SRUN_actor=(--overlap --kill-on-bad-exit=1)
  RLKD_COMMAND_actor=(examples/aligner/train_gpt_rlkd_actor.py)
}
mkdir -p "$RLKD_LOGS"
trap rlkd_clean_up EXIT
trap 'exit 143' TERM
trap 'rlkd_say "SIGUSR1: not heard here; the actor saves after TRAIN_TIME"' USR1

rlkd_start reward_server inference.port="$reward_port" tokenizer.type="$TOKENIZER" \
  task.path="$DATA/problems.jsonl" gsrm.reference_store="$RESULTS/gsrm_references" hydra.run.dir="$RESULTS/gsrm" \
  "${reward_args[@]}"
# Lightning reads rank and world from Slurm; the client waits for the server (remote_rm.ready_timeout_s).
rlkd_start actor trainer.num_nodes="$SLURM_JOB_NUM_NODES" trainer.devices="$SLURM_NTASKS_PER_NODE" \
  pretrained_checkpoint.restore_from_path="$STUDENT" teacher.restore_from_path="$TEACHER" \
  "model.data.data_prefix={train: [$DATA/train.jsonl], validation: [$DATA/validation.jsonl], test: [$DATA/validation.jsonl]}" \
  remote_rm.reward_model.ip="$first_node" remote_rm.reward_model.port="$reward_port" \
  exp_manager.explicit_log_dir="$RESULTS" exp_manager.max_time_per_run="${TRAIN_TIME:-00:03:30:00}" "$@"
rlkd_say "job $SLURM_JOB_ID, attempt $RLKD_ATTEMPT: reward_server actor; logs in $RLKD_LOGS"

rlkd_first actor reward_server
if [[ $rlkd_ended != actor ]]; then
  rlkd_died "$rlkd_ended" "$rlkd_code"
elif ((rlkd_code)); then
  rlkd_last_lines actor
fi
exit "$rlkd_code"
