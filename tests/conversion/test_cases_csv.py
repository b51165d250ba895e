"""cases.csv, the class schema, the summary table, and atomic writing."""

import gzip
import json

import pytest

from braintum.conversion.building.summary import CaseReport, summary_table
from braintum.conversion.files.atomic import atomic_path, remove_partial_files, write_json_atomic
from braintum.conversion.format.cases import COLUMNS, Case, ClassSchema, find_cases_file, read_cases, write_cases

HEADER = "case,class,patient,group,split,plane,spacing,source\n"
CASES = [
    Case("a_1", "glioma", "p1", "g1", "train", "axial", "0.49 0.49", "x/1.mat"),
    Case("a_2", "", 'p "2", ö', "", "test"),
]


def test_cases_survive_writing_and_reading(tmp_path):
    write_cases(tmp_path / "cases.csv", CASES)
    assert list(read_cases(tmp_path / "cases.csv", ["glioma"]).values()) == CASES
    assert (tmp_path / "cases.csv").read_text(encoding="utf-8").startswith(HEADER)
    assert ",".join(COLUMNS) + "\n" == HEADER


def test_columns_in_any_order_with_byte_order_mark_and_blanks(tmp_path):
    path = tmp_path / "cases.csv"
    path.write_text(
        "extra,source,class,case,patient,group,split,plane,spacing\r\n1,s, glioma ,c1,,,,,\r\n",
        encoding="utf-8-sig",
    )
    assert read_cases(path) == {"c1": Case("c1", "glioma", split="train", source="s")}


@pytest.mark.parametrize("content", ["case,class\na,glioma\n", "class;case\nglioma;a\n"])
def test_case_and_class_are_enough_with_commas_or_semicolons(tmp_path, content):
    path = tmp_path / "cases.csv"
    path.write_text(content, encoding="utf-8")
    assert read_cases(path, ["glioma"]) == {"a": Case("a", "glioma")}


@pytest.mark.parametrize(
    ("content", "line", "words"),
    [
        ("case,patient,group,split,plane,spacing,source\n", 1, "missing column class"),
        ("", 1, "missing column case, class"),
        (HEADER + "a,glioma,,,train,,,\na,glioma,,,train,,,\n", 3, "'a' occurs twice"),
        (HEADER + "a,gliom,,,train,,,\n", 2, "unknown class 'gliom' of case 'a'; known: meningioma, glioma"),
        (HEADER + "a,glioma,,,tests,,,\n", 2, "split 'tests' of case 'a'; possible: train, test"),
        (HEADER + ",glioma,,,train,,,\n", 2, "column case is empty"),
        (HEADER + "a,glioma\n", 2, "as many values"),
        (HEADER + "a,glioma,,,train,,,,,\n", 2, "as many values"),
    ],
)
def test_faults_name_file_line_and_fault(tmp_path, content, line, words):
    path = tmp_path / "cases.csv"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError) as caught:
        read_cases(path, ["meningioma", "glioma"])
    assert f"{path}, line {line}: " in str(caught.value)
    assert words in str(caught.value)


def test_file_in_another_encoding_is_named(tmp_path):
    path = tmp_path / "cases.csv"
    path.write_bytes((HEADER + "a,gliöm,,,train,,,\n").encode("latin-1"))
    with pytest.raises(ValueError, match="UTF-8"):
        read_cases(path)


@pytest.mark.parametrize("cases", [[Case("a"), Case("a")], [Case("")]])
def test_bad_case_names_are_not_written(tmp_path, cases):
    with pytest.raises(ValueError, match="empty or occurs twice"):
        write_cases(tmp_path / "cases.csv", cases)
    assert list(tmp_path.iterdir()) == []


def test_cases_file_is_looked_for_in_preprocessed_then_raw(tmp_path):
    preprocessed, raw = tmp_path / "preprocessed", tmp_path / "raw"
    raw.mkdir()
    with pytest.raises(FileNotFoundError) as caught:
        find_cases_file(preprocessed, raw)
    assert all(words in str(caught.value) for words in (str(preprocessed), str(raw), "braintum_convert"))
    write_cases(raw / "cases.csv", CASES)
    assert find_cases_file(preprocessed, raw) == raw / "cases.csv"
    preprocessed.mkdir()
    write_cases(preprocessed / "cases.csv", CASES)
    assert find_cases_file(preprocessed, raw) == preprocessed / "cases.csv"


@pytest.mark.parametrize("negative", [None, "no_tumor"])
def test_schema_survives_dataset_json(negative):
    schema = ClassSchema(("glioma", "no_tumor"), negative)
    dataset_json = json.loads(json.dumps({"classification": schema.to_json()}))
    assert ClassSchema.from_dataset_json(dataset_json) == schema
    assert ("negative_class" in dataset_json["classification"]) == (negative is not None)


def test_schema_index_and_absence():
    schema = ClassSchema(("glioma", "pituitary"))
    assert [schema.index(name) for name in schema.class_names] == [0, 1]
    with pytest.raises(ValueError, match="'menin' is not one of glioma, pituitary"):
        schema.index("menin")
    assert ClassSchema.from_dataset_json({"labels": {}}) is None


@pytest.mark.parametrize(
    "entry",
    [
        [],
        {},
        {"class_names": "ab"},
        {"class_names": ["a"]},
        {"class_names": ["a", "a"]},
        {"class_names": ["a", " "]},
        {"class_names": ["a", 1]},
        {"class_names": ["a", ["b"]]},
        {"class_names": ["a", "b"], "negative_class": "c"},
    ],
)
def test_bad_schema_is_refused(entry):
    with pytest.raises(ValueError, match=r"classification.*dataset\.json"):
        ClassSchema.from_dataset_json({"classification": entry})


def test_atomic_path_keeps_the_ending_and_replaces_at_the_end(tmp_path):
    target = tmp_path / "image.nii.gz"
    target.write_text("old")
    with atomic_path(target) as partial:
        assert partial.parent == tmp_path
        assert partial.name.startswith(".")
        assert partial.name.endswith("image.nii.gz")
        partial.write_bytes(gzip.compress(b"new"))
        assert target.read_text(encoding="utf-8") == "old"
    assert gzip.decompress(target.read_bytes()) == b"new"
    assert list(tmp_path.iterdir()) == [target]


def test_atomic_path_leaves_the_old_file_on_failure(tmp_path):
    target = tmp_path / "file.json"
    write_json_atomic(target, {"a": "ö"})
    before = target.read_bytes()
    with pytest.raises(KeyboardInterrupt), atomic_path(target) as partial:
        partial.write_text("half")
        raise KeyboardInterrupt
    with pytest.raises(TypeError):
        write_json_atomic(target, {"a": object()})
    assert target.read_bytes() == before
    assert list(tmp_path.iterdir()) == [target]


def test_partial_files_of_a_killed_process_are_removed(tmp_path):
    (tmp_path / ".partial-0123-a.nii.gz").touch()
    (tmp_path / "a.nii.gz").touch()
    remove_partial_files(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a.nii.gz"]


def test_summary_table_by_hand():
    reports = [
        CaseReport(Case("a", "glioma", "p1", spacing="0.49 0.49"), (512, 512), 10.0),
        CaseReport(Case("b", "glioma", "p1", spacing="0.49 0.49"), (512, 512), 30.0),
        CaseReport(Case("c", "", "p2", spacing="0.98 0.98"), (256, 256), None),
    ]
    lines = [line.split("  ") for line in summary_table(reports, ["meningioma", "glioma"]).splitlines()]
    rows = {line[0].strip(): [cell.strip() for cell in line[1:] if cell.strip()] for line in lines}
    assert rows["meningioma"] == ["0", "–", "–", "–", "–"]
    assert rows["glioma"] == ["2", "1", "20 [10–30] mm²", "0.49×0.49 mm", "512×512"]
    assert rows["unknown"] == ["1", "1", "–", "0.98×0.98 mm", "256×256"]
    assert rows["all"][:3] == ["3", "2", "20 [10–30] mm²"]
    assert rows["all"][4] == "512×512 (2), 256×256 (1)"


def test_optional_columns_are_there_where_a_case_has_a_value(tmp_path):
    cases = [Case("a", slice="3", position="-7.5", date="2024-02-01"), Case("b")]
    write_cases(tmp_path / "cases.csv", cases)
    header = HEADER.strip() + ",slice,position,date\n"
    assert (tmp_path / "cases.csv").read_text(encoding="utf-8").startswith(header)
    assert list(read_cases(tmp_path / "cases.csv").values()) == cases
    write_cases(tmp_path / "cases.csv", [Case("a", slice="3")])
    assert (tmp_path / "cases.csv").read_text(encoding="utf-8").startswith(HEADER.strip() + ",slice\n")
