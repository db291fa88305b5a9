#!/usr/bin/env bash
# RLKD inside NeMo-Aligner: the reward server on the first node, the actor on all. See docs/aligner.md.
#
#   sbatch --nodes=2 --account=... --partition=... slurm/aligner_rlkd.sh [hydra overrides of the actor]
#
# Settings, by environment: STUDENT and TEACHER (.nemo), DATA (train.jsonl, validation.jsonl, problems.jsonl), TOKENIZER
# (its directory), RESULTS; IMAGE (container) and MOUNTS; REWARD_ARGS (hydra overrides of the reward server).
#
# After TRAIN_TIME of training it saves and ends; submitted again, it goes on. Shorter than --time, which saves nothing.
#SBATCH --job-name=aligner-rlkd
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --time=04:00:00
set -euo pipefail

: "${STUDENT:?path of the student .nemo}" "${TEACHER:?path of the teacher .nemo}" "${DATA:?folder of the jsonl files}"
: "${TOKENIZER:?directory of the tokenizer}" "${RESULTS:?folder for checkpoints and logs}"
IMAGE=${IMAGE:-nvcr.io/nvidia/nemo:25.02}
REWARD_PORT=${REWARD_PORT:-5555}
CODE=${SLURM_SUBMIT_DIR:-$PWD}
TRAIN_TIME=${TRAIN_TIME:-00:03:30:00}
seen=("$CODE" "$DATA" "$RESULTS" "$TOKENIZER" "$(dirname "$STUDENT")" "$(dirname "$TEACHER")")
MOUNTS=${MOUNTS:-$(printf '%s\n' "${seen[@]}" | sort -u | sed 's/.*/&:&/' | paste -sd,)}

first_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
container=(--container-image="$IMAGE" --container-mounts="$MOUNTS" --container-workdir="$CODE" --export="ALL,PYTHONPATH=$CODE")
read -r -a reward_args <<<"${REWARD_ARGS:-}"
mkdir -p "$RESULTS"

srun --overlap --nodes=1 --ntasks=1 --gpus=0 --nodelist="$first_node" --output="$RESULTS/reward_server.log" "${container[@]}" \
  python examples/aligner/serve_gsrm_reward_model.py inference.port="$REWARD_PORT" tokenizer.type="$TOKENIZER" \
  task.path="$DATA/problems.jsonl" gsrm.reference_store="$RESULTS/gsrm_references" hydra.run.dir="$RESULTS/gsrm" \
  "${reward_args[@]}" &
reward_server=$! actor=
trap 'kill "$reward_server" $actor 2>/dev/null || true; wait' EXIT

# Lightning reads rank and world from Slurm; the client waits for the server (remote_rm.ready_timeout_s).
# A rank that fails ends the others, which would wait for it.
srun --overlap --kill-on-bad-exit=1 --output="$RESULTS/actor_%t.log" "${container[@]}" \
  python examples/aligner/train_gpt_rlkd_actor.py \
  trainer.num_nodes="$SLURM_JOB_NUM_NODES" trainer.devices="$SLURM_NTASKS_PER_NODE" \
  pretrained_checkpoint.restore_from_path="$STUDENT" teacher.restore_from_path="$TEACHER" \
  "model.data.data_prefix={train: [$DATA/train.jsonl], validation: [$DATA/validation.jsonl], test: [$DATA/validation.jsonl]}" \
  remote_rm.reward_model.ip="$first_node" remote_rm.reward_model.port="$REWARD_PORT" \
  exp_manager.explicit_log_dir="$RESULTS" exp_manager.max_time_per_run="$TRAIN_TIME" "$@" &
actor=$!

while kill -0 "$actor" 2>/dev/null && kill -0 "$reward_server" 2>/dev/null; do
  wait -n || true
done
if kill -0 "$actor" 2>/dev/null; then
  code=0
  wait "$reward_server" || code=$?
  tail -n 25 "$RESULTS/reward_server.log" >&2
  echo "the reward server ended with code $code while it was needed; the job ends with it" >&2
  exit 1
fi
wait "$actor"
