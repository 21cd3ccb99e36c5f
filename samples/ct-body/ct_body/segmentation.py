"""The labels as a DICOM Segmentation object (PS3.3 A.51), in the study of the series that it segments."""

from collections.abc import Sequence

from highdicom import AlgorithmIdentificationSequence
from highdicom.color import CIELabColor
from highdicom.seg import (
    SegmentAlgorithmTypeValues,
    Segmentation,
    SegmentationTypeValues,
    SegmentDescription,
)
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import generate_uid

from ct_body.colours import COLOURS
from ct_body.tissue import Labels, Tissue

NAME = "Gurney ct-body"
VERSION = "1.0.0"

#: Attributes that every CT slice has by the standard, empty or not (type 2), yet exports drop: patient, study.
_MAY_BE_EMPTY = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "StudyTime",
)

#: Label, category (CID 7150) and type of each segment, in SNOMED CT.
_MEANINGS: dict[Tissue, tuple[str, Code, Code]] = {
    Tissue.SOFT_TISSUE: ("Soft tissue", codes.SCT.Tissue, codes.SCT.SoftTissue),
    Tissue.BONE: ("Bone", codes.SCT.AnatomicalStructure, codes.SCT.Bone),
    Tissue.AIR: ("Air inside the body", codes.SCT.Substance, codes.SCT.Air),
}


def segmentation(slices: Sequence[Dataset], labels: Labels) -> Segmentation:
    """Build the object; slices and labels are in the same order.

    Frames without a segment are kept, so that each segment covers the same grid as the series.
    """
    for one in slices:
        _complete(one)
    return Segmentation(
        source_images=slices,
        pixel_array=labels,
        segmentation_type=SegmentationTypeValues.BINARY,
        segment_descriptions=[_description(tissue) for tissue in Tissue],
        series_instance_uid=generate_uid(),
        series_number=int(slices[0].get("SeriesNumber") or 0) + 1000,
        series_description="Air, soft tissue and bone by Hounsfield units",
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="Gurney",
        manufacturer_model_name=NAME,
        software_versions=VERSION,
        device_serial_number="none",
        omit_empty_frames=False,
    )


def _description(tissue: Tissue) -> SegmentDescription:
    label, category, kind = _MEANINGS[tissue]
    return SegmentDescription(
        segment_number=tissue.value,
        segment_label=label,
        segmented_property_category=category,
        segmented_property_type=kind,
        algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=AlgorithmIdentificationSequence(
            name=NAME, version=VERSION, family=codes.cid7162.MorphologicalOperations
        ),
        display_color=CIELabColor.from_rgb(*COLOURS[tissue]),
    )


def _complete(one: Dataset) -> None:
    for name in _MAY_BE_EMPTY:
        if name not in one:
            setattr(one, name, "")
