#!/usr/bin/env bash
# Builds an image from versions.env:  containers/build.sh trainer|vllm|cpu [options of the builder...]
#
#     BUILDER=podman TAG=registry.example.org/rlkd-trainer:1 containers/build.sh trainer --build-arg EXTRAS=gsrm,wandb
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=containers/versions.env
source containers/versions.env

name=${1:?which image: trainer, vllm or cpu}
shift
base="${name^^}_BASE"
arguments=(--build-arg "BASE=${!base:?no such image: $name}")
if [[ $name == cpu ]]; then
  arguments+=(--build-arg "TORCH_INDEX=$TORCH_INDEX")
fi
case ${BUILDER:-docker} in
  buildah) command=(buildah bud) ;;
  *) command=("${BUILDER:-docker}" build) ;;
esac
exec "${command[@]}" "${arguments[@]}" --file "containers/Dockerfile.$name" --tag "${TAG:-rlkd-$name}" "$@" .
