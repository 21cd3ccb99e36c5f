"""What each voxel of the body is, told by Hounsfield units alone.

The scale has two fixed points, air at -1000 and water at 0 (PS3.3 C.11.1.1.2; Hounsfield 1973, Br J Radiol 46:1016).

- Air ends at -500: half way between the two, where a sharp border of skin and air, blurred by the scanner, has its
  true place. Lung (about -950 to -600) counts as air by it.
- Bone begins at 226: the lower bound of the "Bone" preset of InVesalius 3 (226 to 3071). Spongy bone below it counts
  as soft tissue; teeth, metal and vessels dense with contrast medium count as bone.
- Soft tissue is what lies between; fat (-190 to -30) belongs to it.
"""

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ct_body.errors import UnusableInputError
from ct_body.series import Hounsfield

#: Highest value that still is air, exclusive, HU.
AIR_BELOW_HU = -500
#: Lowest value that is bone, HU.
BONE_FROM_HU = 226

Mask = NDArray[np.bool_]
Labels = NDArray[np.uint8]


class Tissue(IntEnum):
    """The segments; the value is the segment's number and the label of its voxels, 0 being outside the body."""

    SOFT_TISSUE = 1
    BONE = 2
    AIR = 3


def classify(hounsfield: Hounsfield) -> Labels:
    """Label each voxel inside the body's outline."""
    inside = outline(body(hounsfield))
    labels = np.zeros(hounsfield.shape, dtype=np.uint8)
    labels[inside] = Tissue.SOFT_TISSUE
    labels[inside & (hounsfield >= BONE_FROM_HU)] = Tissue.BONE
    labels[inside & (hounsfield < AIR_BELOW_HU)] = Tissue.AIR
    return labels


def body(hounsfield: Hounsfield) -> Mask:
    """Find the largest piece of matter whose voxels touch by their faces: the body, and not the table."""
    pieces, count = ndimage.label(hounsfield >= AIR_BELOW_HU)
    if count == 0:
        raise UnusableInputError("the CT series shows nothing denser than air")
    sizes = np.zeros(count + 1, dtype=np.int64)
    for one in pieces:  # slice by slice: counting takes eight bytes a voxel
        sizes += np.bincount(one.ravel(), minlength=count + 1)
    sizes[0] = 0
    largest: Mask = pieces == sizes.argmax()
    return largest


def outline(matter: Mask) -> Mask:
    """Fill what the body encloses in each slice; air that is open to the slice's edge stays outside."""
    return np.stack([ndimage.binary_fill_holes(one) for one in matter])
