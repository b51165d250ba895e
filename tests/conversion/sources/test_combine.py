"""Combining converted data sets."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from natural_image_data import request, write_br35h, write_brisc, write_kaggle4
from phantom_data import digest, fail_at, write_source
from PIL import Image
from volume_data import verify

from braintum.conversion.building.inspection import SourceError
from braintum.conversion.building.raw_dataset import STATE_FILE
from braintum.conversion.cli import next_commands
from braintum.conversion.format.cases import Case, ClassSchema, read_cases, write_cases
from braintum.conversion.format.splits import check_splits
from braintum.conversion.sources import br35h, brisc, combine, figshare, kaggle4

BRISC, BR35H, KAGGLE, FIGSHARE = 601, 602, 603, 604
NAME = "Dataset700_All"


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """BRISC, Br35H, Kaggle and Figshare, converted once."""
    folder = tmp_path_factory.mktemp("converted")
    raw = folder / "raw"
    brisc.convert(request(write_brisc(folder / "brisc"), raw, BRISC, "BRISC"))
    br35h.convert(request(write_br35h(folder / "br35h"), raw, BR35H, "Br35H"))
    kaggle4.convert(request(write_kaggle4(folder / "kaggle"), raw, KAGGLE, "Kaggle4"))
    figshare.convert(request(write_source(folder / "figshare"), raw, FIGSHARE, "Figshare"))
    return raw


@pytest.fixture
def raw(converted, tmp_path):
    return Path(shutil.copytree(converted, tmp_path / "raw"))


def run(raw, *ids, channel_names=None, pool=False, **options):
    return combine.combine(request(raw, raw, 700, "All", **options), ids, channel_names, pool)


def change(raw, name, **values):
    path = raw / name / "dataset.json"
    content = {**json.loads(path.read_text(encoding="utf-8")), **values}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def pixels(path):
    with Image.open(path) as image:
        return np.array(image)


@pytest.mark.slow
def test_everything_of_two_data_sets_is_there(raw):
    result = run(raw, BRISC, KAGGLE, channel_names=["MRI"])
    folder = raw / NAME
    assert result.n_cases == 44
    content = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    assert content["channel_names"] == {"0": "MRI"}
    assert content["labels"] == {"background": 0, "tumour": 1, "ignore": 2}
    assert content["overwrite_image_reader_writer"] == "NaturalImage2DIO"
    assert (content["numTraining"], content["file_ending"]) == (32, ".png")
    assert content["licence"] == "CC BY 4.0; see the source"
    assert ClassSchema.from_dataset_json(content) == ClassSchema(
        ("glioma", "meningioma", "pituitary", "no_tumor"), "no_tumor"
    )
    cases = read_cases(folder / "cases.csv", content["classification"]["class_names"])
    for name, case in cases.items():
        end = "Ts" if case.split == "test" else "Tr"
        origin, _, old = case.source.partition("/")
        for kind, file in (("images", f"{name}_0000.png"), ("labels", f"{name}.png")):
            source = raw / origin / f"{kind}{end}" / file.replace(name, old)
            assert (folder / f"{kind}{end}" / file).read_bytes() == source.read_bytes()
    check_splits(json.loads((folder / "splits_final.json").read_text(encoding="utf-8")), cases.values())


def test_named_types_make_an_unspecific_tumour_unknown(raw, caplog):
    result = run(raw, BRISC, BR35H, channel_names=["MRI"])
    cases = read_cases(raw / NAME / "cases.csv")
    assert cases["br35h_y0"].tumour_class == ""
    assert cases["br35h_no7"].tumour_class == "no_tumor"
    assert "11 cases are of the class tumor" in caplog.text
    # three have no mask either: nothing is left to learn from
    assert "3 cases left out" in caplog.text
    assert result.n_cases == 20 + 12
    assert "br35h_y100" not in cases
    assert "unknown" in result.table


def test_groups_reach_across_data_sets(raw):
    image = raw / "Dataset603_Kaggle4" / "imagesTr" / "train_glioma_Tr-gl_0000_0000.png"
    source = raw / "Dataset601_BRISC" / "imagesTr" / "brisc2025_train_00002_gl_co_t1_0000.png"
    Image.fromarray(pixels(source)[:, ::-1]).save(image)
    mask = image.parent.parent / "labelsTr" / "train_glioma_Tr-gl_0000.png"
    Image.fromarray(np.full_like(pixels(source), 2)).save(mask)
    run(raw, BRISC, KAGGLE, channel_names=["MRI"])
    cases = read_cases(raw / NAME / "cases.csv")
    assert {name: case.group for name, case in cases.items() if case.group} == {
        "brisc2025_train_00002_gl_co_t1": "brisc2025_train_00002_gl_co_t1",
        "train_glioma_Tr-gl_0000": "brisc2025_train_00002_gl_co_t1",
        "brisc2025_test_00017_gl_ax_t1": "brisc2025_test_00017_gl_ax_t1",
        "brisc2025_train_00001_gl_ax_t1": "brisc2025_test_00017_gl_ax_t1",
    }
    check_splits(json.loads((raw / NAME / "splits_final.json").read_text(encoding="utf-8")), cases.values())


def second_figshare(raw):
    """A further data set with the same names, for other people."""
    folder = raw / "Dataset605_Figshare2"
    shutil.copytree(raw / "Dataset604_Figshare", folder)
    return folder


def test_equal_names_get_the_data_sets_name_and_equal_patients_stay_together(raw):
    second_figshare(raw)
    result = run(raw, FIGSHARE, 605)
    assert (result.n_cases, result.configuration) == (24, "2d")
    cases = read_cases(raw / NAME / "cases.csv")
    assert list(cases)[:1] + list(cases)[-1:] == ["Figshare2_figshare_0001", "Figshare_figshare_0012"]
    first, second = cases["Figshare_figshare_0001"], cases["Figshare2_figshare_0001"]
    assert (first.patient, second.patient) == ("Figshare_P000", "Figshare2_P000")
    assert first.group == second.group != ""
    assert first.spacing == "3.92 3.92"
    splits = json.loads((raw / NAME / "splits_final.json").read_text(encoding="utf-8"))
    check_splits(splits, cases.values())
    assert len(splits) == 5


def test_spacing_and_values_survive(raw):
    second_figshare(raw)
    run(raw, FIGSHARE, 605)
    for kind, name in (("imagesTr", "figshare_0003_0000.nii.gz"), ("labelsTr", "figshare_0003.nii.gz")):
        old = sitk.ReadImage(str(raw / "Dataset604_Figshare" / kind / name))
        new = sitk.ReadImage(str(raw / NAME / kind / f"Figshare2_{name}"))
        assert new.GetSpacing() == old.GetSpacing()
        np.testing.assert_array_equal(sitk.GetArrayFromImage(new), sitk.GetArrayFromImage(old))


def test_pictures_become_slices_beside_slices(raw, caplog):
    run(raw, FIGSHARE, KAGGLE, channel_names=["T1"], pool=True)
    folder = raw / NAME
    content = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    assert content["file_ending"] == ".nii.gz" and "overwrite_image_reader_writer" not in content
    assert content["labels"] == {"background": 0, "tumour": 1, "ignore": 2}
    assert "count as 1 mm" in caplog.text
    picture = pixels(raw / "Dataset603_Kaggle4" / "imagesTr" / "train_glioma_Tr-gl_0000_0000.png")
    new = sitk.ReadImage(str(folder / "imagesTr" / "train_glioma_Tr-gl_0000_0000.nii.gz"))
    assert new.GetSpacing() == (1, 1)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(new), picture)
    mask = sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "labelsTr" / "train_glioma_Tr-gl_0000.nii.gz")))
    assert mask.shape == picture.shape and set(np.unique(mask)) == {2}
    old = sitk.ReadImage(str(raw / "Dataset604_Figshare" / "imagesTr" / "figshare_0003_0000.nii.gz"))
    kept = sitk.ReadImage(str(folder / "imagesTr" / "figshare_0003_0000.nii.gz"))
    assert kept.GetSpacing() == old.GetSpacing()
    cases = read_cases(folder / "cases.csv", content["classification"]["class_names"])
    assert {"figshare_0003", "train_glioma_Tr-gl_0000"} <= set(cases)


@pytest.mark.parametrize("ending", [".png", ".nii.gz"])
def test_ignore_label_gets_one_value(raw, ending):
    if ending == ".png":
        first, ids, case = raw / "Dataset603_Kaggle4", (KAGGLE, BR35H), "train_glioma_Tr-gl_0000"
        for mask in first.glob("labels*/*.png"):
            Image.fromarray(np.where(pixels(mask) == 2, 7, 0).astype(np.uint8)).save(mask)
    else:
        first, ids, case = second_figshare(raw), (605, FIGSHARE), "figshare_0001"
        mask = first / "labelsTr" / f"{case}.nii.gz"
        image = sitk.ReadImage(str(mask))
        old = sitk.GetArrayFromImage(image)
        old[0, :5] = 7
        changed = sitk.GetImageFromArray(old)
        changed.CopyInformation(image)
        sitk.WriteImage(changed, str(mask))
        case = f"Figshare2_{case}"
    change(raw, first.name, labels={"background": 0, "tumour": 1, "ignore": 7})
    run(raw, *ids)
    assert json.loads((raw / NAME / "dataset.json").read_text(encoding="utf-8"))["labels"]["ignore"] == 2
    new = raw / NAME / "labelsTr" / f"{case}{ending}"
    if ending == ".png":
        assert np.unique(pixels(new)).tolist() == [2]
    else:
        written = sitk.ReadImage(str(new))
        np.testing.assert_array_equal(sitk.GetArrayFromImage(written), np.where(old == 7, 2, old))
        assert written.GetSpacing() == pytest.approx((3.92, 3.92))


def test_mask_with_a_value_that_is_no_label(raw):
    mask = raw / "Dataset603_Kaggle4" / "labelsTr" / "train_glioma_Tr-gl_0000.png"
    Image.fromarray(np.full_like(pixels(mask), 9)).save(mask)
    with pytest.raises(SourceError, match=f"{mask.name}: holds 9, which dataset.json does not list as labels"):
        run(raw, KAGGLE, BR35H)


def test_image_that_cases_csv_does_not_list(raw):
    table = raw / "Dataset603_Kaggle4" / "cases.csv"
    first, *lines = table.read_text(encoding="utf-8").splitlines(keepends=True)
    table.write_text("".join([first, *lines[:-1]]), encoding="utf-8")
    with pytest.raises(SourceError, match="train_pituitary.*cases.csv does not list it"):
        run(raw, KAGGLE, BR35H)


def make_volumes(raw):
    folder = raw / "Dataset606_Volumes"
    shutil.copytree(raw / "Dataset604_Figshare", folder)
    for kind in ("imagesTr", "labelsTr"):
        for path in (folder / kind).iterdir():
            array = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
            sitk.WriteImage(sitk.GetImageFromArray(np.stack([array] * 3)), str(path))
    return 606


REFUSALS = {
    "channels": (lambda raw: (BRISC, KAGGLE), "Dataset601_BRISC and Dataset603_Kaggle4 differ in their channels"),
    "file ending": (lambda raw: (BRISC, make_volumes(raw)), "differ in their file ending (.png and .nii.gz)"),
    "number": (
        lambda raw: change(raw, "Dataset603_Kaggle4", channel_names={"0": "T1", "1": "T2"}) or (BRISC, KAGGLE),
        "number of channels (T1 and T1/T2)",
    ),
    "intensities": (
        lambda raw: change(raw, "Dataset603_Kaggle4", volumes_rescaled_to_0_1=True) or (BR35H, KAGGLE),
        "intensities (--rescale-volumes); convert both with it",
    ),
    "labels": (
        lambda raw: change(raw, "Dataset603_Kaggle4", labels={"background": 0, "core": 1}) or (BR35H, KAGGLE),
        "differ in their labels",
    ),
    "reader": (
        lambda raw: change(raw, "Dataset603_Kaggle4", overwrite_image_reader_writer="Other") or (BR35H, KAGGLE),
        "reader (NaturalImage2DIO and Other)",
    ),
    "dimensions": (lambda raw: (FIGSHARE, make_volumes(raw)), "dimensions (slices and volumes)"),
    "unfinished": (
        lambda raw: (raw / "Dataset603_Kaggle4" / STATE_FILE).write_text("{}") and (BR35H, KAGGLE),
        "its conversion is not finished",
    ),
    "json": (
        lambda raw: (raw / "Dataset603_Kaggle4" / "dataset.json").write_text("{") and (BR35H, KAGGLE),
        "dataset.json is damaged",
    ),
    "image": (
        lambda raw: next((raw / "Dataset603_Kaggle4" / "imagesTr").iterdir()).unlink() or (BR35H, KAGGLE),
        "there is no such file; convert the data set again",
    ),
    "label map": (
        lambda raw: next((raw / "Dataset603_Kaggle4" / "labelsTr").iterdir()).write_bytes(b"x") and (BR35H, KAGGLE),
        "cannot be read",
    ),
}


@pytest.mark.parametrize("reason", REFUSALS)
def test_what_does_not_fit_is_refused_with_an_explanation(raw, reason):
    prepare, words = REFUSALS[reason]
    ids = prepare(raw)
    with pytest.raises(SourceError) as caught:
        run(raw, *ids)
    assert words in str(caught.value)
    assert not (raw / NAME).exists()


def test_all_differences_are_listed_at_once(raw):
    with pytest.raises(SourceError) as caught:
        run(raw, BRISC, KAGGLE, make_volumes(raw))
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("3 problem(s)")
    assert ["channels" in line for line in lines[1:]] == [True, True, False]
    with pytest.raises(SourceError, match="has 1 channel.s., but --channel-names gives 2"):
        run(raw, BRISC, KAGGLE, channel_names=["T1", "T2"])


@pytest.mark.parametrize("ids", [(BRISC,), (BRISC, BRISC), (BRISC, 700)])
def test_impossible_numbers_are_refused(raw, ids):
    with pytest.raises(ValueError, match="at least two different|into itself"):
        run(raw, *ids)


def test_missing_data_set_and_missing_cases_file_are_refused(raw):
    with pytest.raises(FileNotFoundError, match="no data set 999; convert it first"):
        run(raw, BRISC, 999)
    (raw / "Dataset603_Kaggle4" / "cases.csv").unlink()
    with pytest.raises(FileNotFoundError, match="cases.csv: there is no such file"):
        run(raw, BR35H, KAGGLE)


def test_dry_run_pool_and_fraction(raw, tmp_path):
    result = run(raw, BR35H, KAGGLE, dry_run=True)
    assert result.n_cases == 36
    assert "9 cases are the source's test part" in result.table
    assert not (raw / NAME).exists()
    run(raw, BR35H, KAGGLE, pool=True, fraction=0.5)
    cases = read_cases(raw / NAME / "cases.csv")
    assert {case.split for case in cases.values()} == {"train"}
    assert 15 < len(cases) < 21
    check_splits(json.loads((raw / NAME / "splits_final.json").read_text(encoding="utf-8")), cases.values())
    first = digest(raw / NAME)
    run(raw, BR35H, KAGGLE, pool=True, fraction=0.5, overwrite=True)
    assert digest(raw / NAME) == first


def test_interrupted_combination_resumes_to_identical_files(raw, monkeypatch):
    run(raw, BR35H, KAGGLE)
    expected = digest(raw / NAME)
    shutil.rmtree(raw / NAME)
    fail_at(monkeypatch, combine.shutil, "copyfile", 20, OSError("disk full"))
    with pytest.raises(OSError, match="disk full"):
        run(raw, BR35H, KAGGLE)
    assert not (raw / NAME / "dataset.json").exists()
    run(raw, BR35H, KAGGLE)
    assert digest(raw / NAME) == expected


def test_data_sets_without_classes_can_be_combined(raw):
    for number in (604, 605):
        folder = raw / "Dataset604_Figshare" if number == 604 else second_figshare(raw)
        change(raw, folder.name, classification=None)
        cases = read_cases(folder / "cases.csv").values()
        write_cases(folder / "cases.csv", [Case(case.case, patient=case.patient) for case in cases])
    result = run(raw, 604, 605)
    assert not result.has_classes
    assert "nnUNetTrainerMultiTask" not in next_commands(700, "2d", result.has_classes)
    assert "classification" not in json.loads((raw / NAME / "dataset.json").read_text(encoding="utf-8"))


def test_data_sets_of_one_class_each_make_two_classes(raw):
    # as BraTS-GLI and BraTS-MEN: one class cannot be declared, but stands in cases.csv
    change(raw, "Dataset604_Figshare", classification=None)
    second = second_figshare(raw)
    change(raw, second.name, classification=None)
    for folder, tumour_class in ((raw / "Dataset604_Figshare", "glioma"), (second, "meningioma")):
        rows = [replace(case, tumour_class=tumour_class) for case in read_cases(folder / "cases.csv").values()]
        write_cases(folder / "cases.csv", rows)
    run(raw, FIGSHARE, 605)
    content = json.loads((raw / NAME / "dataset.json").read_text(encoding="utf-8"))
    assert content["classification"]["class_names"] == ["glioma", "meningioma"]


def test_test_cases_without_label_maps_are_left_out(raw, caplog):
    folder = raw / "Dataset601_BRISC"
    unlabelled = sorted((folder / "labelsTs").iterdir())[0]
    unlabelled.unlink()
    result = run(raw, BRISC, KAGGLE, channel_names=["MRI"])
    assert result.n_cases == 43
    assert "1 test cases without a label map are left out" in caplog.text


def test_command(raw, monkeypatch, capsys):
    from braintum.commands import command
    from braintum.conversion import cli

    monkeypatch.setattr(command, "ensure_registered", lambda: None)
    monkeypatch.setenv("nnUNet_raw", str(raw))
    monkeypatch.delenv("nnUNet_preprocessed", raising=False)
    monkeypatch.delenv("nnUNet_results", raising=False)
    arguments = ["combine", str(BRISC), str(KAGGLE), "-d", "700", "--name", "All", "-np", "1"]
    assert cli.main(arguments) == 1
    error = capsys.readouterr().err
    assert "Dataset601_BRISC and Dataset603_Kaggle4 differ in their channels (T1 and MRI)" in error
    assert "--channel-names" in error
    assert cli.main([*arguments, "--channel-names", "MRI", "--pool"]) == 0
    assert "nnUNetv2_train 700 2d 0" in capsys.readouterr().out
    assert len(read_cases(raw / NAME / "cases.csv")) == 44
    assert cli.main(["kaggle4", str(raw.parent / "nowhere"), "-d", "5"]) == 1
    assert "no such folder" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif("BRAINTUM_TEST_DATA" not in os.environ, reason="BRAINTUM_TEST_DATA is not set")
def test_real_data_sets_pass_nnunets_integrity_check(tmp_path):
    data, raw = Path(os.environ["BRAINTUM_TEST_DATA"]), tmp_path / "raw"
    br35h.convert(request(data / "br35h", raw, BR35H, "Br35H"))
    kaggle4.convert(request(data / "kaggle_4class", raw, KAGGLE, "Kaggle4"))
    # 30 images of yes have neither a mask nor, beside named types, a class
    assert run(raw, BR35H, KAGGLE).n_cases == 180 + 112 - 30
    cases = read_cases(raw / NAME / "cases.csv").values()
    check_splits(json.loads((raw / NAME / "splits_final.json").read_text(encoding="utf-8")), cases)
    verify(raw / NAME)
