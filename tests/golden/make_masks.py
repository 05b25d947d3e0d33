"""Writes masks.json: masks as pycocotools decodes run lengths and polygons, and mask files.

    python3 tests/golden/make_masks.py        pycocotools 2.0.11, numpy 2.4.6, Pillow 13.0.0

Each case has width, height, the column `mask` as a data set would have it, and the pixels inside as
run lengths of the rows (row by row, first outside), which any reader expands in a few lines. A mask
file has `file`, its bytes in hexadecimal, instead of `mask`.
"""
import io
import json
import pathlib
import random

import numpy as np
from PIL import Image
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


def file_case(name, image, inside, **options):
    out = io.BytesIO()
    image.save(out, "PNG", **options)
    return {"name": name, "width": image.width, "height": image.height,
            "file": out.getvalue().hex(), "rows": rows_of(inside)}


def with_palette(indexes, colours):
    image = Image.fromarray(indexes, "P")
    image.putpalette([v for colour in colours for v in colour])
    return image


def files():
    inside = np.zeros((16, 24), np.uint8)
    inside[3:9, 5:17] = 1
    inside[12, 20] = 1
    none = np.zeros_like(inside)
    grey = Image.fromarray

    # Values.
    yield file_case("0 and 1", grey(inside), inside)
    yield file_case("0 and 255", grey(inside * 255), inside)
    yield file_case("one bit", grey(inside * 255).convert("1"), inside)
    yield file_case("16 bit, small values", grey(inside.astype(np.uint16) * 3), inside)
    yield file_case("16 bit, large values", grey(inside.astype(np.uint16) * 65280), inside)
    yield file_case("labels", grey(inside * (np.arange(24, dtype=np.uint8) + 1)), inside)

    # Colours.
    for channel, name in enumerate(("red", "green", "blue")):
        colour = np.zeros((16, 24, 3), np.uint8)
        colour[..., channel] = inside * 7
        yield file_case(name, grey(colour), inside)

    # Alpha.
    black = np.zeros((16, 24, 4), np.uint8)
    black[..., 3] = inside * 255
    yield file_case("alpha over black", grey(black), inside)
    white = np.full((16, 24, 4), 255, np.uint8)
    white[..., 3] = inside * 255
    yield file_case("alpha over white", grey(white), inside)
    flat = np.full((16, 24, 4), 255, np.uint8)
    flat[..., :3] = inside[..., None] * 255
    yield file_case("alpha that is the same everywhere", grey(flat), inside)

    # Palettes.
    labels = with_palette(inside * 2, [(0, 0, 0), (9, 9, 9), (0, 0, 0)])
    yield file_case("a palette of labels", labels, inside)
    sorted_colours = with_palette(1 - inside, [(255, 0, 0), (0, 0, 0)])
    yield file_case("a palette with black last", sorted_colours, inside)

    # Empty ones.
    yield file_case("empty", grey(none), none)
    yield file_case("empty, one bit", grey(none).convert("1"), none)
    yield file_case("empty, colour", grey(np.zeros((16, 24, 3), np.uint8)), none)


rng = random.Random(15)
cases = list(polygons(rng)) + list(run_lengths(rng)) + list(files())
path = pathlib.Path(__file__).parent / "masks.json"
path.write_text("[\n" + ",\n".join(json.dumps(c) for c in cases) + "\n]\n")
print(len(cases), "cases,", path.stat().st_size, "bytes")
