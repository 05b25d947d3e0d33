"""The peer's side of the benchmark: transformers' Qwen-VL in PyTorch, on the work bench_model.json
names.

Usage: python bench_torch.py [--train-timed N] [--only matmul,prefill,decode,vision,train]
[--attention sdpa|eager] [--device cpu|cuda]
                             [--dtype f32|bf16] [--threads N] [--times N] [--spec FILE.json] [--side
                             N] [--save DIR | --model DIR]

--spec: a file like bench_model.json, {"model": a config, "work": ...}, instead of it. --device
cuda: random weights are made there, the device is waited for before a clock is read, and
device_memory is torch's peak.

--model: a checkpoint folder (Qwen2-VL or Qwen2.5-VL) instead of bench_model.json's random one; the
work stays the same.

The prompt is text_tokens_before + start marker + 900 image tokens + end marker +
text_tokens_after = 1000 tokens. Prints one JSON object a line: {name, value, unit}.
  matmul_f32, matmul_bf16    GFLOP/s of a square product, --side wide
  prefill_seconds            vision tower and prompt, logits of the last position only, best of two
                             (--times)
  vision_seconds             the vision tower alone, forward
  decode_1, decode_8         generated tokens per second over all answers, greedy, with the cache,
                             batch of 1 and of n (work.decode_answers, else work.answers); the cache
                             is filled once and repeated, so prefill is not in it
  train_tokens_per_second    answer tokens / seconds of forward + backward of the mean log-prob,
                             each answer with its prompt and image on its own; the answers are
                             equal work, and --train-timed says how many of them are run (default:
                             all)
  train_positions_per_second the same, counting prompt tokens too
  peak_bytes                 the process' largest resident set device_memory GiB that torch had
                             allocated at most
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
from transformers import (
    AutoModelForImageTextToText, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration)


def emit(name, value, unit):
    print(json.dumps(dict(name=name, value=round(value, 4), unit=unit)), flush=True)


def seconds():
    """The clock, after the work given to the device."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def build(spec, dtype, attention, device):
    config = Qwen2_5_VLConfig(**spec["model"])
    config._attn_implementation = attention
    torch.manual_seed(1)
    torch.set_default_dtype(dtype)
    with torch.device(device):
        model = Qwen2_5_VLForConditionalGeneration(config)
    torch.set_default_dtype(torch.float32)
    return model.eval()


def load(spec, folder, dtype, attention, device):
    """The folder's model; spec["model"] becomes its ids and vision sizes."""
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype,
                                                        attn_implementation=attention).to(device)
    config = model.config
    spec["model"] = dict(image_token_id=config.image_token_id,
                         vision_start_token_id=config.vision_start_token_id,
                         vision_end_token_id=config.vision_end_token_id,
                         vision_config=dict(patch_size=config.vision_config.patch_size))
    return model.eval()


def prompt_inputs(spec, dtype, device):
    cfg, work = spec["model"], spec["work"]
    h, w = (s // cfg["vision_config"]["patch_size"] for s in work["image_size"])
    text = lambda n: torch.randint(0, cfg["image_token_id"], (n,)).tolist()
    ids = text(work["text_tokens_before"]) + [cfg["vision_start_token_id"]] + [
        cfg["image_token_id"]] * (h * w // 4)
    ids = torch.tensor([ids + [cfg["vision_end_token_id"]] + text(work["text_tokens_after"])])
    made = dict(input_ids=ids, mm_token_type_ids=(ids == cfg["image_token_id"]).int(),
                image_grid_thw=torch.tensor([[1, h, w]]),
                pixel_values=torch.randn(h * w, 1176).to(dtype))
    return {name: t.to(device) for name, t in made.items()}


@torch.no_grad()
def best(times, f):
    """Seconds of the fastest call after one to warm up, and the last result."""
    out, least = f(), float("inf")
    for _ in range(times):
        start = seconds()
        out = f()
        least = min(least, seconds() - start)
    return least, out


def matmul(dtype, side, device):
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    emit("matmul_" + {torch.float32: "f32", torch.bfloat16: "bf16"}[dtype],
         2 * side ** 3 / best(3, lambda: a @ b.T)[0] / 1e9, "GFLOP/s")


@torch.no_grad()
def prefill(model, inputs, times):
    least, out = best(times, lambda: model(**inputs, use_cache=True, logits_to_keep=1))
    emit("prefill_seconds", least, "s")
    return out


@torch.no_grad()
def vision(model, inputs, times):
    emit("vision_seconds", best(times,
                                lambda: model.model.visual(inputs["pixel_values"],
                                                           grid_thw=inputs["image_grid_thw"]))[0],
         "s")


@torch.no_grad()
def decode(model, inputs, filled, answers, steps):
    cache = copy.deepcopy(filled.past_key_values)
    if answers > 1:
        cache.batch_repeat_interleave(answers)
    token = filled.logits[:, -1].argmax(-1, keepdim=True).repeat(answers, 1)
    position = inputs["input_ids"].shape[1] + model.model.rope_deltas.item()
    for step in range(steps):
        if step == 2:                 # the first two warm up
            start = seconds()
        out = model(input_ids=token, past_key_values=cache, use_cache=True,
                    position_ids=torch.full((3, answers, 1), position + step, device=token.device))
        token = out.logits[:, -1].argmax(-1, keepdim=True)
    emit(f"decode_{answers}", answers * (steps - 2) / (seconds() - start), "tokens/s")


def train(model, spec, inputs, timed):
    work = spec["work"]
    length = inputs["input_ids"].shape[1]
    n = work["answer_tokens"]
    device = inputs["input_ids"].device
    start = seconds()
    for i in range(-(device.type == "cuda"), timed):
        if i == 0:                    # on a device one more before, to warm up
            model.zero_grad()
            start = seconds()
        answer = torch.randint(0, spec["model"]["image_token_id"], (1, n)).to(device)
        ids = torch.cat([inputs["input_ids"], answer], 1)
        types = (ids == spec["model"]["image_token_id"]).int()
        logits = model(**dict(inputs, input_ids=ids, mm_token_type_ids=types), use_cache=False,
                       logits_to_keep=n + 1).logits[0, :-1].float()
        lp = torch.log_softmax(logits, -1).gather(1, answer[0][:, None])
        (-lp.sum() / (n * work["answers"])).backward()
    spent = seconds() - start
    emit("train_tokens_per_second", timed * n / spent, "tokens/s")
    emit("train_positions_per_second", timed * (n + length) / spent, "tokens/s")
    emit("train_seconds_per_answer", spent / timed, "s")


def main():
    args = argparse.ArgumentParser()
    args.add_argument("--train-timed", type=int)
    args.add_argument("--only", default="prefill,decode,train")
    args.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    args.add_argument("--spec",
                      default=os.path.join(os.path.dirname(os.path.abspath(__file__)),
                                           "bench_model.json"))
    args.add_argument("--side", type=int, help="default: 2048, on a device 8192")
    args.add_argument("--attention", default="sdpa")
    args.add_argument("--dtype", choices=["f32", "bf16"], help="default: the work's, else f32")
    args.add_argument("--threads", type=int, help="default: the work's")
    args.add_argument("--times", type=int, default=2,
                      help="passes over the prompt, the fastest counts")
    args.add_argument("--save", help="write the random model as a checkpoint folder and stop")
    args.add_argument("--model", help="a checkpoint folder")
    args = args.parse_args()
    with open(args.spec) as f:
        spec = json.load(f)
    work = spec["work"]
    torch.set_num_threads(args.threads or work["threads"])
    transformers.utils.logging.set_verbosity_error()
    dtype = dict(f32=torch.float32, bf16=torch.bfloat16)[args.dtype or work.get("dtype", "f32")]
    only = args.only.split(",")
    if "matmul" in only:
        matmul(dtype, args.side or (8192 if args.device == "cuda" else 2048), args.device)
    model = load(spec, args.model, dtype, args.attention,
                 args.device) if args.model else build(spec, dtype, args.attention, args.device)
    if args.save:
        model.save_pretrained(args.save)
        return
    emit("parameters", sum(p.numel() for p in model.parameters()) / 1e6, "million")
    inputs = prompt_inputs(spec, dtype, args.device)
    emit("prompt_tokens", inputs["input_ids"].shape[1], "tokens")
    if "prefill" in only or "decode" in only:
        filled = prefill(model, inputs, args.times)
    if "decode" in only:
        for answers in [1] + work.get("decode_answers", [work["answers"]]):
            decode(model, inputs, filled, answers, work["decode_tokens"])
    if "vision" in only:
        vision(model, inputs, args.times)
    if "train" in only:
        filled = None
        train(model, spec, inputs, args.train_timed or work["answers"])
    if args.device == "cuda":
        emit("device_memory", torch.cuda.max_memory_allocated() / 2 ** 30, "GiB")
    emit("peak_bytes", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, "bytes")


if __name__ == "__main__":
    main()
