#!/usr/bin/env bash
# Make a TPU slice, run an experiment on all its hosts, and delete the slice.
#   PROJECT=my-project BUCKET=my-bucket tpu/tpu_vm.sh run pld --preset paper
# Also: ZONE, TYPE (v5litepod-8, v5litepod-256, v5p-128, v6e-8, …), NAME, REPOSITORY.
set -euo pipefail

: "${PROJECT:?the Google Cloud project that pays}"
: "${BUCKET:?a bucket in the region of the slice, without gs://}"
ZONE=${ZONE:-us-west4-a}
TYPE=${TYPE:-v5litepod-8}
NAME=${NAME:-jaxkd-$TYPE}
REPOSITORY=${REPOSITORY:-$(git config --get remote.origin.url)}
[[ $# -gt 0 ]] || { echo "say what to run, such as: run pld --preset paper" >&2; exit 2; }
case $TYPE in
  v5litepod-*) RUNTIME=v2-alpha-tpuv5-lite ;;
  v5p-*) RUNTIME=v2-alpha-tpuv5 ;;
  v6e-*) RUNTIME=v2-alpha-tpuv6e ;;
  *) echo "TYPE=$TYPE: use v5litepod-N, v5p-N or v6e-N" >&2; exit 2 ;;
esac

gcloud() { command gcloud --project "$PROJECT" "$@"; }

gcloud compute tpus tpu-vm create "$NAME" --zone "$ZONE" \
  --accelerator-type "$TYPE" --version "$RUNTIME" --scopes cloud-platform
trap 'gcloud compute tpus tpu-vm delete "$NAME" --zone "$ZONE" --quiet' EXIT

# The bucket is mounted on every host: data below data/, runs below runs/.
printf -v COMMAND '%q ' "$@" --folder "/mnt/jaxkd/runs/$NAME"
gcloud compute tpus tpu-vm ssh "$NAME" --zone "$ZONE" --worker all --command "
  set -euo pipefail
  command -v gcsfuse || {
    echo 'deb https://packages.cloud.google.com/apt gcsfuse-jammy main' |
      sudo tee /etc/apt/sources.list.d/gcsfuse.list
    curl -fsSL https://packages.cloud.google.com/apt/doc/apt-key.gpg | sudo apt-key add -
    sudo apt-get update -q && sudo apt-get install -yq gcsfuse
  }
  sudo mkdir -p /mnt/jaxkd && sudo chown \$USER /mnt/jaxkd
  mountpoint -q /mnt/jaxkd || gcsfuse --implicit-dirs '$BUCKET' /mnt/jaxkd
  [[ -d jaxkd ]] || git clone '$REPOSITORY' jaxkd
  cd jaxkd
  curl -fsSL https://astral.sh/uv/install.sh | sh
  ~/.local/bin/uv sync --locked --extra tfds
  ~/.local/bin/uv pip install 'jax[tpu]'
  JAXKD_DATA=/mnt/jaxkd/data ~/.local/bin/uv run --no-sync python tpu/launch.py $COMMAND
"
