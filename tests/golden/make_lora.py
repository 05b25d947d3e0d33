"""Golden files for LoRA adapters: PEFT on the tiny checkpoints that make_qwen_vl.py wrote.

Usage: python make_lora.py [OUTDIR (default: the folder of this file)] [CASE ...]

Needs peft (requirements.txt) and what make_qwen_vl.py needs, and its folders in OUTDIR. Writes
OUTDIR/lora/<id>/: the adapter folder as PEFT's save_pretrained writes it (adapter_config.json,
adapter_model.safetensors; both parts random, so that both have gradients), and

  case.json          model (the checkpoint's folder), sequence (its label), modules (how many layers
                     are adapted), f32_noise (largest relative distance of logits and gradients from
                     a run in double precision), bf16_cosine (of the logits with a bf16 base and f32
                     adapters under autocast, as training runs them)
  case.safetensors   logits f32 [R, V] at the sequence's logit_rows, loss_logprobs f32 [8],
                     grad.<name in adapter_model.safetensors>

The loss is the sequence's own: sum of loss_coefs * log p(loss_targets) at loss_positions. Left out:
dropout. """
import json
import os
import shutil
import sys

import peft
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2VLForConditionalGeneration

CLASSES = {"qwen_vl": Qwen2_5_VLForConditionalGeneration,
           "qwen2_vl": Qwen2VLForConditionalGeneration}
IMAGE = 250

CASES = {
    "L1": dict(model="qwen_vl/Q1", sequence="adjacent", r=2, lora_alpha=5,
               target_modules="all-linear"),
    "L2": dict(model="qwen_vl/Q1", sequence="middle", r=3, lora_alpha=3,
               target_modules=["q_proj", "v_proj"]),
    "L3": dict(model="qwen_vl/Q1", sequence="text", r=2, lora_alpha=4, use_rslora=True,
               target_modules=r".*language_model.*\.mlp\.(gate|down)_proj"),
    "L4": dict(model="qwen2_vl/V1", sequence="middle", r=2, lora_alpha=8,
               target_modules="all-linear",
               exclude_modules=".*visual.*"),
    "L5": dict(model="qwen2_vl/V1", sequence="adjacent", r=2, lora_alpha=4,
               target_modules=["qkv", "fc1", "mlp.0", "k_proj"]),
}


def relative(a, b):
    return ((a.double() - b.double()).abs().max() / b.double().abs().max().clamp_min(1e-30)).item()


def run(model, inputs, t, key):
    logits = model(**inputs).logits[0]
    lp = torch.log_softmax(logits[t[key + "loss_positions"].long()], -1)
    picked = lp.gather(1, t[key + "loss_targets"].long()[:, None])[:, 0]
    (t[key + "loss_coefs"].to(picked.dtype) * picked).sum().backward()
    return logits[t[key + "logit_rows"].long()].detach(), picked.detach()


def make(name, outdir):
    spec = dict(CASES[name])
    model_name, label = spec.pop("model"), spec.pop("sequence")
    source, family = os.path.join(outdir, model_name), model_name.split("/")[0]
    case = json.load(open(os.path.join(source, "case.json")))
    sequence = next(s for s in case["sequences"] if s["label"] == label)
    t, key = load_file(os.path.join(source, "case.safetensors")), sequence["prefix"]
    pixels = load_file(os.path.join(outdir, "qwen_vl", "pixels.safetensors"))

    def base(dtype):
        return CLASSES[family].from_pretrained(source, dtype=dtype,
                                               attn_implementation="eager").eval()

    ids = t[key + "input_ids"].long()[None]
    inputs = dict(input_ids=ids, mm_token_type_ids=(ids == IMAGE).int())
    if sequence["images"]:
        inputs["image_grid_thw"] = t[key + "image_grid_thw"].long()
        inputs["pixel_values"] = torch.cat(
            [(pixels[n].float() - 128) / 64 for n in sequence["images"]])

    model = peft.get_peft_model(base(torch.float32), peft.LoraConfig(**spec))
    gen = torch.Generator().manual_seed(int(name[1:]))
    for p in model.parameters():
        if p.requires_grad:
            p.data.copy_(torch.randn(p.shape, generator=gen) * 0.2)
    folder = os.path.join(outdir, "lora", name)
    shutil.rmtree(folder, ignore_errors=True)
    model.peft_config["default"].base_model_name_or_path = model_name
    model.save_pretrained(folder)
    os.remove(os.path.join(folder, "README.md"))
    path = os.path.join(folder, "adapter_config.json")
    config = json.load(open(path))
    if isinstance(config["target_modules"], list):
        config["target_modules"].sort()                 # PEFT writes a set, in any order
    with open(path, "w") as f:
        json.dump(config, f, indent=2, sort_keys=True)
    saved = load_file(os.path.join(folder, "adapter_model.safetensors"))

    logits, picked = run(model, inputs, t, key)
    assert relative(logits, t[key + "logits"]) > 1e-3, "the adapters change nothing"
    grads = {n.replace(".default", ""): p.grad for n,
             p in model.named_parameters() if p.requires_grad}
    assert set(grads) == set(saved) and all(g is not None for g in grads.values())

    again = peft.PeftModel.from_pretrained(base(torch.float32), folder, is_trainable=True)
    assert torch.equal(again(**inputs).logits[0][t[key + "logit_rows"].long()].detach(),
                       logits), "the files are not the model"
    half = peft.PeftModel.from_pretrained(base(torch.bfloat16), folder)
    with torch.autocast("cpu", torch.bfloat16):
        low = half(**inputs).logits[0][t[key + "logit_rows"].long()].detach()
    cosine = torch.nn.functional.cosine_similarity(low.double().flatten(),
                                                   logits.double().flatten(), 0).item()
    exact = peft.PeftModel.from_pretrained(base(torch.float64), folder, is_trainable=True,
                                           autocast_adapter_dtype=False).double()
    if "pixel_values" in inputs:
        inputs["pixel_values"] = inputs["pixel_values"].double()
    logits64, _ = run(exact, inputs, t, key)
    grads64 = {n.replace(".default", ""): p.grad for n,
               p in exact.named_parameters() if p.requires_grad}
    noise = dict(logits=relative(logits, logits64),
                 gradients=max(relative(grads[n], grads64[n]) for n in grads))

    tensors = {"logits": logits, "loss_logprobs": picked}
    tensors.update({"grad." + n: g for n, g in grads.items()})
    save_file({k: v.contiguous().clone() for k, v in tensors.items()},
              os.path.join(folder, "case.safetensors"))
    with open(os.path.join(folder, "case.json"), "w") as f:
        json.dump(dict(id=name, model=model_name, sequence=label, modules=len(saved) // 2,
                       f32_noise=noise, bf16_cosine=cosine,
                       versions=dict(torch=torch.__version__, transformers=transformers.__version__,
                                     peft=peft.__version__)),
                  f, separators=(",", ":"))
        f.write("\n")
    print(name, model_name, label, "modules", len(saved) // 2, "noise", noise, "bf16 cos", cosine,
          flush=True)


def main():
    torch.set_num_threads(1)       # a fixed summation order
    transformers.utils.logging.disable_progress_bar()
    outdir = sys.argv[1] if len(sys.argv) > 1 else os.path.dirname(os.path.abspath(__file__))
    for name in sys.argv[2:] or CASES:
        make(name, outdir)


if __name__ == "__main__":
    main()
