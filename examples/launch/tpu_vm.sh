#!/bin/bash
# One run on all hosts of a TPU slice: `NFS=ADDRESS:/SHARE BUCKET=NAME examples/launch/tpu_vm.sh TPU ZONE`,
# from a checkout and a machine with gcloud. The processes find each other by the metadata of the slice.
# The run folder is on a share that all hosts can write to (Filestore, over NFS); prepared images are read from a
# mounted bucket, because a bucket has neither locks nor atomic renames.
set -euo pipefail

TPU=${1:?name of the TPU VM} ZONE=${2:?its zone}
: "${NFS:?ADDRESS:/SHARE of a Filestore instance}" "${BUCKET:?a bucket with prepared images in imagenet/}"
CONFIG=${CONFIG:-configs/imagenet_resnet50.py}

on_all() {
  gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all --command="$1"
}

gcloud compute tpus tpu-vm scp --recurse . "$TPU":cnnjax --zone="$ZONE" --worker=all
on_all "pip install --quiet './cnnjax[tpu]'"
on_all "mkdir -p shared bucket
  mountpoint -q shared || sudo mount -t nfs '$NFS' shared
  mountpoint -q bucket || gcsfuse --implicit-dirs -o ro '$BUCKET' bucket"
on_all "exec cnnjax train --distributed --workdir=shared/runs/resnet50 --config='cnnjax/$CONFIG' \
  --config.data.name=records:bucket/imagenet"
