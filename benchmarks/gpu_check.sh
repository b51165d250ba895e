#!/usr/bin/env bash
# What only a GPU can answer, in one call: the whole job with torch.compile and autocast, stock against joint prediction
# on the same checkpoint, and the time of an iteration against stock nnU-Net with and without torch.compile.
#
#     benchmarks/gpu_check.sh [DEVICE] [WORK_FOLDER]      DEVICE: cuda (default) or cpu, to try the script itself
#
# Run it in an environment where braintum and nnU-Net are installed.
set -euo pipefail
device=${1:-cuda}
work=${2:-$(mktemp -d)}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

braintum_demo --device "$device" --out "$work/demo" --epochs 5 --iterations 50 --spacing 0.98
export nnUNet_raw=$work/demo/nnUNet_raw nnUNet_preprocessed=$work/demo/nnUNet_preprocessed
export nnUNet_results=$work/demo/nnUNet_results

echo "=== stock and joint prediction"
nnUNetv2_predict -i "$work/demo/held_out" -o "$work/stock" -d 999 -c 2d -f 0 -p BrainTumLightPlans \
    -tr nnUNetTrainerMultiTask -device "$device" --disable_progress_bar
python "$here/compare_masks.py" "$work/stock" "$work/demo/predictions" || true # under autocast: the share is the answer

echo "=== time of an iteration"
nnUNetv2_plan_and_preprocess -d 999 -pl BrainTumPlanner -c 2d -npfp 2 -np 2 --no_pbar
for plans in BrainTumLightPlans BrainTumPlans; do
    for compile in true false; do
        echo "torch.compile: $compile"
        nnUNet_compile=$compile python "$here/iteration_time.py" -d 999 -p "$plans" -device "$device" -n 50 -warmup 10
    done
done
