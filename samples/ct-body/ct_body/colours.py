"""One colour per segment, the same in the picture and in the DICOM object."""

from ct_body.tissue import Tissue

#: Red, green, blue, 0 to 255.
COLOURS: dict[Tissue, tuple[int, int, int]] = {
    Tissue.SOFT_TISSUE: (224, 60, 92),
    Tissue.BONE: (255, 176, 32),
    Tissue.AIR: (32, 164, 255),
}
