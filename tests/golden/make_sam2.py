"""Golden files for SAM2's image path: encoder, prompt encoder, mask decoder, their gradients, the
predictor's resizes.

Usage: python make_sam2.py [OUTDIR (default: sam2 beside this file)] [S1 ... S9 | resize ...]   (default: all)

Every number comes from two packages that get the same weights: sam2's own modules (what is
recorded) and transformers' Sam2Model (asserted to agree). S1-S5 are tiny checkpoints in
transformers' format with forward results and gradients. S6-S9 have the released sizes at 1024 x
1024: their weights are not stored but follow the formula of `formula_weights`, which also made
those of S1-S5. README.md describes the files. Maps are written channels-last, [rows, columns,
channels]. Left out: video (memory attention), bf16. """
import importlib.metadata
import json
import os
import shutil
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
import transformers
from safetensors.torch import save_file
from sam2.sam2_image_predictor import SAM2ImagePredictor
from sam2.utils.transforms import SAM2Transforms
from transformers import Sam2Config, Sam2Model

from sam2_models import (BR, CONFIGS, decode, encode, formula_weights, give_weights, GRADIENT_PROMPTS,
                         hf_config, hf_decode, hf_encode, hf_name, in_double, last, logit_map,
                         MAIN_PROMPT, P1, P3, sample_image, prompt_inputs, PROMPTS, sam2_model, TL)

# about how many numbers are stored of a map, a prompt's masks, a gradient
MAP_SAMPLE, MASK_SAMPLE, GRAD_SAMPLE = 500, 500, 28


def relative(a, b):
    """Largest difference over the largest magnitude; over 0.5 where that is smaller (a lone score
    may be near 0)."""
    return ((a.double() - b.double()).abs().max() / b.double().abs().max().clamp_min(0.5)).item()


def stride_of(numel, target):
    """Odd, so that it meets every column of a width that is a power of two; 1 up to twice the
    target."""
    return 1 if numel <= 2 * target else numel // target | 1


class Record:
    """Tensors for case.safetensors; those with a sample size are flat[0::stride] and have an entry
    in `maps`."""

    def __init__(self):
        self.tensors, self.maps = {}, {}

    def put(self, key, x, target=None):
        x = x.detach()
        if target is None:
            self.tensors[key] = x.clone().contiguous()
            return
        stride = stride_of(x.numel(), target)
        self.tensors[key] = x.flatten()[::stride].float().clone()
        self.maps[key] = dict(shape=list(x.shape), stride=stride, norm=x.double().norm().item())


def loss_of(out):
    """sum_j cos(0.01 j) masks_j / 64 + sum_j cos(j) iou_j + object, j the 0-based flat index in [4,
    h, w] and [4]."""
    masks, iou = out["masks"][0].flatten(), out["iou"][0]
    far = torch.cos(0.01 * torch.arange(masks.numel(), dtype=torch.float64)).to(masks.dtype)
    return (far * masks).sum() / 64 + (
        torch.cos(torch.arange(4, dtype=torch.float64)).to(iou.dtype) * iou).sum() + out[
            "object"].sum()


def gradients_of(model, weights, pixels, name, size):
    """transformers name -> gradient (a zero tensor where there is none), and the loss."""
    model.zero_grad()
    loss = loss_of(decode(model, encode(model, pixels), *prompt_inputs(name, size)))
    loss.backward()
    out = {n: torch.zeros(w.shape, dtype=loss.dtype) for n,
           w in weights.items() if not n.endswith("positional_embedding")}
    for n, p in model.named_parameters():
        to = hf_name(n)
        if to is None or p.grad is None:
            continue
        if isinstance(to, tuple):
            out[to[0]][to[1]] = p.grad[0]
        else:
            out[to] = p.grad.detach().clone()
    return out, loss.item()


def selection(decoder, masks, iou):
    """Per row: which of the four masks multimask_output=False returns, the stability of mask 0, and
    how clear the choice is."""
    stability = decoder._get_stability_scores(masks[:, 0])
    single, _ = decoder._dynamic_multimask_via_stability(masks, iou)
    out = []
    for b in range(masks.shape[0]):
        index = next(i for i in range(4) if torch.equal(single[b, 0], masks[b, i]))
        assert (index == 0) == (stability[b].item() >= 0.98)
        # The choice must not depend on rounding: shifted thresholds decide alike, and the best score
        # leads.
        flat = masks[b, 0].flatten()
        for eps in (-1e-4, 1e-4):
            inner, outer = (flat > 0.05 + eps).sum().item(), (flat > -0.05 - eps).sum().item()
            assert (outer == 0 or inner / outer >= 0.98) == (
                index == 0), "stability too near its threshold"
        top = iou[b, 1:].sort(descending=True).values
        assert top[0] - top[1] > 1e-4, "two scores too near each other"
        out.append(dict(single=index, stability=stability[b].item()))
    return out


def check_health(name, out):
    masks, iou = out["masks"], out["iou"]
    share = (masks > 0).float().mean(dim=(2, 3))
    assert iou.min() > 0.01 and iou.max() < 0.99, iou
    return [round(v, 3) for v in share.flatten().tolist()]


def pack_bits(mask):
    """bool [..] -> u8: bit k of byte i is flat element 8 i + k."""
    return torch.from_numpy(np.packbits(mask.flatten().numpy().astype(np.uint8), bitorder="little"))


def run_prompts(record, model, hf, model64, enc, enc_hf, enc64, size, names, sample):
    entries = []
    for name in names:
        points, labels, mask = prompt_inputs(name, size)
        with torch.no_grad():
            out = decode(model, enc, points, labels, mask)
            other = hf_decode(hf, enc_hf, points, labels, mask)
            exact = decode(model64, enc64, points, labels, mask) if model64 else None
        far = {k: relative(other[k], out[k]) for k in ("masks", "iou", "object")}
        assert max(far.values()) < 2e-5, (name, far)
        chosen = selection(model.sam_mask_decoder, out["masks"], out["iou"])
        for b, c in enumerate(chosen):
            assert relative(other["single"][b, 0], out["masks"][b, c["single"]]) < 2e-5
        noise = {k: relative(out[k], exact[k]) for k in far} if exact else None
        if name == "box_points":       # the order of the tokens does not matter
            with torch.no_grad():
                order = [2, 3, 0, 1]
                swapped = decode(model, enc, points[:, order], labels[:, order], None)
            swap = relative(swapped["masks"], out["masks"])
            print("  the same with the points first: differs by", swap, "packages differ by", far)
            assert swap < 5e-5
        entry = dict(name=name, batch=out["masks"].shape[0], multimask=[1, 2, 3], choices=chosen,
                     f32_noise=noise)
        key = f"p.{name}."
        if points is not None:
            record.put(key + "points", points)
            record.put(key + "labels", labels)
        record.put(key + "masks", out["masks"], sample)
        record.put(key + "iou", out["iou"])
        record.put(key + "object", out["object"])
        if mask is not None:
            record.put(key + "dense", last(out["dense"]), sample // 4)
        if name == MAIN_PROMPT:
            record.put(key + "sparse", out["sparse"][0], MAP_SAMPLE)
            record.put(key + "tokens", out["tokens"][0], MAP_SAMPLE)
            record.put(key + "keys", out["keys"][0], MAP_SAMPLE)
            record.put("dense_pe", last(out["dense_pe"]), MAP_SAMPLE)
        entries.append(entry)
        print(" ", name, "positive", check_health(name, out), "iou",
              [round(v, 3) for v in out["iou"].flatten().tolist()],
              "obj", round(out["object"][0, 0].item(), 3), "std",
              round(out["masks"].std().item(), 3), "choice", chosen, flush=True)
    return entries


def run_predictor(record, model, spec):
    """SAM2ImagePredictor itself on an image of another size; coordinates in that image's
    pixels."""
    height, width = spec["original"]
    predictor = SAM2ImagePredictor(model)
    predictor._bb_feat_sizes = [(spec["image"] // s,) * 2 for s in (4, 8, 16)]
    predictor.set_image(sample_image(height, width))
    side = np.array([width, height])
    box = np.concatenate([np.array(TL) * side, np.array(BR) * side]).round(1).astype(np.float32)
    points = np.stack([np.array(P1) * side, np.array(P3) * side]).round(1).astype(np.float32)
    labels = np.array([1, 0], np.int32)
    record.put("predictor.box", torch.from_numpy(box))
    record.put("predictor.points", torch.from_numpy(points))
    record.put("predictor.labels", torch.from_numpy(labels))
    entry = dict(height=height, width=width)
    for key, multi in (("multi", True), ("single", False)):
        kw = dict(point_coords=points, point_labels=labels, box=box, multimask_output=multi)
        masks, scores, low = predictor.predict(**kw)
        logits = predictor.predict(return_logits=True, **kw)[0]
        record.put(f"predictor.{key}.bits", pack_bits(torch.from_numpy(masks) > 0))
        record.put(f"predictor.{key}.scores", torch.from_numpy(scores))
        record.put(f"predictor.{key}.low", torch.from_numpy(low), MASK_SAMPLE)
        record.put(f"predictor.{key}.logits", torch.from_numpy(logits), MASK_SAMPLE)
        entry[key] = dict(masks=masks.shape[0], positive=[int(m.sum()) for m in masks],
                          nearest_zero=float(np.abs(logits).min()))
    return entry


def shapes_of(config):
    with torch.device("meta"):
        return {n: list(p.shape) for n, p in Sam2Model(config).state_dict().items()}


def write_folder(spec, config, weights, folder):
    """config.json and bf16 weights."""
    config.dtype = "bfloat16" if weights else "float32"
    config.save_pretrained(folder)
    if spec.get("sparse"):
        path = os.path.join(folder, "config.json")
        with open(path) as f:
            full = json.load(f)
        plain = json.loads(Sam2Config().to_json_string(use_diff=False))

        def drop(part, default):
            for k in list(part):
                if isinstance(part[k], dict) and k.endswith("_config"):
                    drop(part[k], default[k])
                elif k != "model_type" and k in default and default[k] == part[k]:
                    del part[k]
        drop(full, plain)
        with open(path, "w") as f:
            json.dump(full, f, indent=2, sort_keys=True)
            f.write("\n")
    if weights:
        kept = {n: w.bfloat16() for n, w in weights.items()}
        if spec.get("one_matrix"):
            del kept["prompt_encoder.shared_embedding.positional_embedding"]
        save_file(kept, os.path.join(folder, "model.safetensors"), {"format": "pt"})


def write_case(folder, record, case):
    save_file(record.tensors, os.path.join(folder, "case.safetensors"))
    with open(os.path.join(folder, "case.json"), "w") as f:
        json.dump(case, f, separators=(",", ":"))
        f.write("\n")


def versions():
    return dict(torch=torch.__version__, transformers=transformers.__version__,
                torchvision=torchvision.__version__,
                sam2=importlib.metadata.version("sam2"))


def make_tiny(name, outdir):
    spec = CONFIGS[name]
    size, folder = spec["image"], os.path.join(outdir, name)
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    config = hf_config(spec)
    weights = formula_weights(shapes_of(config), "#%d" % spec["salt"], spec["hyper0"])
    write_folder(spec, config, weights, folder)

    hf, info = Sam2Model.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager",
                                         output_loading_info=True)
    assert not info["mismatched_keys"] and not info["unexpected_keys"], info
    missing = set(info["missing_keys"])
    assert missing <= ({"prompt_encoder.shared_embedding.positional_embedding"}
                       if spec.get("one_matrix") else set()), info
    with torch.no_grad():
        for n in missing:
            hf.prompt_encoder.shared_embedding.positional_embedding.copy_(weights[n])
    for n, p in hf.state_dict().items():
        assert torch.equal(p, weights[n]), f"{n} changed on its way through the file"
    want, got = hf_config(spec).to_dict(), hf.config.to_dict()
    for part in ("vision_config", "prompt_encoder_config", "mask_decoder_config"):
        for k, v in want[part].items():
            if k == "backbone_config":
                for k2, v2 in v.items():
                    assert k2 in ("dtype", "label2id", "id2label") or got[part][k][k2] == v2, (part,
                                                                                               k,
                                                                                               k2)
            else:
                assert k == "dtype" or got[part][k] == v, (part, k)
    hf.eval()
    torch.manual_seed(0)       # for the video weights of the .pt
    model, model64 = sam2_model(spec), sam2_model(spec)
    give_weights(model, weights)
    give_weights(model64, weights)
    model64 = in_double(model64)

    pixels = (torch.from_numpy(sample_image(size, size)).permute(2, 0, 1)[None].float() - 128) / 64
    record = Record()
    with torch.no_grad():
        enc, enc_hf, enc64 = encode(model, pixels), hf_encode(hf, pixels), encode(model64,
                                                                                  pixels.double())
    noise = {}
    for k in ("image_embed", "feat_s0", "feat_s1"):
        assert relative(enc_hf[k], enc[k]) < 1e-5, k
        noise[k] = relative(enc[k], enc64[k])
        record.put(k, last(enc[k]), 4 * MAP_SAMPLE if k == "image_embed" else MAP_SAMPLE)
    for i, s in enumerate(enc["stages"]):
        record.put(f"stage.{i}", last(s), MAP_SAMPLE)
        noise[f"stage.{i}"] = relative(s, enc64["stages"][i])
    side = size // 4
    with torch.no_grad():
        record.put("pos_embed", model.image_encoder.trunk._get_pos_embed((side, side))[0],
                   MAP_SAMPLE)
    print(name, "embed std", enc["image_embed"].std().item(),
          [s.std().item() for s in enc["stages"]], noise)
    prompts = run_prompts(record, model, hf, model64, enc, enc_hf, enc64, size, PROMPTS,
                          MASK_SAMPLE)
    record.put("p.mask.mask_input", prompt_inputs("mask", size)[2][0, 0])

    table, offset, losses = [], 0, []
    names = [n for n in sorted(weights) if not n.endswith("positional_embedding")]
    for n in names:
        numel = weights[n].numel()
        stride = stride_of(numel, GRAD_SAMPLE)
        count = (numel + stride - 1) // stride
        table.append([n, numel, stride, offset, count])
        offset += count
    for p in GRADIENT_PROMPTS:
        g, loss = gradients_of(model, weights, pixels, p, size)
        g64, _ = gradients_of(model64, weights, pixels.double(), p, size)
        # A bias of the keys shifts all logits of a softmax alike: its gradient is zero but for
        # rounding.
        big = max(g64[n].norm().item() for n in names)
        zero = [n for n in names if g64[n].norm().item() < 1e-9 * big]
        assert all(g64[n].abs().max() == 0 or n.endswith("k_proj.bias") for n in zero), zero
        noise_of = [0.0 if n in zero else ((g[n].double() - g64[n]).norm() / g64[n].norm()).item()
                    for n in names]
        record.put(f"g.{p}.samples",
                   torch.cat([(g64[n].flatten()[::s] if n in zero else g[n].flatten()[::s]).float()
                              for n, _, s, _, _ in table]))
        record.put(f"g.{p}.norms",
                   torch.tensor([0.0 if n in zero else g[n].double().norm().item() for n in names]))
        record.put(f"g.{p}.noise", torch.tensor(noise_of))
        small = min((g64[n].norm().item(), n) for n in names if n not in zero)
        losses.append(dict(prompt=p, loss=loss, f32_noise=max(noise_of), zero=zero))
        print("  gradients", p, "loss", loss, "noise", sorted(zip(noise_of, names))[-3:], "zero",
              len(zero), "smallest", small, "largest", big)
    case = dict(id=name, purpose=spec["purpose"], image=size, versions=versions(),
                attention="eager (transformers), sdpa (sam2)",
                hyper0=spec["hyper0"], salt="#%d" % spec["salt"],
                parameters=sum(w.numel() for n, w in weights.items()),
                f32_noise=noise, maps=record.maps, prompts=prompts,
                predictor=run_predictor(record, model, spec),
                gradients=table, losses=losses)
    write_case(folder, record, case)
    if spec.get("pt"):
        keep = {n: p for n, p in model.state_dict().items()
                if not n.startswith(("memory_attention.", "memory_encoder."))
                or n in ("memory_attention.norm.weight", "memory_encoder.out_proj.weight")}
        torch.save({"model": keep}, os.path.join(outdir, name + ".pt"))


def make_real(name, outdir):
    spec = CONFIGS[name]
    size, folder = spec["image"], os.path.join(outdir, name)
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    config, started = hf_config(spec), time.time()
    weights = formula_weights(shapes_of(config))
    write_folder(spec, config, None, folder)
    pixels = (torch.from_numpy(sample_image(size, size)).permute(2, 0, 1)[None].float() - 128) / 64
    with torch.device("meta"):
        hf = Sam2Model(config)
    hf.load_state_dict({n: w.clone() for n, w in weights.items()}, assign=True)
    hf.eval()
    with torch.no_grad():
        enc_hf = hf_encode(hf, pixels)
    model = sam2_model(spec)
    give_weights(model, weights)
    with torch.no_grad():
        enc = encode(model, pixels)
    model64 = in_double(model)
    with torch.no_grad():
        enc64 = encode(model64, pixels.double())
    model = sam2_model(spec)
    give_weights(model, weights)
    record, noise = Record(), {}
    for k in ("image_embed", "feat_s0", "feat_s1"):
        assert relative(enc_hf[k], enc[k]) < 2e-5, k
        noise[k] = relative(enc[k], enc64[k])
        record.put(k, last(enc[k]), MAP_SAMPLE)
    for i, s in enumerate(enc["stages"]):
        record.put(f"stage.{i}", last(s), MAP_SAMPLE)
        noise[f"stage.{i}"] = relative(s, enc64["stages"][i])
    print(name, "embed std", enc["image_embed"].std().item(),
          [s.std().item() for s in enc["stages"]], noise, time.time() - started)
    prompts = run_prompts(record, model, hf, model64, enc, enc_hf, enc64, size,
                          ["box_points", "mask_point"], MASK_SAMPLE)
    probe = {n: weights[n].flatten()[:4].tolist() for n in sorted(weights)
             if n.startswith("vision_encoder.backbone.blocks.1.")
             or n in ("shared_image_embedding.positional_embedding",
                      "mask_decoder.upscale_conv1.weight",
                      "mask_decoder.output_hypernetworks_mlps.0.proj_out.weight",
                      "prompt_encoder.mask_embed.conv2.weight")}
    case = dict(id=name, purpose=spec["purpose"], image=size, versions=versions(), hyper0=0,
                salt="",
                parameters=sum(w.numel() for w in weights.values()),
                sum_of_weights=sum(w.double().sum().item() for w in weights.values()),
                first_weights=probe, f32_noise=noise, maps=record.maps, prompts=prompts)
    write_case(folder, record, case)


def make_resize(outdir):
    """The predictor's antialiased resize with normalisation, and the plain bilinear resize of
    logits with the mask."""
    record = Record()
    resize = SAM2Transforms(resolution=1024, mask_threshold=0.0)
    for h, w in [(1024, 1024), (480, 640), (1080, 1920), (777, 333), (333, 777), (60, 100),
                 (2048, 2048), (1, 1000), (1000, 1), (1500, 700)]:
        record.put(f"in.{h}x{w}", resize(sample_image(h, w)).permute(1, 2, 0), 1500)
    small = SAM2Transforms(resolution=64, mask_threshold=0.0)
    for h, w in [(50, 70), (64, 64), (640, 31)]:
        record.put(f"in64.{h}x{w}", small(sample_image(h, w)).permute(1, 2, 0), 1500)
    low, masks = logit_map(2, 256, 256), {}
    for h, w in [(256, 256), (480, 640), (37, 53), (1080, 1920), (300, 100), (1, 1000)]:
        up = F.interpolate(low[None], (h, w), mode="bilinear", align_corners=False)[0]
        record.put(f"out.{h}x{w}", up, 1500)
        masks[f"{h}x{w}"] = dict(positive=[int((m > 0).sum()) for m in up],
                                 zero=int((up == 0).sum()))
        if h == 37:
            record.put(f"bits.{h}x{w}", pack_bits(up > 0))
    save_file(record.tensors, os.path.join(outdir, "resize.safetensors"))
    with open(os.path.join(outdir, "resize.json"), "w") as f:
        json.dump(dict(versions=versions(), maps=record.maps, masks=masks), f, indent=1)
        f.write("\n")


def main():
    torch.manual_seed(0)
    torch.set_num_threads(1)       # a fixed summation order
    transformers.utils.logging.disable_progress_bar()
    args = sys.argv[1:]
    here = os.path.join(os.path.dirname(os.path.abspath(__file__)), "sam2")
    outdir = args.pop(0) if args and args[0] not in CONFIGS and args[0] != "resize" else here
    os.makedirs(outdir, exist_ok=True)
    save_file({f"{s}x{s}": torch.from_numpy(sample_image(s, s)) for s in (64, 128)},
              os.path.join(outdir, "pixels.safetensors"))
    for name in args or list(CONFIGS) + ["resize"]:
        if name == "resize":
            make_resize(outdir)
        elif CONFIGS[name].get("real"):
            make_real(name, outdir)
        else:
            make_tiny(name, outdir)


if __name__ == "__main__":
    main()
