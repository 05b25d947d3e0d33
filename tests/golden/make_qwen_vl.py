"""Golden files for Qwen2.5-VL and Qwen2-VL: tiny random checkpoints with the outputs transformers
gives for them.

Usage: python make_qwen_vl.py [OUTDIR (default: the folder of this file)] [CONFIG ...]

Writes OUTDIR/qwen_vl/pixels.safetensors (images shared by all configurations, u8 [patches, 1176];
the value fed to the model is (u8 - 128) / 64, which bf16 holds exactly),
OUTDIR/qwen_vl/positions.json, OUTDIR/qwen_vl/windows.json and, per configuration, a folder (in
qwen_vl for Q, Qwen2.5-VL; in qwen2_vl for V, Qwen2-VL) with config.json, generation_config.json,
weights (bf16 safetensors), case.json and case.safetensors. README.md describes the tensors. The
checkpoint folder is written first and then loaded by from_pretrained, so what is recorded is what
transformers makes of those very files. Left out: video, padding. """
import json
import os
import shutil
import sys

import torch
import transformers
from safetensors.torch import save_file
from transformers import (
    Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2VLConfig,
    Qwen2VLForConditionalGeneration)

IMAGE, VIDEO, VSTART, VEND, EOS = 250, 251, 252, 253, 254
SPECIAL = dict(image_token_id=IMAGE, video_token_id=VIDEO, vision_start_token_id=VSTART,
               vision_end_token_id=VEND)
LOGIT_ROWS = 16          # the most positions of a sequence have their logits stored
LOSS_TERMS = 8
# gradient sizes of the main sequence: whole up to, else sampled to about
MAIN_WHOLE, MAIN_SAMPLE = 512, 300
OTHER_WHOLE, OTHER_SAMPLE = 40, 40        # the same for the other sequences
# the V configurations', which share most of the code under test
SMALL_ROWS, SMALL_SAMPLE = 8, 24

# folder, config class, model class
FAMILIES = {
    "qwen2_5_vl": ("qwen_vl", Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration),
    "qwen2_vl": ("qwen2_vl", Qwen2VLConfig, Qwen2VLForConditionalGeneration),
}

# Image sizes in pixels (h, w); an image is 14 x 14 patches.
IMAGE_SIZES = [(28, 28), (56, 56), (112, 112), (140, 84), (84, 140), (112, 280), (28, 196), (140, 196)]

# A sequence is a list of runs: an int is a number of text tokens, a string an image with its start and
# end markers.
SEQUENCES = {
    "text": [13],
    "start": ["28x28", 9],
    "middle": [5, "140x84", 7],
    "end": [6, "84x140"],
    "adjacent": [4, "140x84", "112x112", 6],
    "three": [3, "56x56", 2, "28x196", 4, "28x28", 5],
    "wide": [2, "112x280", 8],
    "remainders": [3, "140x84", 1, "140x196", "84x140", 4],
}

CONFIGS = {
    "Q1": dict(
        purpose="tied, GQA 2, window and full blocks; config as transformers 5 saves it",
        vision=dict(depth=4, hidden_size=32, intermediate_size=52, num_heads=2,
                    fullatt_block_indexes=[1, 3],
                    out_hidden_size=64, window_size=112),
        text=dict(hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
                  num_key_value_heads=2, vocab_size=300, rms_norm_eps=1e-6),
        section=[2, 3, 3], theta=1e6, tie=True, config="nested", names="old", shards=1,
        sequences=["adjacent", "text", "start", "middle", "end", "three", "wide"],
               generate="middle"),
    "Q2": dict(
        purpose="untied, 7 query heads per key head, odd sizes, small windows; flat config of the "
                "hub's style",
        vision=dict(depth=3, hidden_size=48, intermediate_size=37, num_heads=3,
                    fullatt_block_indexes=[2],
                    out_hidden_size=112, window_size=56),
        text=dict(hidden_size=112, intermediate_size=75, num_hidden_layers=2,
                  num_attention_heads=14,
                  num_key_value_heads=2, vocab_size=333, rms_norm_eps=1e-6),
        section=[1, 1, 2], theta=1e6, tie=False, config="flat-mrope", names="old", shards=1,
        sequences=["adjacent", "text", "middle", "three"], generate="three"),
    "Q3": dict(
        purpose="no full block, one vision head of 80, no GQA, rope_theta 10000; new weight "
                "names, two shards",
        vision=dict(depth=2, hidden_size=80, intermediate_size=64, num_heads=1,
                    fullatt_block_indexes=[],
                    out_hidden_size=48, window_size=112),
        text=dict(hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=3,
                  num_key_value_heads=3, vocab_size=257, rms_norm_eps=1e-6),
        section=[4, 2, 2], theta=1e4, tie=False, config="nested", names="new", shards=2,
        sequences=["adjacent", "start", "middle"], generate=None),
    "Q4": dict(
        purpose="no window block, MQA; flat config with rope type default; tied with a copy of "
                "lm_head in the file",
        vision=dict(depth=2, hidden_size=32, intermediate_size=52, num_heads=2,
                    fullatt_block_indexes=[0, 1],
                    out_hidden_size=64, window_size=112),
        text=dict(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=8,
                  num_key_value_heads=1, vocab_size=300, rms_norm_eps=1e-6),
        section=[2, 1, 1], theta=1e6, tie=True, config="flat-default", names="old", shards=1,
               stray_head=True,
        sequences=["adjacent", "middle", "three"], generate=None),
    "Q5": dict(
        purpose="the released models' head sizes, 80 and 128, with mrope [16, 24, 24]; new weight "
                "names",
        vision=dict(depth=2, hidden_size=80, intermediate_size=20, num_heads=1,
                    fullatt_block_indexes=[1],
                    out_hidden_size=256, window_size=112),
        text=dict(hidden_size=256, intermediate_size=40, num_hidden_layers=1, num_attention_heads=2,
                  num_key_value_heads=1, vocab_size=257, rms_norm_eps=1e-6),
        section=[16, 24, 24], theta=1e6, tie=True, config="nested", names="new", shards=1,
        sequences=["adjacent", "wide", "end"], generate=None),
    "Q6": dict(
        purpose="window remainders over several images; keys that equal the class defaults are "
                "missing; two shards",
        vision=dict(depth=8, hidden_size=64, intermediate_size=20, num_heads=16,
                    fullatt_block_indexes=[7, 15, 23, 31],
                    out_hidden_size=64, window_size=112),
        text=dict(hidden_size=64, intermediate_size=80, num_hidden_layers=2, num_attention_heads=8,
                  num_key_value_heads=8, vocab_size=280, rms_norm_eps=1e-5),
        section=[1, 1, 2], theta=1e6, tie=False, config="sparse", names="old", shards=2,
        sequences=["remainders", "three", "wide"], generate=None),
    "V1": dict(
        purpose="Qwen2-VL: tied, GQA 2; config as transformers 5 saves it",
        family="qwen2_vl",
        vision=dict(depth=3, embed_dim=32, hidden_size=32, mlp_ratio=4, num_heads=2),
        text=dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                  num_key_value_heads=2, vocab_size=260, rms_norm_eps=1e-6),
        section=[1, 1, 2], theta=1e6, tie=True, config="nested", names="new", shards=1,
        sequences=["adjacent", "text", "middle"], generate="middle"),
    "V2": dict(
        purpose="Qwen2-VL: untied, 7 query heads on one key head, one vision head; flat config of "
                "the hub's style",
        family="qwen2_vl",
        vision=dict(depth=2, embed_dim=20, hidden_size=56, mlp_ratio=3, num_heads=1),
        text=dict(hidden_size=56, intermediate_size=37, num_hidden_layers=1, num_attention_heads=7,
                  num_key_value_heads=1, vocab_size=257, rms_norm_eps=1e-6),
        section=[1, 1, 2], theta=1e6, tie=False, config="flat-mrope", names="old", shards=1,
        sequences=["three", "remainders"], generate="three"),
}

# What the sparse config leaves out: every one of these must come from the class defaults.
SPARSE_VISION = ["num_heads", "fullatt_block_indexes", "window_size", "patch_size",
                 "spatial_merge_size",
                 "temporal_patch_size", "in_channels", "hidden_act", "tokens_per_second",
                 "initializer_range",
                 "rope_parameters"]
SPARSE_TEXT = ["num_key_value_heads", "rms_norm_eps", "hidden_act", "max_position_embeddings",
               "attention_dropout",
               "initializer_range", "layer_types", "max_window_layers", "sliding_window",
               "use_cache",
               "use_sliding_window", "pad_token_id", "bos_token_id"]


def image_bytes():
    """u8 [patches, 1176] per image size, from one fixed random stream."""
    gen = torch.Generator().manual_seed(7001)
    out = {}
    for h, w in IMAGE_SIZES:
        x = torch.randn((h // 14) * (w // 14), 1176, generator=gen) * 64 + 128
        out[f"{h}x{w}"] = x.round().clamp(0, 255).to(torch.uint8)
    return out


def grid_of(name):
    h, w = map(int, name.split("x"))
    return [1, h // 14, w // 14]


def old_name(name):
    """In-memory parameter name -> the name used by the released files and by save_pretrained."""
    return name.replace("model.visual.", "visual.").replace("model.language_model.", "model.")


def family(spec):
    return FAMILIES[spec.get("family", "qwen2_5_vl")]


def build_config(spec):
    _, config_class, model_class = family(spec)
    text = dict(spec["text"])
    text["rope_parameters"] = dict(rope_type="default", rope_theta=spec["theta"],
                                   mrope_section=spec["section"])
    text.update(eos_token_id=EOS, bos_token_id=None)
    return config_class(text_config=text, vision_config=dict(spec["vision"]),
                        tie_word_embeddings=spec["tie"],
                        architectures=[model_class.__name__], dtype="bfloat16", **SPECIAL)


def config_json(spec, folder):
    """Writes config.json in the style that spec names."""
    build_config(spec).save_pretrained(folder)
    path = os.path.join(folder, "config.json")
    with open(path) as f:
        cfg = json.load(f)
    style = spec["config"]
    if style.startswith("flat"):
        text = cfg.pop("text_config")
        rope = text.pop("rope_parameters")
        for key in ("model_type", "layer_types", "pad_token_id", "bos_token_id", "dtype"):
            text.pop(key, None)
        cfg.update(text)
        cfg.update(rope_theta=rope["rope_theta"], sliding_window=32768,
                   torch_dtype=cfg.pop("dtype"),
                   transformers_version="4.41.2" if style == "flat-mrope" else "4.51.3")
        cfg["rope_scaling"] = dict(type="mrope", mrope_section=rope["mrope_section"])
        if style == "flat-default":
            cfg["rope_scaling"] = dict(type="default", rope_type="default",
                                       mrope_section=rope["mrope_section"])
        vision = cfg["vision_config"]
        del vision["rope_parameters"]
        if style == "flat-mrope":
            vision["in_chans"] = vision.pop("in_channels")
            vision["spatial_patch_size"] = vision["patch_size"]
            if "family" not in spec:
                vision["tokens_per_second"] = 2
            for key in ("model_type", "initializer_range"):
                vision.pop(key, None)
    elif style == "sparse":
        for key in SPARSE_VISION:
            cfg["vision_config"].pop(key, None)
        for key in SPARSE_TEXT:
            cfg["text_config"].pop(key, None)
        cfg["text_config"]["rope_parameters"].pop("rope_theta")
        cfg.pop("tie_word_embeddings")
    with open(path, "w") as f:
        json.dump(cfg, f, indent=1, sort_keys=True)
        f.write("\n")
    with open(os.path.join(folder, "generation_config.json"), "w") as f:
        json.dump(dict(do_sample=False, eos_token_id=EOS), f)
        f.write("\n")


def random_weights(spec, seed):
    """Every parameter by its in-memory name; norms near 1, biases 0.1, matrices scaled by their
    input width."""
    with torch.device("meta"):
        model = family(spec)[2](build_config(spec))
    gen = torch.Generator().manual_seed(seed)
    out = {}
    for name, p in sorted(model.named_parameters()):
        x = torch.randn(p.shape, generator=gen)
        if name.endswith(".weight") and p.dim() == 1:
            x = 1 + 0.1 * x
        elif p.dim() == 1:
            x = 0.1 * x
        else:
            fan_in = p[0].numel()
            gain = 1.5 if ("q_proj" in name or "k_proj" in name) else 1.0
            x = x * (0.15 if "embed_tokens" in name else gain * fan_in ** -0.5)
        out[name] = x.to(torch.bfloat16)
    return out


def write_weights(spec, weights, folder):
    if spec.get("stray_head"):
        weights = dict(weights,
                       **{"lm_head.weight": weights[
                           "model.language_model.embed_tokens.weight"].clone()})
    if spec["names"] == "old":
        weights = {old_name(k): v for k, v in weights.items()}
    names = sorted(weights)
    meta = {"format": "pt"}
    if spec["shards"] == 1:
        save_file({k: weights[k] for k in names}, os.path.join(folder, "model.safetensors"), meta)
        return
    index, half = {}, len(names) // 2
    for i, part in enumerate([names[:half], names[half:]]):
        file = f"model-{i + 1:05d}-of-00002.safetensors"
        save_file({k: weights[k] for k in part}, os.path.join(folder, file), meta)
        index.update({k: file for k in part})
    size = sum(v.numel() * 2 for v in weights.values())
    with open(os.path.join(folder, "model.safetensors.index.json"), "w") as f:
        json.dump({"metadata": {"total_size": size}, "weight_map": index}, f, indent=1,
                  sort_keys=True)
        f.write("\n")


def build_inputs(runs, images, gen):
    ids, names = [], []
    for run in runs:
        if isinstance(run, int):
            ids += torch.randint(0, 250, (run,), generator=gen).tolist()
        else:
            t, h, w = grid_of(run)
            ids += [VSTART] + [IMAGE] * (t * h * w // 4) + [VEND]
            names.append(run)
    ids = torch.tensor([ids])
    inputs = dict(input_ids=ids, mm_token_type_ids=(ids == IMAGE).int())
    if names:
        inputs["image_grid_thw"] = torch.tensor([grid_of(n) for n in names])
        inputs["pixel_values"] = torch.cat([(images[n].float() - 128) / 64 for n in names])
    return inputs, names


def evenly(n, most):
    return sorted(set(torch.linspace(0, n - 1, min(n, most)).round().long().tolist()))


def sample_gradients(model, main, small=False):
    """name -> dict of stride, count, numel, norm, and the sampled values flat[0::stride]."""
    whole, target = (MAIN_WHOLE, MAIN_SAMPLE) if main else (OTHER_WHOLE, OTHER_SAMPLE)
    if small:
        whole = target = SMALL_SAMPLE
    out = {}
    for name, p in model.named_parameters():
        if p.grad is None:
            continue
        g = p.grad.detach().flatten()
        stride = 1 if g.numel() <= whole else max(1, g.numel() // target)
        # An even stride would visit only a few columns of a matrix whose width it shares factors
        # with.
        if stride > 1 and stride % 2 == 0:
            stride += 1
        part = g[::stride].float().clone()
        out[old_name(name)] = dict(stride=stride, count=part.numel(), numel=g.numel(),
                                   norm=g.double().norm().item(), values=part)
    return out


def weighted_loss(logits, positions, targets, coefs):
    lp = torch.log_softmax(logits[positions], -1)
    picked = lp.gather(1, targets[:, None])[:, 0]
    return (coefs.to(picked.dtype) * picked).sum(), picked


def relative(a, b):
    return ((a.double() - b.double()).abs().max() / b.double().abs().max()).item()


def run_sequence(models, label, index, main, small, images, seed):
    """Runs one sequence through the f32, f64 and bf16 models; returns its tensors and its entry for
    case.json."""
    gen = torch.Generator().manual_seed(seed)
    inputs, names = build_inputs(SEQUENCES[label], images, gen)
    f32, f64, bf16 = models
    length = inputs["input_ids"].shape[1]
    stages = {}

    def keep(key):
        def hook(_module, _args, output):
            stages[key] = (output[0] if isinstance(output, tuple) else output).detach()
        return hook

    handles = []
    if main:
        visual, text = f32.model.visual, f32.model.language_model
        handles += [b.register_forward_hook(keep(f"vit.{i}")) for i, b in enumerate(visual.blocks)]
        handles += [b.register_forward_hook(keep(f"hidden.{i + 1}")) for i,
                    b in enumerate(text.layers)]
        handles.append(text.layers[0].register_forward_pre_hook(
            lambda _m, args, kw: stages.__setitem__("hidden.0",
                                                    (args[0] if args
                                                     else kw["hidden_states"]).detach()),
            with_kwargs=True))
    merged = []
    handles.append(f32.model.visual.merger.register_forward_hook(lambda *_: merged.append(1)))
    f32.zero_grad()
    logits = f32(**inputs).logits[0]
    for h in handles:
        h.remove()
    assert bool(merged) == bool(names)

    positions = torch.randperm(length, generator=gen)[:LOSS_TERMS].sort().values
    positions[-1] = length - 1
    targets = torch.randint(0, 250, (LOSS_TERMS,), generator=gen)
    coefs = torch.randn(LOSS_TERMS, generator=gen)
    loss, picked = weighted_loss(logits, positions, targets, coefs)
    loss.backward()
    grads = sample_gradients(f32, main, small)

    # How far f32 itself is from a run in double precision: the floor below which a tolerance means
    # nothing.
    f64.zero_grad()
    exact = dict(inputs)
    if names:
        exact["pixel_values"] = inputs["pixel_values"].double()
    logits64 = f64(**exact).logits[0]
    weighted_loss(logits64, positions, targets, coefs)[0].backward()
    exact_grads = dict((old_name(n), p.grad) for n, p in f64.named_parameters())
    worst = 0.0
    for (name, p) in f32.named_parameters():
        if p.grad is not None:
            worst = max(worst, (p.grad.double() - exact_grads[old_name(name)]).norm().item() /
                        exact_grads[old_name(name)].norm().clamp_min(1e-12).item())

    rows = evenly(length, SMALL_ROWS if small else LOGIT_ROWS)
    key = f"s{index}."
    tensors = {
        "input_ids": inputs["input_ids"][0].int(),
        "logit_rows": torch.tensor(rows).int(),
        "logits": logits[rows].detach(),
        "loss_positions": positions.int(),
        "loss_targets": targets.int(),
        "loss_coefs": coefs,
        "loss_logprobs": picked.detach(),
    }
    if names:
        pos, delta = f32.model.get_rope_index(inputs["input_ids"], inputs["mm_token_type_ids"],
                                              inputs["image_grid_thw"])
        tensors["image_grid_thw"] = inputs["image_grid_thw"].int()
        delta = delta.item()
    else:
        pos, delta = torch.arange(length).expand(3, 1, -1), 0
    tensors["position_ids"] = pos[:, 0].int()
    with torch.no_grad():
        again = f32(**inputs, position_ids=pos).logits[0]
        assert torch.equal(again, logits), "the stored position ids are not those the model uses"
        half = dict(inputs)
        low = bf16(**half).logits[0]
    tensors["logits_bf16"] = low[rows]
    if main:
        vit_rows = evenly(inputs["pixel_values"].shape[0], LOGIT_ROWS)
        tensors["vit_rows"] = torch.tensor(vit_rows).int()
        for k, v in stages.items():
            v = v[0] if v.dim() == 3 else v
            tensors[k] = v[vit_rows if k.startswith("vit") else rows]
        with torch.no_grad():
            feats = f32.get_image_features(inputs["pixel_values"],
                                           inputs["image_grid_thw"]).pooler_output
            feats = torch.cat(list(feats))
        picked_rows = evenly(feats.shape[0], 2 * LOGIT_ROWS)
        tensors["image_rows"] = torch.tensor(picked_rows).int()
        tensors["image_embeds"] = feats[picked_rows]
    entry = dict(label=label, prefix=key, main=main, runs=SEQUENCES[label], images=names,
                 length=length,
                 rope_delta=delta, loss=loss.item(),
                 f32_noise=dict(logits=relative(logits.detach(), logits64.detach()),
                                gradients=worst),
                 bf16_cosine=torch.nn.functional.cosine_similarity(
                     low.double().flatten(), logits.detach().double().flatten(), 0).item(),
                 gradients={n: {k: v for k, v in g.items() if k != "values"} for n,
                            g in grads.items()})
    tensors.update({"grad." + n: g["values"] for n, g in grads.items()})
    return {key + k: v.contiguous().clone() for k, v in tensors.items()}, entry, inputs


def greedy(model, inputs, steps):
    """Tokens of greedy generate() with no stop token, and the smallest lead of a chosen token over
    the next one."""
    with torch.no_grad():
        out = model.generate(**inputs, max_new_tokens=steps, do_sample=False, eos_token_id=None,
                             pad_token_id=EOS,
                             return_dict_in_generate=True, output_scores=True)
    ids = out.sequences[0, inputs["input_ids"].shape[1]:].tolist()
    lead = min((s[0].topk(2).values[0] - s[0].topk(2).values[1]).item() for s in out.scores)
    assert len(ids) == steps and EOS not in ids
    return ids, lead


def make_config(name, outdir, images):
    spec = CONFIGS[name]
    folder = os.path.join(outdir, family(spec)[0], name)
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    seed = 1000 * int(name[1:])
    config_json(spec, folder)
    weights = random_weights(spec, seed)
    write_weights(spec, weights, folder)

    def load(dtype):
        model, info = family(spec)[2].from_pretrained(
            folder, dtype=dtype, attn_implementation="eager", output_loading_info=True)
        assert not info["missing_keys"] and not info["mismatched_keys"], info
        assert not set(info["unexpected_keys"]) - {"lm_head.weight"}, info
        return model.eval()

    f32 = load(torch.float32)
    for n, p in f32.named_parameters():
        assert torch.equal(p.detach(),
                           weights[n].float()), f"{n} changed on its way through the file"
    want, got = build_config(spec), f32.config
    for key in spec["text"]:
        assert getattr(want.text_config, key) == getattr(got.text_config, key), key
    for key in spec["vision"]:
        assert list_or(getattr(want.vision_config, key)) == list_or(getattr(got.vision_config,
                                                                            key)), key
    assert got.text_config.rope_parameters["rope_theta"] == spec["theta"]
    assert got.text_config.rope_parameters["mrope_section"] == spec["section"]
    assert got.tie_word_embeddings == spec["tie"]
    models = (f32, load(torch.float64), load(torch.bfloat16))

    tensors, entries = {}, []
    for i, label in enumerate(spec["sequences"]):
        small = "family" in spec
        t, entry, inputs = run_sequence(models, label, i, i == 0 and not small, small, images,
                                        seed + i + 1)
        if label == spec["generate"]:
            ids, lead = greedy(f32, inputs, 12)
            entry["greedy"] = dict(ids=ids, smallest_lead=lead)
        tensors.update(t)
        entries.append(entry)
        print(name, label, "T", entry["length"], "noise", entry["f32_noise"], "bf16 cos",
              entry["bf16_cosine"],
              entry.get("greedy", ""), flush=True)
    save_file(tensors, os.path.join(folder, "case.safetensors"))
    case = dict(id=name, purpose=spec["purpose"], config_style=spec["config"],
                weight_names=spec["names"],
                shards=spec["shards"],
                versions=dict(torch=torch.__version__, transformers=transformers.__version__),
                attention="eager", gradient_names="old",
                parameters=sum(p.numel() for p in f32.parameters()), sequences=entries)
    with open(os.path.join(folder, "case.json"), "w") as f:
        json.dump(case, f, indent=None, separators=(",", ":"))
        f.write("\n")
    return f32


def list_or(x):
    return list(x) if isinstance(x, (list, tuple)) else x


def make_positions(model, path):
    """Position ids of random layouts; a run is a text length or a grid [t, h, w] in patches,
    markers not counted."""
    gen = torch.Generator().manual_seed(99)
    rnd = lambda a, b: int(torch.randint(a, b + 1, (1,), generator=gen))
    layouts = [[15, [1, 60, 60], 10]]
    while len(layouts) < 24:
        runs = []
        for _ in range(rnd(1, 4)):
            if rnd(0, 2):
                runs.append(rnd(1, 6))
            runs.append([1, 2 * rnd(1, 5), 2 * rnd(1, 5)])
        if rnd(0, 1):
            runs.append(rnd(1, 6))
        layouts.append(runs)
    cases = []
    for runs in layouts:
        ids, grids = [], []
        for run in runs:
            if isinstance(run, int):
                ids += [1] * run
            else:
                ids += [VSTART] + [IMAGE] * (run[0] * run[1] * run[2] // 4) + [VEND]
                grids.append(run)
        ids = torch.tensor([ids])
        pos, delta = model.model.get_rope_index(ids, (ids == IMAGE).int(), torch.tensor(grids))
        pos = pos[:, 0]
        case = dict(runs=runs, length=ids.shape[1], delta=delta.item())
        if ids.shape[1] <= 120:
            case.update(t=pos[0].tolist(), h=pos[1].tolist(), w=pos[2].tolist())
        else:
            spots = evenly(ids.shape[1], 40)
            case.update(at=spots, t=pos[0, spots].tolist(), h=pos[1, spots].tolist(),
                        w=pos[2, spots].tolist())
        cases.append(case)
    with open(path, "w") as f:
        f.write("[" + ",\n".join(json.dumps(c, separators=(",", ":")) for c in cases) + "]\n")


def make_windows(path):
    """Window order (merged units) and cumulative lengths (patches), as the vision tower computes
    them."""
    from transformers.vision_utils import get_vision_window_index
    cases = []
    for window in (112, 56, 168):
        for grids in ([[1, 2, 2]], [[1, 4, 6]], [[1, 10, 12]], [[1, 16, 16]], [[1, 8, 20]],
                      [[1, 22, 22]],
                      [[1, 2, 14]], [[1, 30, 2]], [[1, 10, 6], [1, 8, 8]],
                      [[1, 14, 22], [1, 6, 10], [1, 2, 2]]):
            index, cu = get_vision_window_index(torch.tensor(grids), spatial_merge_size=2,
                                                window_size=window,
                                                patch_size=14, kwargs={})
            cases.append(dict(window=window, grids=grids, index=index.tolist(), cu=cu.tolist()))
    with open(path, "w") as f:
        f.write("[" + ",\n".join(json.dumps(c, separators=(",", ":")) for c in cases) + "]\n")


def main():
    torch.manual_seed(0)
    torch.set_num_threads(1)       # a fixed summation order
    transformers.utils.logging.disable_progress_bar()
    outdir = sys.argv[1] if len(sys.argv) > 1 else os.path.dirname(os.path.abspath(__file__))
    shared = os.path.join(outdir, "qwen_vl")
    os.makedirs(shared, exist_ok=True)
    images = image_bytes()
    save_file(images, os.path.join(shared, "pixels.safetensors"))
    for name in sys.argv[2:] or CONFIGS:
        model = make_config(name, outdir, images)
    # The positions of both families follow the same rule.
    make_positions(model, os.path.join(shared, "positions.json"))
    make_windows(os.path.join(shared, "windows.json"))


if __name__ == "__main__":
    main()
