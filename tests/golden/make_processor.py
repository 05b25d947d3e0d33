"""Golden pixel values: what transformers' Pillow-based Qwen2-VL image processor makes of small
images.

Usage: python make_processor.py [OUTDIR (default: processor next to this file)]

OUTDIR gets the images (NAME.png), cases.json and cases.safetensors. A case of cases.json:
  {name, file, mode, height, width, min_pixels, max_pixels, grid: [t, h, w], stride, count, whole}
and in cases.safetensors NAME.sample = flat pixel_values [patches * 1176] at 0, stride, 2 stride,
... (f32), and NAME.sums = per patch sum (f64 sum, stored f32) [patches]. whole = the sample is all
of it (stride 1). smart_resize.json: [h, w, min_pixels, max_pixels, h', w'] rows; h' = null where
the function raises. Left out: video, the torchvision backend, files that are not PNG. """
import json
import os
import shutil
import sys

import numpy as np
import PIL
import transformers
from PIL import Image, ImageDraw
from safetensors.numpy import save_file
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
    Qwen2VLImageProcessorPil, smart_resize)

LOW, HIGH = 56 * 56, 12845056
# (name, mode, h, w, min_pixels, max_pixels)
CASES = [
    ("exact", "RGB", 84, 140, LOW, HIGH),
    ("square28", "RGB", 28, 28, LOW, HIGH),
    ("tiny", "RGB", 10, 10, LOW, HIGH),
    ("half_even", "RGB", 42, 70, LOW, HIGH),
    ("odd", "RGB", 61, 199, LOW, HIGH),
    ("tall", "RGB", 333, 77, LOW, HIGH),
    ("strip", "RGB", 12, 90, LOW, HIGH),
    ("photo", "RGB", 240, 320, LOW, 28 * 28 * 20),
    ("wide", "RGB", 90, 500, LOW, 28 * 28 * 12),
    ("raised", "RGB", 60, 47, 28 * 28 * 30, HIGH),
    ("near", "RGB", 113, 139, LOW, HIGH),
    ("thin", "RGB", 400, 6, LOW, HIGH),
    ("grey", "L", 70, 98, LOW, HIGH),
    ("alpha", "RGBA", 64, 80, LOW, HIGH),
    ("palette", "P", 58, 75, LOW, HIGH),
]
WHOLE_PATCHES = 16       # images of so few patches are stored whole
SAMPLE = 2500


def drawn(mode, h, w, rng):
    """Gradients with a few shapes: smooth parts, hard edges, and small files."""
    y, x = np.mgrid[0:h, 0:w]
    base = np.stack([x * 255 // max(1, w - 1), y * 255 // max(1, h - 1), (x + 2 * y) * 3 % 256],
                    -1).astype(np.uint8)
    img = Image.fromarray(base)
    draw = ImageDraw.Draw(img)
    for _ in range(4):
        x0, y0 = int(rng.integers(0, w)), int(rng.integers(0, h))
        x1, y1 = x0 + int(rng.integers(1, w // 2 + 2)), y0 + int(rng.integers(1, h // 2 + 2))
        colour = tuple(int(c) for c in rng.integers(0, 256, 3))
        (draw.rectangle if rng.random() < 0.5 else draw.ellipse)([x0, y0, x1, y1], fill=colour)
    if mode == "RGBA":
        img.putalpha(Image.fromarray(((x * 7 + y * 3) % 256).astype(np.uint8)))
    elif mode == "P":
        img = img.quantize(24)
    elif mode != "RGB":
        img = img.convert(mode)
    return img


def resize_table(rng):
    rows = [(840, 840), (480, 640), (427, 640), (42, 70), (70, 98), (30, 30), (28, 5000), (14, 400),
            (1080, 1920),
            (4000, 6000), (8000, 8000), (630, 1206), (1, 1), (1, 200), (1, 201), (200, 1), (201, 1),
            (28, 28), (27, 27),
            (13, 13), (14, 14), (56, 55), (29, 5799), (13, 2600), (3584, 3584), (3585, 3584),
            (10000, 10000)]
    rows = [(h, w, LOW, HIGH) for h, w in rows]
    limits = [(LOW, HIGH), (LOW, 28 * 28 * 1280), (28 * 28 * 256, HIGH), (LOW, 28 * 28 * 16),
              (28 * 28, 28 * 28)]
    while len(rows) < 200:
        h, w = (int(v) for v in np.exp(rng.uniform(0.7, 9, 2)))
        # quotients that end in one half, where rounding goes to even
        if len(rows) % 3 == 0:
            h, w = 14 * (2 * (h // 28) + 1), 14 * (2 * (w // 28) + 1)
        rows.append((h, w) + limits[len(rows) % len(limits)])
    out = []
    for h, w, low, high in rows:
        try:
            out.append([h, w, low, high, *smart_resize(h, w, 28, low, high)])
        except ValueError:
            out.append([h, w, low, high, None, None])
    return out


def main():
    here = os.path.dirname(os.path.abspath(__file__))
    outdir = sys.argv[1] if len(sys.argv) > 1 else os.path.join(here, "processor")
    shutil.rmtree(outdir, ignore_errors=True)
    os.makedirs(outdir)
    rng = np.random.default_rng(21)
    cases, tensors = [], {}
    for name, mode, h, w, low, high in CASES:
        file = name + ".png"
        drawn(mode, h, w, rng).save(os.path.join(outdir, file), optimize=True)
        img = Image.open(os.path.join(outdir, file))
        assert img.mode == mode and img.size == (w, h)
        proc = Qwen2VLImageProcessorPil(size={"shortest_edge": low, "longest_edge": high})
        got = proc(images=[img], return_tensors="np")
        values, grid = np.ascontiguousarray(got["pixel_values"],
                                            np.float32), got["image_grid_thw"][0].tolist()
        assert values.shape == (grid[1] * grid[2], 1176)
        assert [grid[1] * 14, grid[2] * 14] == list(smart_resize(h, w, 28, low, high))
        flat = values.reshape(-1)
        stride = 1 if values.shape[0] <= WHOLE_PATCHES else flat.size // SAMPLE | 1
        tensors[name + ".sample"] = flat[::stride].copy()
        tensors[name + ".sums"] = values.sum(1, dtype=np.float64).astype(np.float32)
        cases.append(dict(name=name, file=file, mode=mode, height=h, width=w, min_pixels=low,
                          max_pixels=high,
                          grid=grid, stride=stride, count=int(tensors[name + ".sample"].size),
                          whole=stride == 1))
        print(name, (h, w), "->", grid, os.path.getsize(os.path.join(outdir, file)))
    save_file(tensors, os.path.join(outdir, "cases.safetensors"),
              {"versions": f"transformers {transformers.__version__}, pillow {PIL.__version__}"})
    for file, rows in (("cases.json", cases), ("smart_resize.json", resize_table(rng))):
        with open(os.path.join(outdir, file), "w") as f:
            f.write("[" + ",\n".join(json.dumps(r, separators=(",", ":")) for r in rows) + "]\n")


if __name__ == "__main__":
    main()
