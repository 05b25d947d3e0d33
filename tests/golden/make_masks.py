"""Writes masks.json: masks as pycocotools decodes run lengths and polygons.

    python3 tests/golden/make_masks.py        pycocotools 2.0.11, numpy 2.4.6

Each case has width, height, the column `mask` as a data set would have it, and the pixels inside as
run lengths of the rows (row by row, first outside), which any reader expands in a few lines.
"""
import json
import pathlib
import random

import numpy as np
from pycocotools import mask as coco


def rows_of(mask):
    """Run lengths over the rows, first outside."""
    runs, inside, count = [], 0, 0
    for value in np.asarray(mask, np.uint8).reshape(-1):
        if value != inside:
            runs.append(count)
            inside, count = int(value), 0
        count += 1
    return runs + [count]


def polygon_case(name, polygons, width, height):
    parts = coco.frPyObjects(polygons, height, width)
    return {"name": name, "width": width, "height": height, "mask": polygons,
            "rows": rows_of(coco.decode(coco.merge(parts)))}


def star(rng, cx, cy, radius, points):
    angles = sorted(rng.uniform(0, 2 * np.pi) for _ in range(points))
    out = []
    for a in angles:
        r = radius * rng.uniform(0.3, 1)
        out += [round(cx + r * float(np.cos(a)), 2), round(cy + r * float(np.sin(a)), 2)]
    return out


def polygons(rng):
    yield polygon_case("a triangle", [[2.0, 1.0, 18.0, 4.0, 7.0, 14.0]], 20, 16)
    yield polygon_case("whole numbers", [[3, 3, 12, 3, 12, 9, 3, 9]], 20, 16)
    yield polygon_case("backwards", [[3, 9, 12, 9, 12, 3, 3, 3]], 20, 16)
    yield polygon_case("two, apart", [[1, 1, 6, 1, 6, 6, 1, 6], [10, 8, 18, 8, 14, 14]], 20, 16)
    yield polygon_case("two, overlapping", [[1, 1, 9, 1, 9, 9, 1, 9], [5, 5, 15, 5, 15, 14, 5, 14]],
                       20, 16)
    yield polygon_case("crosses itself", [[2, 2, 16, 13, 16, 2, 2, 13]], 20, 16)
    yield polygon_case("leaves the image", [[-5.5, -3, 30, 4, 12, 40]], 20, 16)
    yield polygon_case("a point given twice", [[3, 3, 3, 3, 15, 4, 15, 4, 8, 12]], 20, 16)
    yield polygon_case("the whole image", [[0, 0, 20, 0, 20, 16, 0, 16]], 20, 16)
    yield polygon_case("one column", [[0.2, 0, 1, 0, 1, 30, 0.2, 30]], 1, 30)
    for i in range(24):
        width, height = rng.randint(5, 90), rng.randint(5, 90)
        shapes = [star(rng, rng.uniform(0, width), rng.uniform(0, height),
                       rng.uniform(4, 50), rng.randint(3, 14)) for _ in range(rng.randint(1, 3))]
        case = polygon_case(f"star {i}", shapes, width, height)
        if len(case["rows"]) > 1:
            yield case


def run_lengths(rng):
    for i in range(12):
        width, height = rng.randint(1, 80), rng.randint(1, 80)
        mask = np.zeros((height, width), np.uint8, order="F")
        for _ in range(rng.randint(1, 6)):
            x, y = rng.randrange(width), rng.randrange(height)
            mask[y:y + rng.randint(1, 40), x:x + rng.randint(1, 40)] ^= 1
        mask[rng.randrange(height), rng.randrange(width)] = 1
        packed = coco.encode(mask)
        packed = {"size": [height, width], "counts": packed["counts"].decode()}
        counts = rows_of(np.asfortranarray(mask).reshape(-1, order="F"))
        for form, value in ("compressed", packed), ("a list", {"size": [height, width],
                                                               "counts": counts}):
            yield {"name": f"run lengths {i}, {form}", "width": width, "height": height,
                   "mask": value, "rows": rows_of(mask)}


rng = random.Random(15)
cases = list(polygons(rng)) + list(run_lengths(rng))
path = pathlib.Path(__file__).parent / "masks.json"
path.write_text("[\n" + ",\n".join(json.dumps(c) for c in cases) + "\n]\n")
print(len(cases), "cases,", path.stat().st_size, "bytes")
