#!/usr/bin/env bash
# What only a GPU can answer: correctness first, then times against stock nnU-Net on the same machine.
#
#     benchmarks/gpu_check.sh [DEVICE] [WORK_FOLDER] [PART …]      DEVICE: cuda (default) or cpu, to try the script itself
#
# Parts, in this order; default: all. The first makes the data and the model that the others use.
#     demo          the whole job with torch.compile and autocast; stock against joint prediction on the same checkpoint
#     augmentation  tests of the augmentation on the device, then samples a second against stock nnU-Net with 4 workers
#     iteration     time of an iteration against stock nnU-Net, with and without torch.compile
#     prediction    braintum_predict, in bulk and exact, against nnUNetv2_predict, 2-D and 3-D
#     networks      cost of every network; memory of the planner's presets; attention and depthwise convolutions
#
# Run it in an environment where braintum with its test extra and nnU-Net are installed.
set -euo pipefail
device=${1:-cuda}
work=${2:-$(mktemp -d)}
parts=("${@:3}")
[ ${#parts[@]} -gt 0 ] || parts=(demo augmentation iteration prediction networks)
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export nnUNet_raw=$work/demo/nnUNet_raw nnUNet_preprocessed=$work/demo/nnUNet_preprocessed
export nnUNet_results=$work/demo/nnUNet_results
model=$nnUNet_results/Dataset999_Demo/nnUNetTrainerMultiTask__BrainTumLightPlans__2d

demo() {
    braintum_demo --device "$device" --out "$work/demo" --epochs 5 --iterations 50 --spacing 0.98
    nnUNetv2_predict -i "$work/demo/held_out/images" -o "$work/stock" -d 999 -c 2d -f 0 -p BrainTumLightPlans \
        -tr nnUNetTrainerMultiTask -device "$device" --disable_progress_bar
    # under autocast: the share is the answer
    python "$here/prediction/compare_masks.py" "$work/stock" "$work/demo/predictions" || true
}

augmentation() {
    python -m pytest -q "$here/../tests/trainers/augmentation" "$here/../tests/trainers/test_device_batches.py"
    python "$here/networks/augmentation_speed.py" -device "$device"
}

iteration() {
    nnUNetv2_plan_and_preprocess -d 999 -pl BrainTumPlanner -c 2d -npfp 2 -np 2 --no_pbar
    for plans in BrainTumLightPlans BrainTumPlans; do
        for compile in true false; do
            echo "torch.compile: $compile"
            nnUNet_compile=$compile python "$here/networks/iteration_time.py" -d 999 -p "$plans" -device "$device" -n 50 -warmup 10
        done
    done
}

prediction() {
    python "$here/prediction/against_peers.py" -m "$model" -i "$work/demo/held_out/images" -device "$device"
    python "$here/prediction/against_peers.py" --untrained-3d -n 1 -device "$device"
}

networks() {
    python "$here/networks/network_cost.py" -patch 256 256 -batch 12 -device "$device" -n 10
    python "$here/networks/network_cost.py" -patch 256 256 -batch 12 -device "$device" -n 10 --compile
    python "$here/networks/memory_calibration.py" check -device "$device"
    python "$here/networks/attention_growth.py" -device "$device"
    python "$here/networks/depthwise_convolutions.py" -device "$device"
}

for part in "${parts[@]}"; do
    echo "=== $part"
    "$part"
done
