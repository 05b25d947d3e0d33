"""Checks by hand that segzero and the evaluation scripts of Seg-Zero write the same rows.

    git clone https://github.com/dvlab-research/Seg-Zero        (42a3345)
    python3 tests/golden/check_evaluation.py Seg-Zero evaluation.py POLICY SAM2 SET OUT [--side 112]

Runs evaluation.py or evaluation_visionreasoner.py of the checkout as they are, but on the CPU in
f32, with another frame than 840 (--side), a local Parquet file (SET/data/test-*.parquet) and SAM2
in transformers' format behind the predictor's interface. OUT/output_0.json is what it writes;
segzero writes the same file with
    ./segzero recipes/evaluate.lua --reasoning_model_path POLICY --segmentation_model_path SAM2 \
        --test_data_path SET --idx 0 --num_parts 1 --output_path OURS
and --compare OURS/output_0.json prints what differs. Needs torch, transformers, datasets,
torchvision, qwen_vl_utils, Pillow. Not part of the suite, which needs no Python.
"""
import argparse
import glob
import json
import os
import sys
import types

import numpy as np
import torch
import transformers
from check_sam2 import decode, transform

cli = argparse.ArgumentParser()
for name in ("checkout", "script", "policy", "sam2", "data", "out"):
    cli.add_argument(name)
cli.add_argument("--side", type=int, default=112)
cli.add_argument("--compare")
args = cli.parse_args()


class Predictor:
    """SAM2ImagePredictor's interface over transformers' Sam2Model."""

    def __init__(self, model):
        self.model = model.eval()
        self.size = model.config.vision_config.backbone_config.image_size[0]

    @classmethod
    def from_pretrained(cls, path):
        model, info = transformers.Sam2Model.from_pretrained(path, dtype=torch.float32,
                                                             output_loading_info=True)
        if info["missing_keys"]:
            model.prompt_encoder.shared_embedding.positional_embedding.data.copy_(
                model.shared_image_embedding.positional_embedding)
        return cls(model)

    @torch.no_grad()
    def set_image(self, image):
        self.width, self.height = image.size
        pixels = transform(torch.from_numpy(np.array(image.convert("RGB"))), self.size)
        maps = list(self.model.get_image_features(
            pixels.permute(2, 0, 1)[None]).fpn_hidden_states)
        maps[2] = maps[2] + self.model.no_memory_embedding
        self.maps = [f.permute(1, 2, 0).reshape(1, -1, *hw) for f, hw in zip(
            maps, self.model.backbone_feature_sizes)]

    @torch.no_grad()
    def predict(self, point_coords, point_labels, box):
        scale = np.array([self.size / self.width, self.size / self.height])
        corners = np.array(box, float).reshape(2, 2)
        points = np.concatenate([corners, np.array(point_coords, float)]) * scale
        s0, s1, embed = self.maps
        out = decode(self.model, embed, s0, s1, torch.tensor(points, dtype=torch.float32)[None],
                     torch.tensor([[2, 3, *point_labels]], dtype=torch.int32), None)
        fine = torch.nn.functional.interpolate(out["masks"][:, 1:].float(),
                                               (self.height, self.width), mode="bilinear",
                                               align_corners=False)
        return (fine[0] > 0).numpy().astype(np.float32), out["iou"][0, 1:].numpy(), None


def load_dataset(path, split):
    import datasets
    found = sorted(glob.glob(os.path.join(path, "data", split + "-*.parquet")))
    return datasets.load_dataset("parquet", data_files={split: found}, split=split)


# What the script imports, and the device that it wants.
predictor = types.ModuleType("sam2.sam2_image_predictor")
predictor.SAM2ImagePredictor = Predictor
sys.modules["sam2"] = types.ModuleType("sam2")
sys.modules["sam2.sam2_image_predictor"] = predictor
real = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained
transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained = (
    lambda path, **_: real(path, dtype=torch.float32))
transformers.BatchFeature.to = lambda self, *_, **__: self

with open(os.path.join(args.checkout, "evaluation_scripts", args.script)) as file:
    source = file.read()
assert "resize_size = 840" in source
source = source.replace("resize_size = 840", f"resize_size = {args.side}")
os.makedirs(args.out, exist_ok=True)
sys.argv = [args.script, "--reasoning_model_path", args.policy, "--segmentation_model_path",
            args.sam2, "--test_data_path", args.data, "--idx", "0", "--num_parts", "1",
            "--output_path", args.out]
scope = {"__name__": "script"}
exec(compile(source, args.script, "exec"), scope)
scope["load_dataset"] = load_dataset
scope["main"]()

if args.compare:
    theirs = json.load(open(os.path.join(args.out, "output_0.json")))
    ours = json.load(open(args.compare))
    print(len(theirs), "rows against", len(ours))
    for a, b in zip(theirs, ours):
        for key in sorted({*a, *b}):
            if a.get(key) != b.get(key):
                print(a["ann_id"], key, "theirs:", a.get(key), "ours:", b.get(key))
