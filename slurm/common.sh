# shellcheck shell=bash
# What all scripts of this folder do: look, start services, wait until they answer, start the work, and end together.
# Numbers come from `python -m rlkd_nemo.launch.slurm`; here is only what the shell must do itself: processes and signals.
set -euo pipefail

# shellcheck source=slurm/site.sh
source slurm/site.sh

# The checkout, not the copy of it in an image or an environment.
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"

# The secret of this job's GSRM server and its clients; one of your own stays.
if [[ -z ${RLKD_GSRM_TOKEN:-} ]]; then
  RLKD_GSRM_TOKEN=$(head -c 32 /dev/urandom | base64)
  export RLKD_GSRM_TOKEN RLKD_TOKEN_MADE=yes
fi

# Likewise of its models, where they listen to other nodes; nobody outside of the job needs it.
if [[ -z ${RLKD_VLLM_KEY:-} ]]; then
  RLKD_VLLM_KEY=$(head -c 32 /dev/urandom | base64)
fi
export RLKD_VLLM_KEY

declare -A rlkd_pids=()    # component -> its srun
rlkd_work=                 # the step whose end is the job's, once it is its turn
rlkd_asked=                # SIGUSR1 came
rlkd_ended='' rlkd_code=0  # what `rlkd_first` found

# rlkd_inside IMAGE: how a command gets into the container; sets rlkd_options (of srun) and rlkd_prefix (of the command).
rlkd_inside() {
  local image="RLKD_IMAGE_$1"
  rlkd_options=() rlkd_prefix=()
  case $RLKD_RUNTIME in
    none) ;;
    pyxis)
      rlkd_options=(
        "--container-image=${!image}" "--container-mounts=$PWD:$PWD${RLKD_MOUNTS:+,$RLKD_MOUNTS}"
        "--container-workdir=$PWD" --no-container-mount-home
      ) ;;
    apptainer)
      rlkd_prefix=(apptainer exec --nv --bind "$PWD${RLKD_MOUNTS:+,$RLKD_MOUNTS}" --pwd "$PWD" "${!image}") ;;
    *) rlkd_fail 2 "RLKD_RUNTIME=$RLKD_RUNTIME; wanted none, pyxis or apptainer (slurm/site.sh)" ;;
  esac
}

# rlkd_tool ARGUMENTS...: our Python for a moment, beside the batch script. Sets rlkd_command, for callers to run.
rlkd_tool() {
  rlkd_inside trainer
  rlkd_command=("${rlkd_prefix[@]}" "$RLKD_PYTHON" "$@")
  if [[ $RLKD_RUNTIME == pyxis ]]; then
    rlkd_command=(srun --overlap --nodes=1 --ntasks=1 "${rlkd_options[@]}" "$RLKD_PYTHON" "$@")
  fi
}

rlkd_say() { echo "[$(date +%H:%M:%S)] $*"; }

rlkd_fail() { # CODE MESSAGE
  rlkd_say "$2" >&2
  exit "$1"
}

# rlkd_start NAME ARGUMENTS...: one component, in the background, with the plan's numbers.
rlkd_start() {
  local name=$1
  shift
  local -n options="RLKD_SRUN_$name" command="RLKD_COMMAND_$name" image="RLKD_USES_$name"
  rlkd_inside "$image"
  # Until a process can hear SIGUSR1 it ignores it (it would die of it); it is asked again by the file RLKD_ENDS/stop.
  # shellcheck disable=SC2016  # expanded by the inner shell
  srun --kill-on-bad-exit=0 "${options[@]}" --job-name="$name" --input=none \
    --output="$RLKD_LOGS/$name.$RLKD_ATTEMPT.%t.log" --open-mode=append "${rlkd_options[@]}" \
    bash -c 'trap "" USR1; exec "$@"' "$name" "${rlkd_prefix[@]}" "$RLKD_PYTHON" "${command[@]}" "$@" &
  rlkd_pids[$name]=$!
}

# rlkd_first NAMES...: wait until one of them has ended; the first named counts first.
rlkd_first() {
  local name
  while true; do
    for name in "$@"; do
      if ! kill -0 "${rlkd_pids[$name]}" 2>/dev/null; then
        rlkd_code=0
        wait "${rlkd_pids[$name]}" || rlkd_code=$?
        rlkd_ended=$name
        unset "rlkd_pids[$name]"
        return
      fi
    done
    wait -n || true # a child's end, or a signal, whose trap has then run
    if [[ -n $rlkd_asked && -z $rlkd_work ]]; then
      rlkd_fail 1 "told to stop before the work began; nothing is lost, but the time limit may be too short"
    fi
  done
}

rlkd_last_lines() { # NAME
  local log logs=("$RLKD_LOGS/$1.$RLKD_ATTEMPT".*.log)
  for log in "${logs[@]:0:8}"; do
    if [[ -s $log ]]; then
      echo "--- the last lines of $log"
      tail -n 25 "$log"
    fi
  done >&2
}

rlkd_died() { # NAME CODE: a service that ended by itself
  rlkd_last_lines "$1"
  rlkd_fail 1 "the component $1 ended with code $2 while it was needed; the job ends with it"
}

rlkd_never_answered() { # NAME: a service that runs, but was not ready in time
  rlkd_last_lines "$1"
  rlkd_fail 1 "the component $1 did not answer within $RLKD_READY_S s (gsrm.server.startup_s); the job ends with it"
}

rlkd_on_usr1() {
  rlkd_asked=yes
  if [[ -n $rlkd_work ]]; then
    rlkd_say "SIGUSR1: $rlkd_work saves at the end of its step"
    touch "$RLKD_ENDS/stop"
    if [[ -n ${rlkd_pids[$rlkd_work]:-} ]]; then
      kill -USR1 "${rlkd_pids[$rlkd_work]}" 2>/dev/null || true # srun hands it on to every task
    fi
  fi
}

# However the script ends: no process of it stays.
rlkd_clean_up() {
  trap '' TERM USR1
  local pid
  for pid in "${rlkd_pids[@]}"; do
    kill -TERM "$pid" 2>/dev/null || true # srun then ends its tasks at once
  done
  wait
}

rlkd_stop_services() {
  local name
  for name in "${!rlkd_pids[@]}"; do
    kill -USR1 "${rlkd_pids[$name]}" 2>/dev/null || true # the keeper lets them finish
  done
  for name in "${!rlkd_pids[@]}"; do
    wait "${rlkd_pids[$name]}" || true
  done
  rlkd_pids=()
}

# Newer Slurms tell the end of the job's time themselves; lifecycle/wall_clock.py reads this variable.
rlkd_end_time() {
  local end
  if [[ -z ${SLURM_JOB_END_TIME:-} ]]; then
    end=$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%e | head -n 1) || end=
    # To `date` nothing at all is last midnight.
    if [[ -n $end ]] && end=$(date --date="$end" +%s 2>/dev/null); then
      export SLURM_JOB_END_TIME=$end
    fi
  fi
}

rlkd_nodes() {
  local variable
  for variable in "${!SLURM_JOB_NODELIST@}"; do
    scontrol --oneliner show node "${!variable}"
  done
}

# rlkd_job KIND CONFIG [OVERRIDES...]: all of it. KIND is one of rlkd_nemo/launch/slurm/jobs.py.
rlkd_job() {
  if [[ -z ${SLURM_JOB_ID:-} ]]; then
    exec slurm/submit.sh "slurm/${0##*/}" "${@:3}" # started by hand: the doctor looks, and then it is submitted
  fi
  local kind=$1 arguments=("--config-name=$2" "${@:3}") plan service code
  trap rlkd_clean_up EXIT
  trap 'exit 143' TERM
  trap rlkd_on_usr1 USR1

  rlkd_tool -m rlkd_nemo.launch.slurm doctor "$kind" "${arguments[@]}"
  "${rlkd_command[@]}" || exit "$?"

  rlkd_end_time
  rlkd_tool -m rlkd_nemo.launch.slurm plan "$kind" "${arguments[@]}"
  plan=$(rlkd_nodes | "${rlkd_command[@]}") || exit "$?"
  eval "$plan"
  rm -rf "$RLKD_ENDS"
  mkdir -p "$RLKD_ENDS"
  arguments+=("${RLKD_OVERRIDES[@]}")
  rlkd_say "job $SLURM_JOB_ID, attempt $RLKD_ATTEMPT: ${RLKD_SERVICES[*]} $RLKD_MAIN; logs in $RLKD_LOGS"
  if [[ $kind == serve_gsrm && -n ${RLKD_TOKEN_MADE:-} ]]; then
    rlkd_say "note: the server's secret was made up, so that no client knows it; export RLKD_GSRM_TOKEN and submit again"
  fi

  for service in "${RLKD_SERVICES[@]}"; do
    rlkd_start "$service" "${arguments[@]}"
    local -n ready="RLKD_READY_$service"
    rlkd_tool -m rlkd_nemo.launch.slurm wait "$ready" --deadline-s "$RLKD_READY_S"
    "${rlkd_command[@]}" &
    rlkd_pids[waiter]=$!
    rlkd_first waiter "${RLKD_SERVICES[@]}"
    if [[ $rlkd_ended != waiter ]]; then
      rlkd_died "$rlkd_ended" "$rlkd_code"
    elif ((rlkd_code)); then
      rlkd_never_answered "$service"
    fi
    rlkd_say "$service answers at $ready"
  done

  rlkd_work=$RLKD_MAIN # from here on a signal is for it, even before it has begun
  if [[ -n $rlkd_asked ]]; then
    touch "$RLKD_ENDS/stop"
  fi
  RLKD_REPORTS=$RLKD_ENDS rlkd_start "$RLKD_MAIN" "${arguments[@]}"
  rlkd_first "$RLKD_MAIN" "${RLKD_SERVICES[@]}"
  if [[ $rlkd_ended != "$RLKD_MAIN" ]]; then
    rlkd_died "$rlkd_ended" "$rlkd_code"
  fi
  code=0
  rlkd_tool -m rlkd_nemo.launch.slurm ends "$RLKD_ENDS" --tasks "$RLKD_TASKS" --code "$rlkd_code"
  "${rlkd_command[@]}" || code=$?
  case $code in
    0) rlkd_say "$RLKD_MAIN is done" ;;
    3) rlkd_say "$RLKD_MAIN has saved and stopped" ;;
    *) rlkd_last_lines "$RLKD_MAIN" ;;
  esac
  rlkd_stop_services
  if ((code == 3)); then
    rlkd_requeue
  fi
  exit "$code"
}

rlkd_requeue() {
  trap 'exit 0' TERM # which Slurm sends as soon as it has taken the job back
  if scontrol requeue "$SLURM_JOB_ID"; then
    rlkd_say "given back to Slurm, which will start it again"
    exit 0
  fi
  rlkd_fail 3 "Slurm does not take the job back; submit the same command again, it goes on where it stopped"
}
