"""The peer's side of the benchmark: transformers' Qwen-VL in PyTorch on the CPU, on the work bench_model.json names.

Usage: python bench_torch.py [--train-timed N] [--only prefill,decode,train] [--attention sdpa|eager]
                             [--dtype f32|bf16] [--threads N] [--times N] [--save DIR | --model DIR]

--model: a checkpoint folder (Qwen2-VL or Qwen2.5-VL) instead of bench_model.json's random one; the work stays the same.

The prompt is text_tokens_before + start marker + 900 picture tokens + end marker + text_tokens_after = 1000 tokens.
Prints one JSON object a line: {name, value, unit}.
  prefill_seconds            vision tower and prompt, logits of the last position only, best of two (--times)
  decode_1, decode_8         generated tokens per second over all answers, greedy, with the cache, batch of 1 and of n;
                             the cache is filled once and repeated, so prefill is not in it
  train_tokens_per_second    answer tokens / seconds of forward + backward of the mean log-prob, each answer with its
                             prompt and picture on its own; the answers are equal work, and --train-timed says how many
                             of them are run (default: all)
  train_positions_per_second the same, counting prompt tokens too
  peak_bytes                 the process' largest resident set
Left out: optimizer step, generate()'s own overhead, bf16 unless --dtype or work.dtype says so.
"""
import argparse
import copy
import json
import os
import resource
import time

import torch
import transformers
from transformers import AutoModelForImageTextToText, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration


def emit(name, value, unit):
    print(json.dumps(dict(name=name, value=round(value, 4), unit=unit)), flush=True)


def build(spec, dtype, attention):
    config = Qwen2_5_VLConfig(**spec["model"])
    config._attn_implementation = attention
    torch.manual_seed(1)
    torch.set_default_dtype(dtype)
    model = Qwen2_5_VLForConditionalGeneration(config)
    torch.set_default_dtype(torch.float32)
    return model.eval()


def load(spec, folder, dtype, attention):
    """The folder's model; spec["model"] becomes its ids and vision sizes."""
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype, attn_implementation=attention)
    config = model.config
    spec["model"] = dict(image_token_id=config.image_token_id, vision_start_token_id=config.vision_start_token_id,
                         vision_end_token_id=config.vision_end_token_id, vision_config=dict(patch_size=config.vision_config.patch_size))
    return model.eval()


def prompt_inputs(spec, dtype):
    cfg, work = spec["model"], spec["work"]
    h, w = (s // cfg["vision_config"]["patch_size"] for s in work["image_size"])
    text = lambda n: torch.randint(0, cfg["image_token_id"], (n,)).tolist()
    ids = text(work["text_tokens_before"]) + [cfg["vision_start_token_id"]] + [cfg["image_token_id"]] * (h * w // 4)
    ids = torch.tensor([ids + [cfg["vision_end_token_id"]] + text(work["text_tokens_after"])])
    return dict(input_ids=ids, mm_token_type_ids=(ids == cfg["image_token_id"]).int(),
                image_grid_thw=torch.tensor([[1, h, w]]), pixel_values=torch.randn(h * w, 1176).to(dtype))


@torch.no_grad()
def prefill(model, inputs, times):
    best, out = float("inf"), None
    for _ in range(times):
        start = time.perf_counter()
        out = model(**inputs, use_cache=True, logits_to_keep=1)
        best = min(best, time.perf_counter() - start)
    emit("prefill_seconds", best, "s")
    return out


@torch.no_grad()
def decode(model, inputs, filled, answers, steps):
    cache = copy.deepcopy(filled.past_key_values)
    if answers > 1:
        cache.batch_repeat_interleave(answers)
    token = filled.logits[:, -1].argmax(-1, keepdim=True).repeat(answers, 1)
    position = inputs["input_ids"].shape[1] + model.model.rope_deltas.item()
    start = time.perf_counter()
    for step in range(steps):
        if step == 2:                 # the first two warm up
            start = time.perf_counter()
        out = model(input_ids=token, past_key_values=cache, use_cache=True,
                    position_ids=torch.full((3, answers, 1), position + step))
        token = out.logits[:, -1].argmax(-1, keepdim=True)
    seconds = time.perf_counter() - start
    emit(f"decode_{answers}", answers * (steps - 2) / seconds, "tokens/s")


def train(model, spec, inputs, timed):
    work = spec["work"]
    length = inputs["input_ids"].shape[1]
    n = work["answer_tokens"]
    model.zero_grad()
    start = time.perf_counter()
    for _ in range(timed):
        answer = torch.randint(0, spec["model"]["image_token_id"], (1, n))
        ids = torch.cat([inputs["input_ids"], answer], 1)
        types = (ids == spec["model"]["image_token_id"]).int()
        logits = model(**dict(inputs, input_ids=ids, mm_token_type_ids=types), use_cache=False,
                       logits_to_keep=n + 1).logits[0, :-1].float()
        lp = torch.log_softmax(logits, -1).gather(1, answer[0][:, None])
        (-lp.sum() / (n * work["answers"])).backward()
    seconds = time.perf_counter() - start
    emit("train_tokens_per_second", timed * n / seconds, "tokens/s")
    emit("train_positions_per_second", timed * (n + length) / seconds, "tokens/s")
    emit("train_seconds_per_answer", seconds / timed, "s")


def main():
    here = os.path.dirname(os.path.abspath(__file__))
    with open(os.path.join(here, "bench_model.json")) as f:
        spec = json.load(f)
    args = argparse.ArgumentParser()
    args.add_argument("--train-timed", type=int, default=spec["work"]["answers"])
    args.add_argument("--only", default="prefill,decode,train")
    args.add_argument("--attention", default="sdpa")
    args.add_argument("--dtype", choices=["f32", "bf16"], default=spec["work"]["dtype"])
    args.add_argument("--threads", type=int, default=spec["work"]["threads"])
    args.add_argument("--times", type=int, default=2, help="passes over the prompt, the fastest counts")
    args.add_argument("--save", help="write the random model as a checkpoint folder and stop")
    args.add_argument("--model", help="a checkpoint folder")
    args = args.parse_args()
    torch.set_num_threads(args.threads)
    transformers.utils.logging.set_verbosity_error()
    dtype = dict(f32=torch.float32, bf16=torch.bfloat16)[args.dtype]
    model = load(spec, args.model, dtype, args.attention) if args.model else build(spec, dtype, args.attention)
    if args.save:
        model.save_pretrained(args.save)
        return
    emit("parameters", sum(p.numel() for p in model.parameters()) / 1e6, "million")
    inputs = prompt_inputs(spec, dtype)
    emit("prompt_tokens", inputs["input_ids"].shape[1], "tokens")
    only = args.only.split(",")
    if "prefill" in only or "decode" in only:
        filled = prefill(model, inputs, args.times)
    if "decode" in only:
        for answers in (1, spec["work"]["answers"]):
            decode(model, inputs, filled, answers, spec["work"]["decode_tokens"])
    if "train" in only:
        filled = None
        train(model, spec, inputs, args.train_timed)
    emit("peak_bytes", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, "bytes")


if __name__ == "__main__":
    main()
