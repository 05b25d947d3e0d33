"""coco_ap.json: generated true and found boxes, and what COCOeval says of them.

Usage: python make_coco_ap.py

Each case has truth (COCO's layout), found (COCO's result layout) and stats, COCOeval's twelve
numbers (bbox, default parameters). The cases have objects of all three sizes, crowds, images and
categories without objects, equal scores, more than 100 boxes in an image, and boxes without area.
Written with pycocotools 2.0.11, numpy 2.4.6.
"""
import contextlib
import io
import json
import os

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

PATH = os.path.join(os.path.dirname(os.path.abspath(__file__)), "coco_ap.json")


def box(rng, side):
    w, h = rng.integers(1, side, 2)
    x, y = rng.integers(0, 200, 2)
    return [int(x), int(y), int(w), int(h)]


def moved(rng, b, by):
    return [int(v) for v in np.maximum(np.array(b) + rng.integers(-by, by + 1, 4), 0)]


def case(seed, images=6, categories=3, crowd=0.2, most=5, ties=False, flood=False):
    rng = np.random.default_rng(seed)
    annotations, found = [], []
    for image in range(images):
        for category in range(1, categories + 1):
            for _ in range(rng.integers(0, most + 1)):
                side = int(rng.choice([20, 80, 260]))
                b = box(rng, side)
                annotations.append({
                    "id": len(annotations) + 1, "image_id": 100 + 7 * image,
                    "category_id": 3 * category, "bbox": b, "iscrowd": int(rng.random() < crowd),
                    "area": float(b[2] * b[3]) * 0.75})
                for _ in range(rng.integers(0, 3)):
                    found.append((image, category, moved(rng, b, int(rng.choice([0, 2, 8])))))
            for _ in range(rng.integers(0, 3)):
                found.append((image, category, box(rng, 120)))
    if flood:
        found += [(0, 1, box(rng, 60)) for _ in range(150)]
    order = rng.permutation(len(found))
    results = []
    for k in order:
        image, category, b = found[k]
        score = float(rng.integers(0, 4) if ties else rng.integers(0, 10 ** 6)) / 1000
        results.append({"image_id": 100 + 7 * image, "category_id": 3 * category, "bbox": b,
                        "score": score})
    return {
        "truth": {"images": [{"id": 100 + 7 * i} for i in reversed(range(images))],
                  "categories": [{"id": 3 * c} for c in range(1, categories + 2)],
                  "annotations": annotations},
        "found": results}


def stats(one):
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = one["truth"]
        truth.createIndex()
        judge = COCOeval(truth, truth.loadRes([dict(r) for r in one["found"]]), "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return [float(v) for v in judge.stats]


cases = [case(1), case(2, ties=True), case(3, crowd=0.6, most=3), case(4, flood=True, images=3),
         case(5, images=2, categories=1, crowd=1.0), case(6, most=1, categories=4)]
for one in cases:
    for annotation in one["truth"]["annotations"]:
        annotation.pop("ignore", None)
    one["stats"] = stats(json.loads(json.dumps(one)))
with open(PATH, "w") as file:
    json.dump({"cases": cases}, file, separators=(",", ":"))
    file.write("\n")
