"""Checks by hand that PEFT reads adapters as segzero writes them, and that a merged folder is what
PEFT says.

Usage, from the repository's root: python tests/golden/check_peft.py [--segzero ./segzero]

For several settings of target_modules and exclude_modules on the tiny checkpoints of qwen_vl/Q1 and
qwen2_vl/V1, segzero attaches adapters, fills both parts at random, saves them, and computes the
logits of a text; examples/merge_lora.lua merges them. Compared: the layers that PEFT adapts when it
is given the same settings itself, PEFT's logits with segzero's files, transformers' logits with the
merged folder. Exits 1 on a difference. Not part of the suite, which needs no Python. """
import argparse
import json
import subprocess
import sys
import tempfile

import peft
import torch
from safetensors.torch import load_file
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2VLForConditionalGeneration

CLASSES = {"qwen_vl": Qwen2_5_VLForConditionalGeneration,
           "qwen2_vl": Qwen2VLForConditionalGeneration}
SETTINGS = [("all-linear", None), ("all-linear", ".*visual.*"), (["q_proj", "v_proj"], None),
            (["gate_proj", "fc1", "attn.proj"], None),
            (r".*layers\.0\..*", r".*(norm|mlp|attn)$|.*layers\.0\..*(norm|act_fn)"),
            (["mlp.0", "up_proj"], ["layers.1.mlp.up_proj"])]
LUA = r"""
local folder, out, settings = %s, %s, require("cjson").decode(%s)
local sz = require "segzero"
local vl = sz.lora.attach(sz.qwen_vl(folder), {rank = 3, alpha = 7, target_modules = settings[1], exclude_modules = settings[2]})
for i, p in ipairs(vl.lora.list) do sz.core.check(sz.core.C.sz_random_normal_(p.b.ptr, 3, i, 0, 0.2)) end
vl:save(out .. "/adapter")
local row = {}
for i = 1, 12 do row[i] = i - 1 end
local inp = {input_ids = {5, 9, 40, 77, 3, 120, 8, 8, 31, 200, 17, 60}, position_ids = sz.tensor({row, row, row}, {dtype = "i32"}),
  next_position = 12, image_grid_thw = {}}
sz.safetensors.save(out .. "/logits.safetensors", {logits = vl:forward(inp)})
"""
IDS = [5, 9, 40, 77, 3, 120, 8, 8, 31, 200, 17, 60]


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--segzero", default="./segzero")
    args = p.parse_args()
    torch.set_num_threads(1)
    ids, bad = torch.tensor([IDS]), 0
    for name in ("qwen_vl/Q1", "qwen2_vl/V1"):
        folder, cls = "tests/golden/" + name, CLASSES[name.split("/")[0]]
        for target, exclude in SETTINGS:
            with tempfile.TemporaryDirectory() as out:
                lua = LUA % (json.dumps(folder), json.dumps(out),
                             json.dumps(json.dumps([target, exclude])))
                subprocess.run([args.segzero, "--threads", "1", "-e", lua], check=True)
                subprocess.run([args.segzero, "--threads", "1", "examples/merge_lora.lua",
                                "in=" + folder, "adapter=" + out + "/adapter",
                                "out=" + out + "/merged", "dtype=f32"], check=True,
                               stdout=subprocess.DEVNULL)
                base = cls.from_pretrained(folder, dtype=torch.float32,
                                           attn_implementation="eager").eval()
                own = peft.get_peft_model(base,
                                          peft.LoraConfig(r=3, lora_alpha=7, target_modules=target,
                                                          exclude_modules=exclude))
                theirs = {n.replace(".default", "") for n,
                          x in own.named_parameters() if x.requires_grad}
                same = theirs == set(load_file(out + "/adapter/adapter_model.safetensors"))
                base = cls.from_pretrained(folder, dtype=torch.float32,
                                           attn_implementation="eager").eval()
                loaded = peft.PeftModel.from_pretrained(base, out + "/adapter")
                merged = cls.from_pretrained(out + "/merged", dtype=torch.float32,
                                             attn_implementation="eager").eval()
                with torch.no_grad():
                    want = loaded(input_ids=ids).logits[0]
                    again = merged(input_ids=ids).logits[0]
                got = load_file(out + "/logits.safetensors")["logits"]
                scale = want.abs().max()
                far, far_merged = ((got - want).abs().max() / scale).item(), (
                    (again - want).abs().max() / scale).item()
                ok = same and far < 2e-5 and far_merged < 2e-5
                bad += not ok
                print("%s %s %s: %d layers%s, logits %.1e, merged %.1e%s" % (name, target, exclude,
                                                                             len(theirs) // 2,
                      "" if same else " IN PEFT, OTHERS HERE", far, far_merged,
                                                                             "" if ok
                                                                             else " DIFFERENT"))
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
