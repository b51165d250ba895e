"""Our own parsers on whatever hypothesis thinks of: they return what they promise, or an error that names the file.

BRAINTUM_FUZZ_EXAMPLES=20000 makes a long run of it, at random; without it the examples are few, and always the same.
"""

import json
import os
import re
import string
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluation_data import CLASS_NAMES, class_result, dataset_json
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from natural_image_data import CIRCLE, ELLIPSE, POLYGON, save
from phantom_data import blob_slice
from tiny_training import _plans
from volume_data import volume_array, write_volume_file

from braintum.conversion.audit.audit_input import input_from_dataset
from braintum.conversion.building import via
from braintum.conversion.building.inspection import SourceError
from braintum.conversion.building.natural_images import GreyImage, unique_case_names
from braintum.conversion.building.source_tables import read_diagnoses, read_rows
from braintum.conversion.files.file_checks import DamagedFileError, check_file
from braintum.conversion.files.json_files import read_dataset_json
from braintum.conversion.format.calibration import Calibration
from braintum.conversion.format.cases import FOLDER_ENDINGS, Case, ClassSchema, read_cases, write_cases
from braintum.conversion.format.class_names import canonical_name, known_name
from braintum.conversion.format.label_names import named_labels, whole_tumour
from braintum.conversion.format.pairs import named_pairs
from braintum.conversion.sources import brats, brisc, folder
from braintum.evaluation.results.predictions import read_class_results
from braintum.inference.models.model_files import checked_configuration, read_plans
from braintum.inference.postprocessing import read_rules
from braintum.inference.prediction.input_files import find_cases
from braintum.inference.results.results import read_case_result

EXAMPLES = os.environ.get("BRAINTUM_FUZZ_EXAMPLES")
fuzz = settings(
    max_examples=int(EXAMPLES or 40),
    derandomize=EXAMPLES is None,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.filter_too_much],
)
numbers = st.one_of(st.integers(), st.integers(-3, 300), st.floats())
scalars = st.one_of(st.none(), st.booleans(), numbers, st.text(max_size=20))
json_values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@st.composite
def mutated(draw: Any, content: Any) -> Any:
    """JSON content with one to three values replaced or removed."""
    content = json.loads(json.dumps(content))
    for _ in range(draw(st.integers(1, 3))):
        parent: Any = None
        place: Any = content
        key: Any = None
        while isinstance(place, (dict, list)) and place and (parent is None or draw(st.booleans())):
            parent, key = place, draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
            place = parent[key]
        if parent is None:
            return draw(json_values)
        if draw(st.integers(0, 4)) == 0:
            del parent[key]
        else:
            parent[key] = draw(json_values)
    return content


def write_json(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def fails_with_name(error: BaseException, path: Path) -> None:
    assert path.name in str(error), f"{path.name} is not in: {error}"


texts = st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=20).map(str.strip)
cells = st.sampled_from(
    ["case", "class", "patient", "group", "split", "plane", "spacing", "source", "a", "", '"', "\n"]
)
tables = st.lists(st.lists(cells | texts, max_size=9).map(",".join), max_size=6).map("\n".join).map(str.encode)
header = b"case,class,patient,group,split,plane,spacing,source\n"


@fuzz
@given(content=st.one_of(st.binary(max_size=200), tables, tables.map(lambda table: header + table)))
def test_cases_csv(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "cases.csv"
    path.write_bytes(content)
    try:
        cases = read_cases(path, ("glioma", "no_tumor"))
    except ValueError as error:
        fails_with_name(error, path)
    else:
        assert all(name == case.case and name for name, case in cases.items())
        assert {case.tumour_class for case in cases.values()} <= {"", "glioma", "no_tumor"}


@fuzz
@given(
    rows=st.lists(
        st.tuples(texts, texts, texts, st.sampled_from(sorted(FOLDER_ENDINGS)), texts, texts, texts), max_size=5
    )
)
def test_cases_come_back_as_they_were_written(rows: list[tuple[str, ...]], tmp_path: Path) -> None:
    cases = [Case(f"c{number}", *row) for number, row in enumerate(rows)]
    write_cases(tmp_path / "cases.csv", cases)
    assert list(read_cases(tmp_path / "cases.csv").values()) == cases


@fuzz
@given(content=st.one_of(st.binary(max_size=200), tables))
def test_tables_of_sources(content: bytes, tmp_path: Path) -> None:
    for name, read in (
        ("manifest.csv", lambda path: brisc.read_manifest(path.parent)),
        ("table.csv", lambda path: read_diagnoses(path, "patient", "class", "patient")),
        ("name_mapping.csv", lambda path: brats.read_grades(path.parent)),
        ("rows.csv", read_rows),
    ):
        path = tmp_path / name
        path.write_bytes(content)
        try:
            read(path)
        except SourceError as error:
            fails_with_name(error, path)
        path.unlink()


@pytest.mark.slow
@fuzz
@given(content=st.one_of(json_values, mutated(dataset_json()), mutated(dataset_json({"background": 0, "a": [1, 2]}))))
def test_dataset_json(content: Any, tmp_path: Path) -> None:
    path = write_json(tmp_path / "dataset.json", content)
    try:
        read = read_dataset_json(path)
    except ValueError as error:
        fails_with_name(error, path)
        return
    labels = named_labels(read)
    assert whole_tumour(labels) is not None
    try:
        schema = ClassSchema.from_dataset_json(read)
    except ValueError as error:
        fails_with_name(error, path)
        return
    if schema is not None:
        assert ClassSchema.from_dataset_json({"classification": schema.to_json()}) == schema
        assert len(set(schema.class_names)) == len(schema.class_names) >= 2


@fuzz
@given(content=json_values)
def test_classification_entry(content: Any) -> None:
    try:
        schema = ClassSchema.from_dataset_json({"classification": content})
    except ValueError as error:
        assert "classification" in str(error)
    else:
        assert (schema is None) == (content is None)


CALIBRATION = {
    "temperature": 1.5,
    "folds": [0],
    "checkpoint": "checkpoint_final.pth",
    "fingerprints": {"0": "a"},
    "aggregation": "weighted",
    "mirroring": True,
    "num_cases": 9,
    "num_patients": None,
    "target_accuracy": None,
    "threshold": 0.5,
    "before": {"ece": 0.1},
    "after": {"ece": 0.1},
}


@fuzz
@given(content=st.one_of(json_values, mutated(CALIBRATION)))
def test_calibration_entry(content: Any) -> None:
    try:
        found = Calibration.from_dataset_json({"calibration": content})
    except ValueError as error:
        assert "calibration" in str(error)
    else:
        assert found is None or (found.temperature > 0 and found.verdict("glioma", 0.1) in ("glioma", "uncertain"))


REGIONS = [{"shape_attributes": shape, "region_attributes": {}} for shape in (POLYGON, ELLIPSE, CIRCLE)]
ANNOTATIONS = {
    "y0.jpg123": {"filename": "y0.jpg", "size": 123, "regions": REGIONS},
    "y1.jpg1": {
        "filename": "y1.jpg",
        "size": 1,
        "regions": {"0": {"shape_attributes": {"name": "rect", "x": 1, "y": 1}}},
    },
}


@fuzz
@given(content=st.one_of(json_values, mutated(ANNOTATIONS), mutated({"a": ANNOTATIONS["y0.jpg123"]})))
def test_via_outlines(content: Any, tmp_path: Path) -> None:
    path = write_json(tmp_path / "annotations.json", content)
    image = GreyImage(np.zeros((40, 50), np.uint8))
    try:
        for annotation in via.read_annotations(path):
            label_map = via.draw_regions(annotation, image)
            assert label_map.shape == image.pixels.shape and set(np.unique(label_map)) <= {0, 1}
    except SourceError as error:
        fails_with_name(error, path)


@fuzz
@given(content=st.binary(max_size=300) | st.sampled_from([b"[" * 10**5, b'{"a":' * 10**5, b"1" * 5000, b"\xff\xfe["]))
def test_files_that_are_no_json(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "some.json"
    path.write_bytes(content)
    for read in (read_dataset_json, via.read_annotations, read_rules, read_plans):
        with pytest.raises(ValueError) as caught:
            read(path)
        fails_with_name(caught.value, path)


@fuzz
@given(names=st.lists(st.text(max_size=30), max_size=12))
def test_case_names(names: list[str]) -> None:
    made = unique_case_names(names)
    assert len({name.lower() for name in made}) == len(made) == len(names)
    assert all(re.fullmatch(r"[A-Za-z0-9_-]+", name) for name in made)
    for name in names:
        assert re.fullmatch(r"[A-Za-z0-9._-]+", folder._case_name(name))
        assert brats.patient_of(name) or not name
        brisc.read_name(name)
        found = known_name(name)
        assert found is None or canonical_name(found) == found


stems = st.text(st.sampled_from(string.ascii_letters + string.digits + "_. ä名"), min_size=1, max_size=8)


@fuzz
@given(files=st.sets(st.tuples(stems, st.sampled_from(["", "_0000", "_0001", "_00", "_9999"])), min_size=1, max_size=8))
def test_input_files_of_prediction(files: set[tuple[str, str]], tmp_path_factory: Any) -> None:
    inputs = tmp_path_factory.mktemp("inputs")
    names = {f"case{stem}{channel}.png" for stem, channel in files}  # hidden files are no images
    for name in names:
        (inputs / name).touch()
    cases, failed = find_cases(inputs, ".png", 2)
    told = " ".join(failed.values())
    for name in names:  # every file is used, or its fault is told
        used = any(str(inputs / name) in paths for paths in cases.values())
        assert used or name.removesuffix(".png").rpartition("_")[0] in told or name in told
    assert all(len(paths) == 2 for paths in cases.values()) and not cases.keys() & failed.keys()


RULES = {
    "postprocessing_fns": ["remove_all_but_largest_component_from_segmentation"],
    "postprocessing_kwargs": [{"labels_or_regions": [[1, 2], 1]}],
}


@fuzz
@given(content=st.one_of(json_values, mutated(RULES)))
def test_postprocessing_rules(content: Any, tmp_path: Path) -> None:
    path = write_json(tmp_path / "postprocessing.json", content)
    try:
        assert all(isinstance(name, str) for name, _ in read_rules(path))
    except ValueError as error:
        fails_with_name(error, path)


@fuzz
@given(content=st.one_of(json_values, mutated(class_result("a", (0.2, 0.3, 0.5)))))
def test_class_results(content: Any, tmp_path: Path) -> None:
    (tmp_path / "classes").mkdir(exist_ok=True)
    path = write_json(tmp_path / "classes" / "a.json", content)
    schema = ClassSchema(CLASS_NAMES)
    failed: dict[str, str] = {}
    found = read_class_results(tmp_path, schema, failed)
    assert found.keys() | failed.keys() == {"a"} and not found.keys() & failed.keys()
    if "a" in found:
        assert sum(found["a"]["probabilities"].values()) > 0
    try:
        assert read_case_result(path, CLASS_NAMES)["case"] == "a"
    except ValueError as error:
        fails_with_name(error, path)


@fuzz
@given(content=st.one_of(json_values, mutated(_plans("2d"))))
def test_plans(content: Any, tmp_path: Path) -> None:
    path = write_json(tmp_path / "plans.json", content)
    try:
        configuration = checked_configuration(read_plans(path), "2d", path)
        assert 2 <= len(configuration.patch_size) <= 3
    except ValueError as error:
        fails_with_name(error, path)


@fuzz
@given(content=st.one_of(json_values, mutated([{"train": ["a"], "val": ["b"]}])))
def test_splits_that_are_audited(content: Any, tmp_path: Path) -> None:
    (tmp_path / "imagesTr").mkdir(exist_ok=True)
    for case in "ab":
        (tmp_path / "imagesTr" / f"{case}_0000.png").touch()
    write_json(tmp_path / "dataset.json", {**dataset_json(), "file_ending": ".png"})
    path = write_json(tmp_path / "splits_final.json", content)
    try:
        assert len(input_from_dataset(tmp_path).images) == 2
    except ValueError as error:
        fails_with_name(error, path)


@pytest.fixture(scope="module")
def images(tmp_path_factory: Any) -> dict[str, bytes]:
    """Whole files, unpacked where they can be."""
    place = tmp_path_factory.mktemp("images")
    found = {}
    for name in ("a.nii", "a.nii.gz", "a.nrrd", "a.mha"):
        found[name] = write_volume_file(place / name, volume_array(1).astype(np.float32)).read_bytes()
    found["a.png"] = save(place / "a.png", blob_slice(1)[1], content="PNG").read_bytes()
    return found


@fuzz
@given(
    name=st.sampled_from(["a.nii", "a.nii.gz", "a.nrrd", "a.mha", "a.png"]),
    changes=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=6),
    length=st.integers(0, 3000) | st.none(),
)
def test_image_files(
    name: str, changes: list[tuple[int, int]], length: int | None, images: dict[str, bytes], tmp_path: Path
) -> None:
    content = bytearray(images[name])
    for place, value in changes:
        content[place % len(content)] = value
    path = tmp_path / name
    path.write_bytes(content[:length])
    try:
        check_file(path)
    except DamagedFileError as error:
        fails_with_name(error, path)


def test_whole_image_files_pass(images: dict[str, bytes], tmp_path: Path) -> None:
    for name in ("a.nii", "a.nii.gz", "a.nrrd", "a.mha"):
        (tmp_path / name).write_bytes(images[name])
        check_file(tmp_path / name)


@fuzz
@given(lines=st.lists(st.text(max_size=12), max_size=3))
def test_options_of_folders(lines: list[str]) -> None:
    for parse in (lambda: named_pairs(lines, "--channel", "a=b"), lambda: folder._label_values(lines)):
        try:
            parsed = parse()
        except ValueError as error:
            assert "--" in str(error)
        else:
            assume(lines)
            assert len(parsed) == len(lines)
