"""Golden values for the preparation of training data: OpenCV's INTER_AREA resizes, and the boxes and
points that Seg-Zero's notebook finds in masks.

Usage: python make_prepare.py [OUTPUT (default: prepare.safetensors next to this file)] [MASKS]

OUTPUT holds u8 tensors: "area.K" a source image [h, w, 3] and "area.K.HxW" its resizes; "mask.K" a
mask [h, w] of 0 and 1, and the i32 tensor "points.K": box (4), first point (2), second point (2).
With MASKS, a number, that many masks are written and no images, for a check by hand.
Written with opencv-python-headless 4.11.0.86, scipy 1.17.1, numpy 2.4.6.

The rule for the points: the first is the first maximum of scipy's distance transform; the second is
the first maximum among the pixels whose distance to the first point exceeds the median of these
distances; a mask of one pixel has the same point twice.
"""
import os
import sys

import cv2
import numpy as np
from safetensors.numpy import save_file
from scipy import ndimage

# Sources, width x height, and the sizes that they are resized to.
AREA = [((64, 48), ((84, 84), (32, 24), (16, 12), (33, 40), (64, 30), (20, 60))),
        ((42, 63), ((84, 84), (14, 21), (42, 84), (21, 21), (10, 13))),
        ((30, 30), ((15, 15), (10, 10), (29, 30), (31, 29))),
        ((3, 2), ((1, 1), (7, 9), (2, 2))), ((1, 1), ((4, 3),)), ((200, 3), ((84, 3), (7, 2)))]


def resizes(rng, out):
    for k, ((w, h), targets) in enumerate(AREA):
        image = rng.integers(0, 256, (h, w, 3), dtype=np.uint8)
        if k % 2:                               # steps, where rounding shows
            image = (image // 128 * 255).astype(np.uint8)
        out[f"area.{k}"] = image
        for tw, th in targets:
            out[f"area.{k}.{th}x{tw}"] = cv2.resize(image, (tw, th), interpolation=cv2.INTER_AREA)


def scene(rng, w, h):
    """Ellipses and bars, united or cut out of one another."""
    mask = np.zeros((h, w), np.uint8)
    for _ in range(rng.integers(1, 6)):
        value = int(rng.random() < .75)
        x, y = int(rng.integers(0, w)), int(rng.integers(0, h))
        a, b = int(rng.integers(1, w // 2 + 2)), int(rng.integers(1, h // 2 + 2))
        if rng.random() < .5:
            cv2.ellipse(mask, (x, y), (a, b), int(rng.integers(0, 180)), 0, 360, value, -1)
        else:
            cv2.rectangle(mask, (x, y), (x + a, y + b), value, -1)
    if rng.random() < .2:
        mask |= (rng.random((h, w)) < .1).astype(np.uint8)
    return mask


def two_points(mask):
    distances = ndimage.distance_transform_edt(mask)
    y1, x1 = np.unravel_index(distances.argmax(), distances.shape)
    ys, xs = np.nonzero(mask)
    away = np.sqrt((ys - y1) ** 2 + (xs - x1) ** 2)
    far = away > np.median(away)
    if not far.any():
        return [x1, y1], [x1, y1]
    k = np.argmax(distances[ys[far], xs[far]])
    return [x1, y1], [xs[far][k], ys[far][k]]


def masks(rng, out, n, largest):
    special = [np.ones((5, 7)), np.eye(1, 1), np.pad(np.ones((1, 1)), 3), np.pad(np.ones((1, 2)), 2),
               np.ones((20, 9)), np.pad(np.ones((12, 30)), ((0, 4), (0, 0)))]
    for k in range(n):
        if k < len(special):
            mask = special[k].astype(np.uint8)
        else:
            mask = scene(rng, int(rng.integers(2, largest)), int(rng.integers(2, largest)))
        if not mask.any():
            mask[0, 0] = 1
        ys, xs = np.nonzero(mask)
        p, q = two_points(mask)
        out[f"mask.{k}"] = mask
        out[f"points.{k}"] = np.array([xs.min(), ys.min(), xs.max(), ys.max(), *p, *q], np.int32)


def main():
    here = os.path.dirname(os.path.abspath(__file__))
    output = sys.argv[1] if len(sys.argv) > 1 else os.path.join(here, "prepare.safetensors")
    rng = np.random.default_rng(8)
    out = {}
    if len(sys.argv) > 2:
        masks(rng, out, int(sys.argv[2]), 640)
    else:
        resizes(rng, out)
        masks(rng, out, 60, 70)
    save_file(out, output, {"opencv": cv2.__version__, "numpy": np.__version__})
    print(len(out), "tensors,", os.path.getsize(output), "bytes")


if __name__ == "__main__":
    main()
