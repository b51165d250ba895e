#!/usr/bin/env bash
# What only a GPU can answer: correctness first, then times against stock nnU-Net on the same machine.
#
#     benchmarks/gpu_check.sh [DEVICE] [--dry] [WORK_FOLDER] [PART …]
#
# DEVICE is cuda (default) or cpu. --dry takes tiny sizes: it shows that every part starts, measures and reports.
# A part takes 4 minutes at most. Its figures are in WORK_FOLDER/PART/ (JSON or CSV, and its log) once it is through:
# then it is skipped, so the same command goes on where it was interrupted. Remove the folder to repeat the part. At the
# end all figures are printed. Parts, in this order; default: all.
#     correctness                       the ready model's masks and classes, plain, under autocast, compiled, against the CPU
#     steps_2d, steps_3d                training step and memory of nnUNetTrainerMultiTask against nnUNetTrainer
#     augmentation_2d, augmentation_3d  device against host, then samples a second and step times with either, and stock
#     prediction_2d, prediction_3d      braintum_predict, in bulk and exact, against nnUNetv2_predict
#     graphs_2d, graphs_3d              the network alone: eager, compiled, with CUDA graphs
#     folds_2d, folds_3d                five folds one after the other, and as one batch
#     memory                            memory of the planner's presets against what they plan
#     networks                          cost of every network
#     blocks                            masked attention and depthwise convolutions
#
# Run it in an environment where braintum with its test extra and nnU-Net are installed.
set -uo pipefail
PARTS=(correctness steps_2d steps_3d augmentation_2d augmentation_3d prediction_2d prediction_3d graphs_2d graphs_3d
    folds_2d folds_3d memory networks blocks)
LIMIT=240 # seconds
device=cuda dry=
case "${1:-}" in cuda | cpu) device=$1 && shift ;; esac
case "${1:-}" in --dry) dry=1 && shift ;; esac
work=${1:-$(mktemp -d)}
parts=("${@:2}")
[ ${#parts[@]} -gt 0 ] || parts=("${PARTS[@]}")
for part in "${parts[@]}"; do
    [[ " ${PARTS[*]} " == *" $part "* ]] || { echo "no part '$part'; there are: ${PARTS[*]}" >&2 && exit 2; }
done
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
model=$here/../inference/ready/models/figshare-tumour-types

if [ -n "$dry" ]; then
    flat="-patch 32 32 -batch 1 -n 2" deep="-patch 16 16 16 -batch 1 -channels 4 -n 2"
    batches="--tiny -n 2 -warmup 1 -workers 1" slices=3 volume="-features 2 -shape 64 96 96" rounds=1 memory="-presets BRAINTUMNET"
    networks="-patch 32 32 -batch 2 -n 1 -tr nnUNetTrainerMultiTask" attention="-repeats 1 -features 32"
    depthwise="-batch 1 -n 1 -dimensions 2"
else
    flat="-patch 512 512 -batch 12 -n 50" deep="-patch 128 128 128 -batch 2 -channels 4 -n 50"
    batches="-n 50 -workers 4" slices=300 volume="-features 32" rounds=1 memory=""
    networks="-patch 256 256 -batch 12 -n 10" attention="" depthwise=""
fi
export here device model flat deep batches slices volume rounds memory networks attention depthwise

correctness() { python "$here/gpu_parts.py" correctness -device $device -o "$out/figures.json"; }
steps_2d() { python "$here/gpu_parts.py" steps -device $device $flat -o "$out/figures.json"; }
steps_3d() { python "$here/gpu_parts.py" steps -device $device $deep -o "$out/figures.json"; }
augmentation_2d() { python "$here/networks/augmentation_speed.py" -device $device -c 2d $batches -o "$out/figures.json"; }
augmentation_3d() { python "$here/networks/augmentation_speed.py" -device $device -c 3d_fullres $batches -o "$out/figures.json"; }
prediction_2d() {
    python "$here/gpu_parts.py" slices -n $slices -o "$out/images" &&
        python "$here/prediction/against_peers.py" -m "$model" -f all -i "$out/images" -device $device -n $rounds -o "$out/figures.json" &&
        rm -r "$out/images"
}
prediction_3d() {
    python "$here/prediction/against_peers.py" --untrained-3d $volume -device $device -n $rounds -o "$out/figures.json"
}
graphs_2d() { python "$here/gpu_parts.py" graphs -device $device $flat -o "$out/figures.json"; }
graphs_3d() { python "$here/gpu_parts.py" graphs -device $device $deep -o "$out/figures.json"; }
folds_2d() { python "$here/gpu_parts.py" folds -device $device $flat -o "$out/figures.json"; }
folds_3d() { python "$here/gpu_parts.py" folds -device $device $deep -o "$out/figures.json"; }
memory() { python "$here/networks/memory_calibration.py" check -device $device $memory -o "$out"; }
networks() { python "$here/networks/network_cost.py" -device $device $networks -o "$out"; }
blocks() {
    python "$here/networks/attention_growth.py" -device $device $attention &&
        python "$here/networks/depthwise_convolutions.py" -device $device $depthwise
}
export -f "${PARTS[@]}"

failed=()
mkdir -p "$work"
for part in "${parts[@]}"; do
    if [ -d "$work/$part" ]; then
        echo "=== $part: done before"
        continue
    fi
    echo "=== $part"
    export out=$work/$part.partial
    rm -rf "$out" && mkdir "$out"
    start=$SECONDS
    if timeout $LIMIT bash -c "set -o pipefail; $part 2>&1 | tee '$out/log.txt'"; then
        mv "$out" "$work/$part"
        echo "=== $part: $((SECONDS - start)) s"
    else
        failed+=("$part")
        echo "=== $part: FAILED after $((SECONDS - start)) s; its log is $out/log.txt" >&2
    fi
done
python "$here/gpu_parts.py" table "$work" || failed+=(table)
echo "figures are in $work"
[ ${#failed[@]} -eq 0 ] || { echo "failed: ${failed[*]}" >&2 && exit 1; }
