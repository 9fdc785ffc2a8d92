#!/usr/bin/env bash
# The whole study in small, on the shipped base: probe, buckets, fine-tuning, FID per bucket, report.
# Arguments are settings, for example: scripts/quickstart.sh output_dir=runs/mine
source "$(dirname "$0")/environment.sh"
diffusion-sft study configs/quickstart.yaml "$@"
