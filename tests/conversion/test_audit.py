"""The audit names what crosses a split, which masks and images are wrong, and tells scripts by its exit code."""

import json
import os
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from braintum.conversion.audit.audit import FORMAT, run_audit
from braintum.conversion.audit.audit_input import find_input, input_from_dataset, input_from_folders
from braintum.conversion.audit.audit_report import MAX_PICTURES, html_page, worst_pairs
from braintum.conversion.audit_cli import main
from braintum.conversion.format.cases import Case, write_cases
from braintum.conversion.format.splits import official_splits
from braintum.conversion.sources.phantoms import draw_patient, draw_slice

CLASSES = ("glioma", "meningioma", "no_tumor")
N_PATIENTS, SLICES_PER_PATIENT, SIZE = 8, 2, 128
TEST_DATA = os.environ.get("BRAINTUM_TEST_DATA")


@pytest.fixture(scope="module")
def phantom_slices():
    """Image and mask of every slice, by case name."""
    slices = {}
    for number in range(N_PATIENTS):
        patient = draw_patient(np.random.default_rng(number), number % 3 + 1)
        for position in range(SLICES_PER_PATIENT):
            level = (position + 0.5) / SLICES_PER_PATIENT - 0.5
            image, mask = draw_slice(np.random.default_rng([number, position]), patient, SIZE, level)
            slices[f"p{number}_{position}"] = (np.clip(image / 12, 0, 255).astype(np.uint8), mask)
    return slices


class RawDataset:
    """A small data set in nnU-Net's raw format: patients 0 to 5 for training in three folds, 6 and 7 for the test."""

    def __init__(self, folder, slices):
        self.folder = folder
        self.cases = {}
        for part in ("imagesTr", "labelsTr", "imagesTs"):
            (folder / part).mkdir(parents=True)
        for name, (image, mask) in slices.items():
            number = int(name[1])
            test = number >= 6
            tumour_class = CLASSES[number % 3]
            self.cases[name] = Case(name, tumour_class, f"P{number}", "", "test" if test else "train")
            Image.fromarray(image).save(self.image(name))
            if not test:
                Image.fromarray(mask * (tumour_class != "no_tumor")).save(self.mask(name))
        self.folds = {name: int(name[1]) // 2 for name, case in self.cases.items() if case.split == "train"}
        self.write()

    def image(self, name):
        return self.folder / ("imagesTs" if self.cases[name].split == "test" else "imagesTr") / f"{name}_0000.png"

    def mask(self, name):
        return self.folder / "labelsTr" / f"{name}.png"

    def write(self, **labels):
        content = {
            "channel_names": {"0": "T1"},
            "labels": {"background": 0, "tumor": 1, **labels},
            "file_ending": ".png",
            "numTraining": len(self.folds),
            "classification": {"class_names": list(CLASSES), "negative_class": "no_tumor"},
        }
        (self.folder / "dataset.json").write_text(json.dumps(content))
        (self.folder / "splits_final.json").write_text(json.dumps(official_splits(self.folds)))
        write_cases(self.folder / "cases.csv", self.cases.values())

    def copy(self, source, target, change=lambda image: image):
        with Image.open(self.image(source)) as image:
            change(image).save(self.image(target))


@pytest.fixture
def dataset(tmp_path, phantom_slices):
    return RawDataset(tmp_path / "raw" / "Dataset123_Phantoms", phantom_slices)


@pytest.fixture
def audit_command(dataset, tmp_path, monkeypatch):
    """Runs the command on the data set; returns exit code and content of audit.json."""
    monkeypatch.setenv("nnUNet_raw", str(dataset.folder.parent))
    output = tmp_path / "out"

    def run(*arguments):
        code = main([*(arguments or ("123",)), "-o", str(output), "-np", "1"])
        return code, json.loads((output / "audit.json").read_text(encoding="utf-8"))

    return run


def test_a_clean_data_set(audit_command, dataset):
    code, content = audit_command()
    assert code == 0
    assert content["leaks"] is False
    assert content["pairs"] == content["groups"] == []
    assert content["image_problems"] == content["mask_problems"] == {}
    assert [split["name"] for split in content["splits"]] == ["fold 0", "fold 1", "fold 2", "imagesTr and imagesTs"]
    assert content["splits"][0]["class_balance"]["val"] == {"glioma": 2, "meningioma": 2, "no_tumor": 0}
    # 2 of 4 against 4 of 12
    assert content["splits"][0]["largest_difference_percentage_points"] == pytest.approx(33.33, abs=0.01)


def test_a_mirrored_copy_across_a_fold(audit_command, dataset):
    dataset.copy("p0_0", "p3_1", ImageOps.mirror)
    code, content = audit_command()
    assert code == 2
    (pair,) = content["pairs"]
    assert pair.pop("score") > 0.99
    assert pair == {
        "first": "imagesTr/p0_0_0000.png",
        "second": "imagesTr/p3_1_0000.png",
        "kind": "mirrored",
        "transformation": "mirrored left-right",
        "crosses": ["fold 0", "fold 1"],  # fold 2 trains on both
    }
    assert content["groups"] == [["imagesTr/p0_0_0000.png", "imagesTr/p3_1_0000.png"]]
    (crossing,) = content["splits"][0]["crossings"]
    assert crossing == {
        "what": "duplicates",
        "name": "imagesTr/p0_0_0000.png",
        "members": {"train": ["imagesTr/p3_1_0000.png"], "val": ["imagesTr/p0_0_0000.png"]},
    }
    assert content["splits"][3]["crossing_pairs"] == 0


def test_an_exact_copy_in_the_test_part(audit_command, dataset):
    shutil.copyfile(dataset.image("p5_0"), dataset.image("p6_1"))
    code, content = audit_command()
    assert code == 2
    (pair,) = content["pairs"]
    assert (pair["kind"], pair["score"], pair["crosses"]) == ("exact", 1, ["imagesTr and imagesTs"])


def test_copies_on_one_side_do_not_leak(audit_command, dataset):
    dataset.copy("p0_0", "p1_1", lambda image: image.transpose(Image.Transpose.ROTATE_90))
    code, content = audit_command()
    assert code == 0
    assert [(pair["kind"], pair["crosses"]) for pair in content["pairs"]] == [("rotated", [])]


@pytest.mark.parametrize(("attribute", "value"), [("patient", "P0"), ("group", "same")])
def test_patients_and_groups_on_both_sides(attribute, value, audit_command, dataset):
    for name in ("p0_0", "p4_0"):
        fields = {**vars(dataset.cases[name]), attribute: value}
        dataset.cases[name] = Case(**fields)
    dataset.write()
    code, content = audit_command()
    assert code == 2
    found = {(entry["what"], entry["name"]) for split in content["splits"] for entry in split["crossings"]}
    assert (attribute, value) in found
    assert {split["name"] for split in content["splits"] if split["crossings"]} >= {"fold 0", "fold 2"}


def test_a_case_listed_on_both_sides(audit_command, dataset):
    splits = json.loads((dataset.folder / "splits_final.json").read_text(encoding="utf-8"))
    splits[1]["train"].append(splits[1]["val"][0])
    (dataset.folder / "splits_final.json").write_text(json.dumps(splits))
    code, content = audit_command()
    assert code == 2
    assert [(entry["what"], entry["name"]) for entry in content["splits"][1]["crossings"]][0] == (
        "case",
        f"imagesTr/{splits[1]['val'][0]}_0000.png",
    )
    assert content["splits"][0]["crossings"] == []


def test_masks_that_contradict_classes(audit_command, dataset):
    masks = {name: np.asarray(Image.open(dataset.mask(name))) for name in dataset.folds}
    Image.fromarray(masks["p0_0"] * 0).save(dataset.mask("p0_0"))  # a glioma without mask
    Image.fromarray(masks["p0_1"]).save(dataset.mask("p2_0"))  # no tumour, with mask
    Image.fromarray(masks["p1_0"] * 0 + 2).save(dataset.mask("p1_0"))  # unknown: all ignored
    dataset.mask("p1_1").unlink()
    dataset.mask("p3_0").write_bytes(b"no image")
    dataset.write(ignore=2)
    code, content = audit_command()
    assert code == 3  # a mask could not be read
    problems = content["mask_problems"]
    assert problems.keys() == {f"imagesTr/{name}_0000.png" for name in ("p0_0", "p2_0", "p1_1", "p3_0")}
    assert problems["imagesTr/p0_0_0000.png"] == "no mask on glioma"
    assert problems["imagesTr/p2_0_0000.png"] == f"a mask on no_tumor: {masks['p0_1'].sum()} pixels"
    assert problems["imagesTr/p1_1_0000.png"] == "has no label map"
    assert "cannot be read" in problems["imagesTr/p3_0_0000.png"]


def test_masks_with_undeclared_values(audit_command, dataset, capsys):
    mask = np.asarray(Image.open(dataset.mask("p0_0")))
    Image.fromarray(mask * 255).save(dataset.mask("p0_0"))
    Image.fromarray(np.where(mask, 3, 0).astype(np.uint8)).save(dataset.mask("p1_0"))  # of unknown class
    code, content = audit_command()
    assert code == 0
    problems = content["mask_problems"]
    assert problems.keys() == {"imagesTr/p0_0_0000.png", "imagesTr/p1_0_0000.png"}
    fault = f"p0_0.png holds {mask.sum()} voxels of 255, which dataset.json does not declare: write the label that is"
    assert problems["imagesTr/p0_0_0000.png"].startswith(fault)
    assert f"{mask.sum()} voxels of 3" in problems["imagesTr/p1_0_0000.png"]
    assert fault in capsys.readouterr().out
    dataset.write(core=255, whole=[1, 3])
    assert not audit_command()[1]["mask_problems"]


def test_empty_constant_and_corrupt_images(audit_command, dataset):
    dataset.image("p0_0").write_bytes(b"")
    dataset.image("p1_0").write_bytes(dataset.image("p1_1").read_bytes()[:900])
    Image.new("L", (SIZE, SIZE), 7).save(dataset.image("p2_0"))
    code, content = audit_command()
    assert code == 3 and content["unreadable"] == ["imagesTr/p0_0_0000.png", "imagesTr/p1_0_0000.png"]
    problems = content["image_problems"]
    assert problems.keys() == {f"imagesTr/{name}_0000.png" for name in ("p0_0", "p1_0", "p2_0")}
    assert "the file is empty" in problems["imagesTr/p0_0_0000.png"]
    assert "cannot be read as an image" in problems["imagesTr/p1_0_0000.png"]
    assert "all pixels have one value" in problems["imagesTr/p2_0_0000.png"]
    assert not any(str(dataset.folder) in problem for problem in problems.values())


def test_further_channels_are_looked_at(audit_command, dataset):
    Image.new("L", (SIZE, SIZE)).save(dataset.folder / "imagesTr" / "p0_0_0001.png")
    _, content = audit_command()
    assert content["images"] == len(dataset.cases)
    assert "p0_0_0001.png is empty" in content["image_problems"]["imagesTr/p0_0_0000.png"]
    assert any("lack a channel" in note for note in content["notes"])


@pytest.mark.parametrize("target", ["123", "Dataset123_Phantoms", "folder"])
def test_ways_to_name_a_data_set(target, dataset, monkeypatch):
    monkeypatch.setenv("nnUNet_raw", str(dataset.folder.parent))
    source = find_input([str(dataset.folder) if target == "folder" else target])
    assert source.title == "Dataset123_Phantoms"
    assert (len(source.images), len(source.splits)) == (len(dataset.cases), 4)


def test_a_data_set_without_cases_and_splits(dataset):
    (dataset.folder / "cases.csv").unlink()
    (dataset.folder / "splits_final.json").unlink()
    source = input_from_dataset(dataset.folder)
    assert [split.name for split in source.splits] == ["imagesTr and imagesTs"]
    assert any("cases.csv" in note for note in source.notes)
    assert any("splits_final.json" in note for note in source.notes)
    assert not run_audit(source, 1).mask_problems


def test_cases_that_do_not_exist_are_noted(dataset):
    dataset.image("p0_0").unlink()
    not_read = " ".join(input_from_dataset(dataset.folder).not_read)
    assert "cases.csv: 1 case(s) have no image: p0_0" in not_read
    assert "splits_final.json: fold 0 has 1 unknown case(s): p0_0" in not_read
    assert "labelsTr/p0_0.png: an image that was not used" in not_read


def test_images_of_other_names_in_a_data_set_forbid_the_all_clear(audit_command, dataset, capsys):
    shutil.copyfile(dataset.image("p0_0"), dataset.folder / "imagesTs" / "p6_2_0000.PNG")
    code, content = audit_command()
    assert code == 3
    assert len(content["not_read"]) == 1 and "imagesTs/p6_2_0000.PNG" in content["not_read"][0]
    assert "Nothing crosses a split among the 16 images that were read; 1 were not." in capsys.readouterr().out
    assert audit_command("123", "--not-needed", "p6_2*")[0] == 0


@pytest.fixture
def folders(tmp_path, phantom_slices):
    """Two folders with a folder a class, one mirrored copy across, masks that are not images."""
    for name, (image, mask) in phantom_slices.items():
        side = "test" if name >= "p6" else "train"
        folder = tmp_path / "source" / side / CLASSES[int(name[1]) % 3]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{name}.jpg")
        Image.fromarray(mask).save(folder / f"{name}_mask.png")
    image = Image.fromarray(phantom_slices["p1_0"][0])
    ImageOps.mirror(image).save(tmp_path / "source" / "test" / "glioma" / "a <b> & c.jpg", quality=60)
    (tmp_path / "source" / "test" / "Thumbs.db").write_bytes(b"x")
    return tmp_path / "source" / "train", tmp_path / "source" / "test"


class Page(HTMLParser):
    """What a page holds: text, images, and whatever it would load from elsewhere."""

    def __init__(self, html):
        super().__init__()
        self.text, self.images, self.sources, self.open = "", [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.sources += [value for key, value in values.items() if key in ("src", "href", "srcset", "action")]
        if tag == "img":
            self.images.append(values)
        elif tag not in ("meta", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_folders_as_sides(folders, tmp_path, capsys):
    output = tmp_path / "out"
    assert main([*map(str, folders), "-o", str(output), "-np", "1"]) == 2
    content = json.loads((output / "audit.json").read_text(encoding="utf-8"))
    assert content["format"] == FORMAT
    assert content["images"] == N_PATIENTS * SLICES_PER_PATIENT + 1
    (pair,) = content["pairs"]
    assert (pair["first"], pair["second"]) == ("train/meningioma/p1_0.jpg", "test/glioma/a <b> & c.jpg")
    assert (pair["kind"], pair["crosses"]) == ("mirrored", ["train and test"])
    assert content["splits"][0]["class_balance"]["test"] == {"glioma": 3, "meningioma": 2, "no_tumor": 0}
    assert "Leaking: 1 group(s) of duplicates" in capsys.readouterr().out

    html = (output / "audit.html").read_text(encoding="utf-8")
    page = Page(html)
    assert page.open == []
    assert all(name in page.text for name in (pair["first"], pair["second"], "Leaking"))
    assert [image["alt"] for image in page.images] == [f"Image {pair['first']}", f"Image {pair['second']}"]
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert not re.search(r"https?:|//[a-z]|@import|url\(", re.sub(r"base64,[^\"]*", "", html))
    assert "prefers-color-scheme: dark" in html


def test_linked_folders_and_images_of_other_names_are_looked_at_or_named(folders, tmp_path, capsys):
    train, test = folders
    (test / "glioma").rename(tmp_path / "elsewhere")
    (test / "glioma").symlink_to(tmp_path / "elsewhere")
    (test / "again").symlink_to(test)
    output = tmp_path / "out"
    assert main([str(train), str(test), "-o", str(output), "-np", "1"]) == 2
    content = json.loads((output / "audit.json").read_text(encoding="utf-8"))
    assert content["images"] == N_PATIENTS * SLICES_PER_PATIENT + 1
    (tmp_path / "elsewhere" / "a <b> & c.jpg").rename(tmp_path / "elsewhere" / "copy")
    assert main([str(train), str(test), "-o", str(output), "-np", "1"]) == 3
    said = capsys.readouterr()
    assert f"not looked at: {test / 'glioma' / 'copy'}: an image that was not used" in said.err
    assert "Nothing crosses a split among the 16 images that were read; 1 were not." in said.out
    assert "16 file(s) are taken for masks by their names" in said.out
    assert main([str(train), str(test), "-o", str(output), "-np", "1", "--not-needed", "copy"]) == 0


def test_the_page_is_the_same_every_time(folders):
    pages = [html_page(run_audit(input_from_folders(folders), 1)) for _ in range(2)]
    assert pages[0] == pages[1]


def test_one_folder_has_no_sides(folders, tmp_path):
    assert main([str(folders[1]), "-o", str(tmp_path / "out"), "-np", "1"]) == 0


def test_worst_pairs_are_one_a_group_and_the_surest_first(dataset):
    shutil.copyfile(dataset.image("p5_0"), dataset.image("p6_1"))
    dataset.copy("p0_0", "p3_1", lambda image: image.resize((90, 90)))
    dataset.copy("p0_0", "p7_1", ImageOps.mirror)
    audit = run_audit(input_from_dataset(dataset.folder), 1)
    worst = worst_pairs(audit)
    assert [pair.kind for pair in worst] == ["exact", "mirrored"]
    assert len(audit.pairs) == 4
    assert html_page(audit).count("<figure>") == 2 <= MAX_PICTURES


@pytest.mark.slow
def test_processes_do_not_matter(dataset):
    dataset.copy("p0_0", "p3_1", ImageOps.mirror)
    source = input_from_dataset(dataset.folder)
    assert run_audit(source, 2).to_json() == run_audit(source, 1).to_json()


def test_an_earlier_audit_is_replaced_and_nothing_else(folders, tmp_path, capsys):
    output = tmp_path / "out"
    arguments = [*map(str, folders), "-o", str(output), "-np", "1"]
    assert main(arguments) == main(arguments) == 2
    assert sorted(path.name for path in output.iterdir()) == ["audit.html", "audit.json"]
    (output / "audit.json").write_text('{"precious": 1}')
    assert main(arguments) == 1
    assert "holds no earlier audit" in capsys.readouterr().err
    assert (output / "audit.json").read_text(encoding="utf-8") == '{"precious": 1}'


def test_the_default_output_folder(folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([*map(str, folders), "-np", "1"]) == 2
    assert (tmp_path / "audit_train_and_test" / "audit.html").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required"),
        (["--nonsense"], "arguments"),
        (["missing_folder"], "missing_folder: no such folder"),
        (["124"], "no data set 124"),
        (["123", "124"], "124"),
        (["-np", "0", "123"], "processes"),
    ],
)
def test_errors_exit_with_1(arguments, message, dataset, tmp_path, monkeypatch, capsys):
    """2 means that something leaks."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("nnUNet_raw", str(dataset.folder.parent))
    assert main(arguments) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("audit_*"))


def test_a_folder_within_another_one(folders, capsys):
    assert main([str(folders[0]), str(folders[0].parent)]) == 1
    assert "lies within" in capsys.readouterr().err


def test_folders_of_one_name(tmp_path, phantom_slices):
    for side in ("a", "b"):
        (tmp_path / side / "images").mkdir(parents=True)
        Image.fromarray(phantom_slices["p0_0"][0]).save(tmp_path / side / "images" / "x.png")
    source = input_from_folders([tmp_path / "a" / "images", tmp_path / "b" / "images"])
    assert list(source.splits[0].sides) == ["a/images", "b/images"]
    assert [image.tumour_class for image in source.images] == ["", ""]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("splits_final.json", "{", "not valid JSON"),
        ("splits_final.json", "[{}]", "list of objects"),
        ("dataset.json", "{}", "file_ending"),
        ("cases.csv", "case\n", "missing column"),
    ],
)
def test_invalid_files_are_named(file, content, message, dataset):
    (dataset.folder / file).write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        input_from_dataset(dataset.folder)
    assert file in str(error.value)


@pytest.mark.slow
@pytest.mark.skipif(not TEST_DATA, reason="BRAINTUM_TEST_DATA is not set")
def test_the_split_of_brisc_leaks(tmp_path):
    folder = Path(str(TEST_DATA), "brisc2025", "classification_task")
    assert main([str(folder / "train"), str(folder / "test"), "-o", str(tmp_path / "out"), "-np", "2"]) == 2
    content = json.loads((tmp_path / "out" / "audit.json").read_text(encoding="utf-8"))
    assert content["splits"][0]["crossing_pairs"] >= 40
    assert content["image_problems"] == {}
