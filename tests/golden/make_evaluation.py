"""evaluation.json: what the original evaluations say of generated results.

    git clone https://github.com/dvlab-research/Seg-Zero        (42a3345)
    git clone https://github.com/dvlab-research/VisionReasoner  (a455092)
    git clone https://github.com/dvlab-research/LISA            (3cb2d43)
    git clone https://github.com/henghuiding/ReLA               (3ca9551)
    python3 tests/golden/make_evaluation.py Seg-Zero VisionReasoner LISA ReLA

tallies    files output_{idx}.json and the lines that the calculate_*.py scripts print about them
texts      rows and their text by json.dump as the evaluation scripts call it
ignore     true masks (1 target, 255 ignored), found masks, and intersection and union of the target
           by LISA's intersectionAndUnionGPU
no_target  rows of gRefCOCO with and without a target, and gIoU, cIoU, N-acc and T-acc by ReLA's
           ReferEvaluator
Functions of the originals are read from the checkouts and run; none of their code is here. Written
with Python 3.11, numpy 2.4.6, torch 2.15, pycocotools 2.0.11; the same numbers each time.
"""
import ast
import contextlib
import importlib.util
import io
import json
import os
import sys
import tempfile
import types
from collections import OrderedDict

import numpy as np
import torch

SEG_ZERO, VISION_REASONER, LISA, RELA = sys.argv[1:5]
HERE = os.path.dirname(os.path.abspath(__file__))
OUT = os.path.join(HERE, "evaluation.json")
rng = np.random.default_rng(16)


def module(path):
    spec = importlib.util.spec_from_file_location(os.path.basename(path)[:-3], path)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def definition(path, name, scope):
    """One function or class of a file whose imports are not needed."""
    with open(path) as file:
        tree = ast.parse(file.read())
    (node,) = [n for n in tree.body if getattr(n, "name", None) == name]
    exec(compile(ast.Module([node], []), path, "exec"), scope)
    return scope[name]


# ---- the calculate_*.py scripts ----
THINK = ["The red one.", "", "It is the \u00e9clair, 3 cm \u2014 \u201cleft\u201d.",
         "a\nb\t\"c\" \\ / \u4e2d\x07\x7f"]


def masks(n, with_box):
    rows = []
    for i in range(n):
        union = int(rng.integers(0, 4)) * int(rng.integers(1, 9000))
        row = {"image_id": f"im{i}", "ann_id": str(i), "think": THINK[i % 4],
               "intersection": int(rng.integers(0, union + 1)), "union": union}
        if with_box:
            row["bbox_iou"] = float(rng.integers(0, 2))
        rows.append(row)
    return rows


def counts(n):
    return [{"image_id": f"im{i}", "ann_id": str(i), "think": THINK[i % 4],
             "pred_count": int(rng.integers(0, 6)), "gt_count": int(rng.integers(0, 6))}
            for i in range(n)]


def printed(script, files, *arguments):
    with tempfile.TemporaryDirectory() as folder:
        for name, rows in files.items():
            with open(os.path.join(folder, name), "w") as file:
                json.dump(rows, file, indent=2, ensure_ascii=False)
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            module(script).calculate_metrics(folder, *arguments)
    return [line for line in out.getvalue().split("\n") if line.strip("-\n ")]


def tally(name, files, repository, script, *arguments):
    lines = printed(os.path.join(repository, script), files, *arguments)
    if "coco" in name:
        lines = [line for line in lines if line.startswith((" Average", "N", "A", "M"))
                 and "Accumulating" not in line]
    return {"name": name, "files": files, "lines": lines}


detections = json.load(open(os.path.join(HERE, "coco_ap.json")))["cases"][0]
with tempfile.NamedTemporaryFile("w", suffix=".json") as truth_file:
    json.dump(detections["truth"], truth_file)
    truth_file.flush()
    boxes = [{"image_id": d["image_id"], "ann_id": i, "think": THINK[i % 4],
              "category_id": d["category_id"], "score": d["score"],
              "bbox": [d["bbox"][0], d["bbox"][1], d["bbox"][0] + d["bbox"][2],
                       d["bbox"][1] + d["bbox"][3]]} for i, d in enumerate(detections["found"])]
    coco = tally("coco", {"output_0.json": boxes[:20], "output_1.json": boxes[20:]},
                 VISION_REASONER, "evaluation/calculate_coco_ap.py", truth_file.name)

two = {"output_0.json": masks(9, False), "output_1.json": masks(8, False), "output_2.json": []}
boxed = {f"output_{i}.json": masks(7, True) for i in range(11)}
tallies = [
    tally("seg_zero", two, SEG_ZERO, "evaluation_scripts/calculate_iou.py"),
    tally("iou", two, VISION_REASONER, "evaluation/calculate_iou.py"),
    tally("iou_with_bbox", boxed, VISION_REASONER, "evaluation/calculate_iou_with_bbox.py"),
    tally("counting", {"output_0.json": counts(13), "output_1.json": counts(4)},
          VISION_REASONER, "evaluation/calculate_counting.py"),
    coco,
]

# ---- the text of output_{idx}.json ----
def text(rows):
    return json.dumps(rows, indent=2, ensure_ascii=False)


sample = [two["output_0.json"][3], boxed["output_0.json"][2], counts(1)[0],
          {"image_id": 7, "ann_id": 12, "think": "", "category_id": 3, "bbox": [1, 2, 30, 41],
           "score": 30 * 39 / (640 * 480)},
          {"image_id": 7, "ann_id": 13, "think": "x", "category_id": 3, "bbox": [0, 0, 640, 480],
           "score": 1.0},
          {"image_id": 7, "ann_id": 14, "think": "x", "category_id": 3, "bbox": [0, 0, 1, 1],
           "score": 1 / (4000 * 3000)}]
texts = [{"rows": rows, "text": text(rows)}
         for rows in ([], *[[row] for row in sample], sample[3:])]

# ---- LISA: ignored pixels ----
count_pixels = definition(os.path.join(LISA, "utils", "utils.py"), "intersectionAndUnionGPU",
                          {"torch": torch})
ignore = []
for share in (0.0, 0.3, 0.9, 1.0):
    for target_share in (0.0, 0.4):
        true = (rng.random((6, 9)) < target_share).astype(np.uint8)
        true[rng.random((6, 9)) < share] = 255
        found = (rng.random((6, 9)) < 0.5).astype(np.uint8)
        inside, either, _ = count_pixels(torch.tensor(found).float(), torch.tensor(true).float(), 2)
        ignore.append({"true": true.tolist(), "found": found.tolist(),
                       "intersection": int(inside[1]), "union": int(either[1])})

# ---- ReLA: rows without a target ----
class Bare:
    pass


scope = {"np": np, "torch": torch, "OrderedDict": OrderedDict, "DatasetEvaluator": Bare,
         "logging": __import__("logging"), "json": json, "os": os,
         "comm": types.SimpleNamespace(), "PathManager": None}
GREFER = os.path.join(RELA, "gres_model", "evaluation", "refer_evaluation.py")
definition(GREFER, "computeIoU", scope)
evaluator = definition(GREFER, "ReferEvaluator", scope)("grefcoco", distributed=False)
evaluator.reset()
rows = []
for i in range(40):
    gt_nt, pred_nt = bool(rng.random() < 0.4), bool(rng.random() < 0.4)
    true = np.zeros((8, 8), np.int8) if gt_nt else (rng.random((8, 8)) < 0.4).astype(np.int8)
    found = np.zeros((8, 8), np.int8) if pred_nt else (rng.random((8, 8)) < 0.4).astype(np.int8)
    evaluator._predictions.append({
        "img_id": i, "source": "grefcoco", "sent": "", "sent_info": {}, "pred_mask": found,
        "gt_mask": true, "pred_nt": pred_nt, "gt_nt": gt_nt})
    rows.append({"gt_nt": gt_nt, "pred_nt": pred_nt, "true": true.tolist(),
                 "found": found.tolist()})
result = evaluator.evaluate()["grefcoco"]
no_target = {"rows": rows, "gIoU": float(result["gIoU"]) / 100, "cIoU": float(result["cIoU"]) / 100,
             "N_acc": result["N_acc"], "T_acc": result["T_acc"]}

with open(OUT, "w") as file:
    json.dump({"tallies": tallies, "texts": texts, "ignore": ignore, "no_target": no_target}, file,
              separators=(",", ":"))
    file.write("\n")
