"""Computes the first GRPO step that tests/bench/check_step.lua wrote down again, with transformers:
loss, log-probabilities, gradient norms.

    python tests/bench/check_step.py OUTPUT MODEL [--loss-only] [--f32]

OUTPUT is check_step.lua's folder, MODEL the Hugging Face folder it ran on. Each answer is one
sequence of its own (prompt and answer, no packing), in bf16 as the run was, or in f32 to see which
of the two is nearer. --loss-only leaves the gradients out: for a model whose gradients do not fit
next to its weights. Without KL loss (worker.actor.use_kl_loss=false). """
import argparse
import json

import torch
from safetensors.torch import load_file
from transformers import Qwen2_5_VLForConditionalGeneration

parser = argparse.ArgumentParser()
parser.add_argument("output")
parser.add_argument("model")
parser.add_argument("--loss-only", action="store_true")
parser.add_argument("--f32", action="store_true")
args = parser.parse_args()

case = json.load(open(args.output + "/case.json"))
pixels = load_file(args.output + "/pixels.safetensors")
dtype = torch.float32 if args.f32 else torch.bfloat16
model = Qwen2_5_VLForConditionalGeneration.from_pretrained(args.model, dtype=dtype,
                                                           attn_implementation="sdpa")
model.train()
if args.loss_only:
    model.requires_grad_(False)

actor = case["settings"]["worker"]["actor"]
temperature = case["settings"]["worker"]["rollout"]["temperature"]
tokens = sum(len(a["ids"]) for g in case["groups"] for a in g["answers"])
total, worst, sums = 0.0, 0.0, [0.0, 0]
for i, g in enumerate(case["groups"]):
    grid = torch.tensor(g["grid"])
    image = pixels[f"pixels.{i}"].to(dtype)
    for a in g["answers"]:
        ids = torch.tensor([g["input_ids"] + a["ids"]])
        kinds = (ids == model.config.image_token_id).int()
        out = model(input_ids=ids, attention_mask=torch.ones_like(ids), mm_token_type_ids=kinds,
                    pixel_values=image, image_grid_thw=grid,
                    use_cache=False, logits_to_keep=len(a["ids"]) + 1)
        logits = out.logits[0, :-1].float() / temperature
        log_p = torch.log_softmax(logits, -1)
        lp = log_p.gather(1, torch.tensor(a["ids"])[:, None])[:, 0]
        entropy = -(log_p.exp() * log_p).sum(-1)
        old, advantage = torch.tensor(a["logprobs"]), a["advantage"]
        ratio = torch.exp(lp - old)
        low, high = 1 - actor["clip_ratio"], 1 + actor["clip_ratio"]
        policy = torch.maximum(-advantage * ratio, -advantage * ratio.clamp(low, high))
        loss = ((policy - actor["entropy_coeff"] * entropy) / tokens).sum()
        if not args.loss_only:
            loss.backward()
        total += loss.item()
        difference = (lp - old).abs()
        worst = max(worst, difference.max().item())
        sums[0] += difference.sum().item()
        sums[1] += len(a["ids"])

print(
    f"loss {case['stats']['loss']:.6f}, transformers {total:.6f}, difference "
    f"{abs(case['stats']['loss'] - total):.2e}")
print(
    f"log-probabilities of {tokens} tokens: largest difference {worst:.2e}, mean {sums[0] / sums[1]:.2e}")
if not args.loss_only:
    squares, ratios = 0.0, []
    for name, p in model.named_parameters():
        if p.grad is None:
            continue
        s = (p.grad.float() ** 2).sum().item()
        squares += s
        ours = name.replace("model.visual.", "visual.").replace("model.language_model.", "model.")
        if s > 0 and ours in case["squares"]:
            ratios.append((abs((case["squares"][ours] / s) ** 0.5 - 1), ours))
    ratios.sort(reverse=True)
    norm = squares ** 0.5
    print(
        f"gradient norm {case['stats']['grad_norm']:.4f}, transformers {norm:.4f}, ratio "
        f"{case['stats']['grad_norm'] / norm:.5f}")
    print(
        f"norms of {len(ratios)} of {len(case['squares'])} parameters: median difference "
        f"{ratios[len(ratios) // 2][0]:.2e}")
    for r, name in ratios[:5]:
        print(f"  {name}: {r:.2e}")
