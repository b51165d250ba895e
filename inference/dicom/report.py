"""Measurements and class as a structured report (TID 1500, "Measurement Report")."""

from collections.abc import Sequence

import pydicom
from highdicom import sr
from highdicom.coding_schemes import CodingSchemeIdentificationItem
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from braintum.inference.dicom.codes import ANATOMY, NEOPLASM, PRIVATE_SCHEME, class_code, label_code, private_code
from braintum.inference.dicom.measurements import Measurements, measure
from braintum.inference.dicom.prediction import DISCLAIMER, MANUFACTURER, PredictedSeries
from braintum.inference.dicom.segmentation import tracking_id

_RATIO = codes.UCUM.NoUnits
_MM = Code("mm", "UCUM", "mm")
_MM3 = Code("mm3", "UCUM", "mm3")


def structured_report(predicted: PredictedSeries, segmentation: pydicom.Dataset | None) -> sr.ComprehensiveSR:
    """A report with the class, the whole tumour's size, and that of each segment.

    Args:
        predicted: what was found.
        segmentation: the object with the segments, None where there are none.
    """
    observer = sr.ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=sr.DeviceObserverIdentifyingAttributes(
            uid=predicted.uid("observer"),
            name=predicted.model.name,
            manufacturer_name=MANUFACTURER,
            model_name=predicted.model.name,
            serial_number=predicted.model.checksum,
        ),
    )
    groups: list = [_whole(predicted)]
    if segmentation is not None:
        groups += [
            _segment(predicted, segmentation, value, number) for number, value in enumerate(predicted.segments, 1)
        ]
    instances = list(predicted.series.instances)
    content = sr.MeasurementReport(
        observation_context=sr.ObservationContext(observer_device_context=observer),
        procedure_reported=codes.LN.BrainMRI,
        imaging_measurements=groups,
        title=codes.DCM.ImagingMeasurementReport,
        # highdicom's image library looks for what multi-frame objects have in functional groups
        referenced_images=None if "NumberOfFrames" in instances[0] else instances,
    )
    report = sr.ComprehensiveSR(
        evidence=[*instances, *([] if segmentation is None else [segmentation])],
        content=content[0],
        is_complete=True,
        coding_schemes=[CodingSchemeIdentificationItem(PRIVATE_SCHEME, name="Local codes of braintum")],
        **predicted.identity("SR"),
    )
    return report


def _whole(predicted: PredictedSeries) -> sr.MeasurementsAndQualitativeEvaluations:
    """The class, and the size of everything."""
    result = predicted.result
    verdict = result.get("calibration", {}).get("verdict", result["predicted_class"])
    evaluations = [
        sr.QualitativeEvaluation(codes.DCM.Finding, class_code(verdict)),
        sr.QualitativeEvaluation(
            private_code("probabilities"),
            private_code("calibrated" if "calibration" in result else "not_calibrated"),
        ),
        sr.QualitativeEvaluation(private_code("intended_use"), private_code(DISCLAIMER)),
    ]
    measurements = [
        sr.Measurement(private_code(f"probability of {name}"), round(probability, 6), _RATIO)
        for name, probability in result["probabilities"].items()
    ]
    return sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(predicted.uid("tracking"), "braintum whole tumour"),
        finding_type=NEOPLASM,
        algorithm_id=predicted.report_algorithm,
        finding_sites=[sr.FindingSite(ANATOMY)],
        measurements=[*measurements, *_sizes(measure(predicted.mask != 0, predicted.series.image))],
        qualitative_evaluations=evaluations,
    )


def _segment(
    predicted: PredictedSeries, segmentation: pydicom.Dataset, value: int, number: int
) -> sr.VolumetricROIMeasurementsAndQualitativeEvaluations:
    """The size of one segment."""
    return sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(predicted.uid(f"tracking {value}"), tracking_id(predicted, value)),
        referenced_segment=sr.ReferencedSegment(
            sop_class_uid=segmentation.SOPClassUID,
            sop_instance_uid=segmentation.SOPInstanceUID,
            segment_number=number,
            source_series=sr.SourceSeriesForSegmentation(predicted.series.series_uid),
        ),
        finding_type=label_code(predicted.segments[value]),
        algorithm_id=predicted.report_algorithm,
        finding_sites=[sr.FindingSite(ANATOMY)],
        measurements=_sizes(measure(predicted.mask == value, predicted.series.image)),
    )


def _sizes(size: Measurements | None) -> Sequence[sr.Measurement]:
    if size is None:
        return []
    return [
        sr.Measurement(codes.SCT.Volume, round(size.volume, 3), _MM3),
        sr.Measurement(codes.SCT.LongAxis, round(size.longest, 3), _MM),
        sr.Measurement(codes.SCT.ShortAxis, round(size.perpendicular, 3), _MM),
    ]
