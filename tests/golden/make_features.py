"""Golden tables with features of `datasets` beyond those of Seg-Zero's sets: lists of images, images as paths, class
labels, nested columns, long texts, solutions as lists, masks as lists of a fixed size, as images and as numbers.

Usage: python make_features.py [FOLDER (default: features next to this file)]

FOLDER/NAME.parquet    as to_parquet writes it
FOLDER/NAME.arrow      as save_to_disk writes it
Written with datasets 5.2.0, pyarrow 26.0.1, Pillow 13.0.0, numpy 2.4.6.
"""
import io
import json
import os
import shutil
import sys

import numpy as np
from datasets import Array2D, ClassLabel, Dataset, Features, Image, LargeList, List, Sequence, Value
from PIL import Image as Pillow

OUT = os.path.abspath(sys.argv[1] if len(sys.argv) > 1 else os.path.join(
    os.path.dirname(os.path.abspath(__file__)), "features"))
WIDTH, HEIGHT, ROWS = 42, 28, 2
shutil.rmtree(OUT, ignore_errors=True)
os.makedirs(os.path.join(OUT, "images"))
os.chdir(OUT)


def png(pixels):
    out = io.BytesIO()
    Pillow.fromarray(pixels).save(out, "PNG", optimize=True)
    return out.getvalue()


def grey(i):
    return png(np.full((HEIGHT, WIDTH, 3), 40 * i, np.uint8))


mask = np.zeros((HEIGHT, WIDTH), bool)
mask[5:20, 10:30] = True
for i in range(ROWS):
    with open(f"images/{i}.png", "wb") as f:
        f.write(grey(i))

text = Value("string")
solution = "<box>(1,2),(30,20)</box><points>(5,6),(7,8)</points>"
objects = [{"bbox_2d": [1, 2, 30, 20], "point_2d": [5, 6]}]
one = {"problem": "the dot", "solution": solution, "image": {"bytes": grey(1), "path": None}}
kinds = {"problem": text, "solution": text, "image": Image()}


def emit(name, row, **features):
    features = {**{k: v for k, v in kinds.items() if k in row}, **features}
    data = Dataset.from_list([row(i) for i in range(ROWS)] if callable(row) else [row] * ROWS, features=Features(features))
    data.to_parquet(name + ".parquet")
    data.save_to_disk("saved")
    shutil.move("saved/data-00000-of-00001.arrow", name + ".arrow")
    shutil.rmtree("saved")


def masked(value):
    return {"problem": "the dot", "image": one["image"], "mask": value}


pixels = mask.tolist()
without = {k: one[k] for k in ("problem", "solution")}
emit("image_list", {**without, "images": [one["image"]]}, images=Sequence(Image()))
emit("image_pairs", {**without, "images": [one["image"]] * 2}, images=Sequence(Image()))
emit("image_path", {**one, "image": {"bytes": None, "path": "images/1.png"}})
emit("class_label", {**one, "kind": 1}, kind=ClassLabel(names=["cat", "dog"]))
emit("nested", {**one, "objects": [{"bbox": [1., 2.], "label": 1}], "info": {"a": {"b": [7]}}},
     objects=List({"bbox": List(Value("float32"), length=2), "label": ClassLabel(names=["x", "y"])}),
     info={"a": {"b": List(Value("int32"))}})
emit("large_string", one, problem=Value("large_string"), solution=Value("large_string"))
emit("json_solution", {**one, "solution": json.dumps(objects)})
emit("list_solution", {**one, "solution": objects},
     solution=List({"bbox_2d": List(Value("int64")), "point_2d": List(Value("int64"))}))
emit("mask_large_list", masked(pixels), mask=LargeList(LargeList(Value("bool"))))
emit("mask_fixed", masked(pixels), mask=List(List(Value("bool"), length=WIDTH), length=HEIGHT))
emit("mask_array", masked(pixels), mask=Array2D((HEIGHT, WIDTH), "bool"))
emit("mask_numbers", masked(mask.astype(int).tolist()), mask=List(List(Value("uint8"))))
emit("mask_image", masked({"bytes": png(mask.astype(np.uint8) * 255), "path": None}), mask=Image())
