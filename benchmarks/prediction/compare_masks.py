"""Compare two folders of segmentations voxel for voxel: share of equal voxels, and how many files are identical.

    python benchmarks/prediction/compare_masks.py FOLDER_A FOLDER_B [ENDING]

Exit code 1 where a file is missing or a voxel differs.
"""

import sys
from pathlib import Path

import numpy as np
from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_file_ending


def main() -> int:
    first, second = Path(sys.argv[1]), Path(sys.argv[2])
    ending = sys.argv[3] if len(sys.argv) > 3 else ".nii.gz"
    names = sorted({file.name for folder in (first, second) for file in folder.glob(f"*{ending}")})
    if not names:
        print(f"no *{ending} in {first} or {second}")
        return 1
    reader = determine_reader_writer_from_file_ending(ending, str(next(first.glob(f"*{ending}"))), True, False)()
    voxels = equal = identical = foreground = 0
    for name in names:
        if not ((first / name).is_file() and (second / name).is_file()):
            print(f"{name} is in one folder only")
            return 1
        a, b = (reader.read_seg(str(folder / name))[0] for folder in (first, second))
        same = int(np.count_nonzero(a == b)) if a.shape == b.shape else 0
        voxels, equal, identical = voxels + a.size, equal + same, identical + (same == a.size)
        foreground += int(np.count_nonzero(a))
    print(
        f"{identical} of {len(names)} files identical, {100 * equal / voxels:.6f} % of {voxels} voxels equal, "
        f"{foreground} of them foreground"
    )
    return 0 if equal == voxels else 1


if __name__ == "__main__":
    sys.exit(main())
