"""Checks by hand that transformers and segzero agree on a model folder that segzero saved.

Usage, from the repository's root: python tests/golden/check_transformers.py FOLDER [--rows 4]
[--tokens 110] [--segzero ./segzero]

segzero loads FOLDER, saves it again into a temporary folder, draws --rows RefShapes images, and
answers each question greedily in f32. transformers loads what was saved (processor, tokenizer,
model) and does the same from the PNG files. Compared for each row: token ids of the prompt, pixel
values (equal to 1e-6), greedy token ids and text. Exits 1 on a difference. Not part of the suite,
which needs no Python. """
import argparse
import json
import subprocess
import sys
import tempfile

import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

LUA = r"""
local folder, out, rows, tokens = %s, %s, %d, %d
local sz, cjson = require "segzero", require "cjson"
local vl = sz.qwen_vl(folder, {dtype = "f32"})
vl:save(out .. "/model")
local size = vl.json.segzero_frame or 168
local set = sz.data.open("refshapes", {split = "heldout", size = size, seed = 42, rows = rows})
local list, pixels = {}, {}
for i = 1, rows do
  local row = set:row(i)
  local name = out .. "/" .. i .. ".png"
  row.image:save(name)
  local text = sz.prompt.seg_zero(row.problem)
  local inp = vl:process {{role = "system", content = "You are a helpful assistant."},
    {role = "user", content = {{type = "image", image = row.image}, {type = "text", text = text}}}}
  local a = vl:generate(inp, {temperature = 0, max_new_tokens = tokens})[1]
  list[i] = {image = name, text = text, input_ids = inp.input_ids, ids = a.ids, answer = a.text, finish = a.finish}
  pixels["p" .. i] = inp.pixel_values
end
sz.safetensors.save(out .. "/pixels.safetensors", pixels)
require("segzero.core.files").write(out .. "/rows.json", cjson.encode(list))
"""


def main():
    p = argparse.ArgumentParser()
    p.add_argument("folder")
    p.add_argument("--rows", type=int, default=4)
    p.add_argument("--tokens", type=int, default=110)
    p.add_argument("--segzero", default="./segzero")
    args = p.parse_args()
    with tempfile.TemporaryDirectory() as out:
        lua = LUA % (json.dumps(args.folder), json.dumps(out), args.rows, args.tokens)
        subprocess.run([args.segzero, "--threads", "1", "-e", lua], check=True)
        torch.set_num_threads(1)
        model, info = Qwen2_5_VLForConditionalGeneration.from_pretrained(
            out + "/model", dtype=torch.float32, attn_implementation="eager",
                                                                         output_loading_info=True)
        problems = {k: sorted(map(str, v)) for k, v in info.items() if v}
        processor = AutoProcessor.from_pretrained(out + "/model")
        pixels = load_file(out + "/pixels.safetensors")
        bad = 0
        if problems:
            print("loading:", problems)
            bad += 1
        for i, row in enumerate(json.load(open(out + "/rows.json")), 1):
            messages = [{"role": "system", "content": "You are a helpful assistant."},
                        {"role": "user", "content": [{"type": "image"},
                                                     {"type": "text", "text": row["text"]}]}]
            text = processor.apply_chat_template(messages, add_generation_prompt=True)
            inputs = processor(text=[text], images=[Image.open(row["image"])], return_tensors="pt")
            prompt = inputs["input_ids"][0].tolist()
            with torch.no_grad():
                got = model.generate(**inputs, max_new_tokens=args.tokens,
                                     do_sample=False)[0].tolist()[len(prompt):]
            answer = processor.tokenizer.decode(got, skip_special_tokens=True)
            far = (inputs["pixel_values"] - pixels["p%d" % i]).abs().max().item()
            same = {"prompt": prompt == row["input_ids"], "pixels": far <= 1e-6,
                    "ids": got == row["ids"], "text": answer == row["answer"]}
            bad += not all(same.values())
            print("row %d: %d prompt tokens, %d answer tokens, %s" % (
                i, len(prompt), len(got), "the same" if all(same.values()) else "DIFFERENT "
                                                                      + str(same)))
            if not all(same.values()):
                print("  transformers:", answer, "\n  segzero:     ", row["answer"],
                      "\n  pixels differ by", far)
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
