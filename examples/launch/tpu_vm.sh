#!/bin/bash
# One run on all hosts of a TPU slice: `NFS=ADDRESS:/SHARE BUCKET=NAME examples/launch/tpu_vm.sh TPU ZONE`,
# from a checkout and a machine with gcloud. The processes find each other by the metadata of the slice.
# The run folder is on a share that all hosts can write to (Filestore, over NFS); prepared images are read from a
# mounted bucket, because a bucket has neither locks nor atomic renames. The hosts need gcsfuse; the Python of their
# images is often older than 3.11, so uv makes an environment of its own.
set -euo pipefail

TPU=${1:?name of the TPU VM} ZONE=${2:?its zone}
: "${NFS:?ADDRESS:/SHARE of a Filestore instance}" "${BUCKET:?a bucket with prepared images in imagenet/}"
CONFIG=${CONFIG:-configs/imagenet_resnet50.py}

on_all() {
  gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all --command="$1"
}

gcloud compute tpus tpu-vm scp --recurse . "$TPU":cnnjax --zone="$ZONE" --worker=all
on_all "set -e
  sudo apt-get update -q && sudo apt-get install -qy nfs-common
  PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --quiet --user uv
  python3 -m uv venv --quiet --allow-existing --python 3.12 venv
  python3 -m uv pip install --quiet --python venv './cnnjax[tpu]'"
on_all "set -e
  mkdir -p shared bucket
  mountpoint -q shared || sudo mount -t nfs '$NFS' shared
  test -d shared/runs || sudo mkdir -m 777 shared/runs  # a new share belongs to root
  mountpoint -q bucket || gcsfuse --implicit-dirs -o ro '$BUCKET' bucket"
on_all "exec venv/bin/cnnjax train --distributed --workdir=shared/runs/resnet50 --config='cnnjax/$CONFIG' \
  --config.data.name=records:bucket/imagenet"
