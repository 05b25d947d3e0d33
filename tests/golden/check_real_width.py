"""Checks by hand that transformers and segzero agree at real width, on folders of
examples/random_checkpoint.lua.

Usage, from the repository's root: python tests/golden/check_real_width.py FOLDER ... [--dtype
f32|bf16] [--tokens 32]
           [--side 840] [--threads 2] [--segzero ./segzero]

For example
    ./segzero examples/random_checkpoint.lua size=3b layers=2 v_depth=4 out=w3 tokenizer=DIR
    python tests/golden/check_real_width.py w3

For each FOLDER (it needs a tokenizer) segzero draws an image of --side pixels, makes the prompt,
and writes the logits of 16 rows and a greedy continuation of --tokens tokens; then transformers
computes the same from the same ids and pixel values. One after the other, so memory holds one model
at a time.

f32: the logits' largest difference is at most 5e-5 of their largest value (sums of 1,280 to 18,944
terms in another order; the miniatures with sums of a hundred keep 2e-5), and the continuation is
equal, without stop tokens and vision tokens in both. bf16: the cosine of all compared logits is
above 0.999, as for the miniatures; the continuation is only shown. Exits 1 on a difference. Not
part of the suite, which needs no Python. """
import argparse
import json
import os
import subprocess
import sys
import tempfile
import time

import torch
from safetensors.torch import load_file
from transformers import (
    AutoConfig, GenerationConfig, Qwen2_5_VLForConditionalGeneration,
    Qwen2VLForConditionalGeneration)

LOGITS, COSINE = 5e-5, 0.999
CLASSES = {"qwen2_5_vl": Qwen2_5_VLForConditionalGeneration,
           "qwen2_vl": Qwen2VLForConditionalGeneration}

LUA = r"""
local folder, out, dtype, tokens, side = %s, %s, "%s", %d, %d
local sz, cjson = require "segzero", require "cjson"
local pack, tensor = require "segzero.inference.packing", require "segzero.core.tensor"
local now = sz.core.C.sz_seconds
local started = now()
local vl = sz.qwen_vl(folder, {dtype = dtype})
local loaded = now() - started
local scene = sz.refshapes.sample {seed = 11, split = "heldout", index = 1, size = side, level = 3, questions = 1}
local img = sz.image.new(scene.width, scene.height)
require("ffi").copy(img:pixels(), scene.rgb, scene.width * scene.height * 3)
local inp = vl:process {{role = "user", content = {{type = "image", image = img}, {type = "text", text = sz.prompt.seg_zero(scene.questions[1].problem)}}}}
local n = #inp.input_ids
local list = {}
for i = 1, 16 do list[i] = math.floor((i - 1) * (n - 1) / 15 + 0.5) end
local rows = tensor.new(list, {dtype = "i32"})
local logits = tensor.no_grad(function()
  return tensor.step(function()
    local stream = packing.stream({{input = inp, answers = {}}}, vl.image_token_id)
    return vl:logits(vl:hidden(stream, vl:vision {inp}, {rows = rows})):clone()
  end)
end)
started = now()
local first
local answer = sz.rollout.generate(vl, {inp}, {temperature = 0, max_new_tokens = tokens, ignore_eos = true,
  on_token = function() first = first or now() end})[1][1]
local banned = {}
for _, name in ipairs {"vision_start_token_id", "vision_end_token_id", "vision_token_id", "image_token_id", "video_token_id"} do banned[#banned + 1] = vl[name] end
for id = vl:tokenizer():size(), vl.config.vocab - 1 do banned[#banned + 1] = id end
sz.safetensors.save(out .. "/case.safetensors", {input_ids = tensor.new(inp.input_ids, {dtype = "i32"}), rows = rows, logits = logits,
  pixel_values = inp.pixel_values, grid = tensor.new(inp.image_grid_thw, {dtype = "i32"})})
require("segzero.core.files").write(out .. "/case.json", cjson.encode {ids = answer.ids, banned = banned, loaded = loaded, prompt = n,
  first = first - started, seconds = now() - started, peak = tonumber(sz.core.C.sz_peak_rss())})
"""


def check(folder, args):
    with tempfile.TemporaryDirectory() as out:
        lua = LUA % (json.dumps(folder), json.dumps(out), args.dtype, args.tokens, args.side)
        subprocess.run([args.segzero, "--threads", str(args.threads), "-e", lua], check=True)
        case = json.load(open(out + "/case.json"))
        t = load_file(out + "/case.safetensors")
    cls = CLASSES[AutoConfig.from_pretrained(folder).model_type]
    model, info = cls.from_pretrained(folder, dtype=torch.float32 if args.dtype == "f32"
                                      else torch.bfloat16,
                                      attn_implementation="sdpa", output_loading_info=True)
    model.eval().generation_config = GenerationConfig()
    problems = {k: sorted(map(str, v)) for k, v in info.items() if v}
    ids = t["input_ids"].long()[None]
    inputs = dict(input_ids=ids, mm_token_type_ids=(ids == model.config.image_token_id).int(),
                  attention_mask=torch.ones_like(ids),
                  image_grid_thw=t["grid"].long(), pixel_values=t["pixel_values"])
    started = time.time()
    with torch.no_grad():
        hidden = model.model(**inputs).last_hidden_state[0, t["rows"].long()]
        want = model.lm_head(hidden).float()
        got = t["logits"].float()
        far = ((got - want).abs().max() / want.abs().max()).item()
        cosine = torch.nn.functional.cosine_similarity(got.double().flatten(),
                                                       want.double().flatten(), 0).item()
        new = model.generate(**inputs, max_new_tokens=args.tokens, do_sample=False,
                             eos_token_id=None, pad_token_id=0,
                             suppress_tokens=case["banned"])[0].tolist()[ids.shape[1]:]
    equal = next((i for i, (a, b) in enumerate(zip(new, case["ids"])) if a != b), len(new))
    good = not problems and (far <= LOGITS and equal == args.tokens if args.dtype == "f32"
                             else cosine > COSINE)
    print(
        "%s %s: %s; logits differ by %.1e of the largest, cosine %.7f; %d of %d greedy tokens "
        "equal; prompt %d tokens, "
          "loaded in %.0f ms, first token %.1f s, all %.1f s, peak %.2f GB (transformers %.1f s)%s" % (
              os.path.basename(folder.rstrip("/")), args.dtype, "good" if good else "DIFFERENT",
                                                                                                       far, cosine, equal, args.tokens,
              case["prompt"], 1e3 * case["loaded"], case["first"], case["seconds"],
                                                                                                       case["peak"] / 1e9, time.time() - started,
              " loading: %s" % problems if problems else ""), flush=True)
    return good


def main():
    p = argparse.ArgumentParser()
    p.add_argument("folders", nargs="+")
    p.add_argument("--dtype", choices=["f32", "bf16"], default="f32")
    p.add_argument("--tokens", type=int, default=32)
    p.add_argument("--side", type=int, default=840)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--segzero", default="./segzero")
    args = p.parse_args()
    torch.set_num_threads(args.threads)
    sys.exit(0 if all([check(f, args) for f in args.folders]) else 1)


if __name__ == "__main__":
    main()
