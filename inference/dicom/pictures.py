"""A picture for viewers that show no segmentations: DICOM Secondary Capture."""

import numpy as np
import SimpleITK as sitk
from highdicom import sc

from braintum.inference.dicom.prediction import DISCLAIMER, PredictedSeries
from braintum.inference.ready.overlay import draw_overlay
from braintum.inference.ready.predict_images import summary


def secondary_capture(predicted: PredictedSeries) -> sc.SCImage:
    """The slice with most tumour beside the same one with its outline, and a line of text burnt in."""
    x, y, _ = predicted.series.image.GetSpacing()
    said = summary({**predicted.result, "case": "braintum", "warnings": predicted.result.get("warnings", [])})
    text = f"{said} - {DISCLAIMER}"
    picture = draw_overlay(sitk.GetArrayViewFromImage(predicted.series.image), predicted.mask, y / x, text)
    reference = predicted.first_instance
    image = sc.SCImage.from_ref_dataset(
        reference,
        pixel_array=np.asarray(picture),
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        patient_orientation=("L", "P"),  # asked for, and emptied below: the picture shows two images
        **predicted.identity("SC"),
    )
    image.PatientOrientation = None  # type: ignore[assignment]
    image.BodyPartExamined = "BRAIN"
    image.copy_patient_and_study_information(reference)
    image.ImageComments = text[:10240]
    image.DerivationDescription = DISCLAIMER
    image.BurnedInAnnotation = "NO"  # of what identifies a patient
    return image
