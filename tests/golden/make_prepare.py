"""Golden values for the preparation of training data: OpenCV's INTER_AREA resizes, the boxes and
points that Seg-Zero's notebook finds in masks, and the rows that it and the script after it make.

Usage: python make_prepare.py [OUTPUT (default: prepare.safetensors next to this file)] [MASKS]

OUTPUT holds u8 tensors: "area.K" a source image [h, w, 3] and "area.K.HxW" its resizes; "mask.K" a
mask [h, w] of 0 and 1, and the i32 tensor "points.K": box (4), first point (2), second point (2).
prepare_rows.json: the rows of the sets in annotations/ (make_annotations.py), as {set: [{problem,
solution, height, width, sum}]}; sum is the CRC-32 of the 840 x 840 RGB pixels.
With MASKS, a number, that many masks are written and no images and rows, for a check by hand.
Written with opencv-python-headless 4.11.0.86, scipy 1.17.1, numpy 2.4.6, pycocotools 2.0.11.

The rule for the points: the first is the first maximum of scipy's distance transform; the second is
the first maximum among the pixels whose distance to the first point exceeds the median of these
distances; a mask of one pixel has the same point twice.
"""
import json
import os
import pickle
import sys
import zlib

import cv2
import numpy as np
from pycocotools import mask as coco
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
    special = [np.ones((5, 7)), np.eye(1, 1), np.pad(np.ones((1, 1)), 3),
               np.pad(np.ones((1, 2)), 2), np.ones((20, 9)),
               np.pad(np.ones((12, 30)), ((0, 4), (0, 0)))]
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


# ---- rows ----
FRAME = 840


def drawn(annotation, image):
    """The mask of an annotation, as the notebook draws it."""
    polygons = coco.frPyObjects(annotation["segmentation"], image["height"], image["width"])
    return (np.sum(coco.decode(polygons), axis=2) > 0).astype(np.uint8)


def scaled(values, mask):
    """x, y, x, y, ... in the frame, rounded as the script after the notebook does."""
    factors = [FRAME / mask.shape[1], FRAME / mask.shape[0]]
    return [int(v * factors[i % 2] + 0.5) for i, v in enumerate(values)]


def box_of(mask):
    ys, xs = np.nonzero(mask)
    return [xs.min(), ys.min(), xs.max(), ys.max()]


def cleaned(sentence):
    return sentence["raw"].strip().strip(".?!").lower()


def row(problem, solution, image, folder):
    pixels = cv2.cvtColor(cv2.imread(os.path.join(folder, image["file_name"])), cv2.COLOR_BGR2RGB)
    frame = cv2.resize(pixels, (FRAME, FRAME), interpolation=cv2.INTER_AREA)
    return {"problem": problem, "solution": solution, "height": pixels.shape[0],
            "width": pixels.shape[1], "sum": zlib.crc32(frame.tobytes())}


def single(mask):
    p, q = two_points(mask)
    b = scaled(box_of(mask), mask)
    s = scaled([*p, *q], mask)
    return (f"<box>({b[0]},{b[1]}),({b[2]},{b[3]})</box>"
            f"<points>({s[0]},{s[1]}),({s[2]},{s[3]})</points>")


def several(masks):
    return json.dumps([{"bbox_2d": scaled(box_of(m), m), "point_2d": scaled(two_points(m)[0], m)}
                       for m in masks])


def rows_of_sets(here):
    root = os.path.join(here, "annotations", "refer_seg")
    folder = os.path.join(root, "images", "train2014")
    out = {}
    for name, file in (("refcocog", "refs(umd).p"), ("grefcoco", "grefs(unc).json")):
        with open(os.path.join(root, name, file), "rb") as f:
            refs = json.load(f) if file.endswith("json") else pickle.load(f)
        with open(os.path.join(root, name, "instances.json")) as f:
            instances = json.load(f)
        images = {image["id"]: image for image in instances["images"]}
        anns = {ann["id"]: ann for ann in instances["annotations"]}
        refs = [ref for ref in refs if ref["split"] == "train"]
        one, many, by_image = [], [], {}
        for ref in refs:
            image = images[ref["image_id"]]
            ids = ref["ann_id"] if isinstance(ref["ann_id"], list) else [ref["ann_id"]]
            masks = [drawn(anns[i], image) for i in ids if i != -1]
            text = cleaned(ref["sentences"][0])
            if masks:
                one.append(row(text, single(np.maximum.reduce(masks)), image, folder))
            many.append(row(f"'{text}'", several(masks), image, folder))
            by_image.setdefault(ref["image_id"], []).append((text, masks))
        out[name] = one
        if name == "grefcoco":
            out[name + " several"] = many
            continue
        out[name + " several"] = [
            row("'" + "' and '".join(t for t, _ in group) + "'",
                several([m for _, masks in group for m in masks]), images[i], folder)
            for i, group in by_image.items()]
    return out


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
        with open(os.path.join(here, "prepare_rows.json"), "w") as file:
            json.dump(rows_of_sets(here), file, indent=1)
            file.write("\n")
    save_file(out, output, {"opencv": cv2.__version__})
    print(len(out), "tensors,", os.path.getsize(output), "bytes")


if __name__ == "__main__":
    main()
