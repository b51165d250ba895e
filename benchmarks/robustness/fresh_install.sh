#!/usr/bin/env bash
# From nothing to plans: install into a fresh virtual environment, then convert a few phantoms and plan them with
# nnU-Net's own commands. Prints what each step took. Everything lies in a temporary folder, removed at the end.
#
#     benchmarks/robustness/fresh_install.sh [PYTHON]
set -euo pipefail
repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
timed() { local started=$SECONDS; "$@"; echo "### $(basename "$1") ${*:2}: $((SECONDS - started)) s"; }

"${1:-python3}" -m venv env
timed env/bin/pip install --quiet "$repository"
export nnUNet_raw=$work/raw nnUNet_preprocessed=$work/preprocessed nnUNet_results=$work/results
mkdir raw preprocessed results
env/bin/python -c "
from pathlib import Path
from braintum.conversion.sources.phantoms import write_figshare_phantoms
write_figshare_phantoms(Path('phantoms'), n_patients=6, slices_per_patient=2)"
timed env/bin/braintum_convert figshare phantoms -d 511 -np 1
timed env/bin/nnUNetv2_extract_fingerprint -d 511 -np 1
timed env/bin/nnUNetv2_plan_experiment -d 511 -pl BrainTumPlanner
