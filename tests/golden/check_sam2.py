"""Checks by hand that transformers and segzero agree on a SAM2 folder, and times PyTorch on the
released sizes.

Usage: python check_sam2.py FOLDER [--results FILE (default: FOLDER/check.safetensors)] [--image
FILE] [--tolerance 1e-4]
       python check_sam2.py --bench tiny|small|base_plus|large [--threads N] [--best 3] [--no-train]
       [--device cuda] [--dtype bf16] [--compile] [--clock cpu]

Check: FOLDER is what segzero saved in transformers' format; the results file is what segzero
computed with it, in f32:
  pixel_values  f32 [S, S, 3]            the model's input
  image         u8 [H, W, 3] optional (or --image): pixel_values must be the predictor's transform
                of it
  image_embed   f32 [S/16, S/16, d]      optional; with no_mem_embed
  feat_s0, feat_s1                       optional; f32 [S/4, S/4, d/8], [S/8, S/8, d/4]
and for each prompt i = 1, 2, ...
  p<i>.points, p<i>.labels               f32 [B, n, 2] in pixels of the model's input, i32 [B, n];
                                         absent without points
  p<i>.mask_input                        f32 [S/4, S/4]; optional
  p<i>.masks, p<i>.iou, p<i>.object      f32 [B, 4, S/4, S/4], [B, 4], [B, 1] (object is optional):
                                         all four, before any selection
Labels are those of the predictor (2 and 3 are a box's corners); the padding point is left out.
Prints the largest difference over the largest magnitude of each, and exits 1 where one is beyond
the tolerance, a weight is missing or a needed key is absent.

Bench: one line of JSON: seconds, the best of --best runs after one to warm up, of sam2's own
modules at 1024 x 1024 (mini: 64 x 64) with N threads, in f32 or under autocast to bf16; --compile:
the image encoder through torch.compile. A device is waited for before a clock is read; --clock cpu:
processor time of the process, for one thread on a busy machine. `encoder`
(pixels to embedding and features), `decoder` (prompt encoder and mask decoder, box and two points),
`device_memory` (GiB that torch had allocated at most, until here), `train` (forward and backward of
both with a focal and a dice loss on one mask; no optimiser). Random weights. Not part of the suite,
which needs no Python. """
import argparse
import json
import os
import resource
import sys
import time

import torch
import torch.nn.functional as F
from safetensors.torch import load_file

SIZES = dict(mini="S5", tiny="S6", small="S7", base_plus="S8", large="S9")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def relative(got, want):
    return ((got.double() - want.double()).abs().max() / want.double().abs().max().clamp_min(
        0.5)).item()


def last(x):
    return x[0].permute(1, 2, 0)


def transform(image, size):
    """u8 [H, W, 3] -> f32 [size, size, 3], what SAM2ImagePredictor feeds its model."""
    from torchvision.transforms import Normalize, Resize
    x = image.permute(2, 0, 1).float() / 255
    return Normalize(MEAN, STD)(Resize((size, size))(x)).permute(1, 2, 0)


def decode(model, embed, s0, s1, points, labels, mask):
    """All four masks, scores and the object logit, as make_sam2.py's hf_decode: mask 0 comes out in
    training mode."""
    if points is None:
        dense = model.prompt_encoder(None, None, None, mask)[1]
        sparse = embed.new_zeros(1, 1, 0, embed.shape[1])
    else:
        sparse, dense = model.prompt_encoder(points[None], labels[None], None, mask)

    def run(**kw):
        return model.mask_decoder(image_embeddings=embed, sparse_prompt_embeddings=sparse,
                                  dense_prompt_embeddings=dense,
                                  image_positional_embeddings=model.get_image_wide_positional_embeddings(),
                                  high_resolution_features=[s0, s1], **kw)
    model.mask_decoder.train()
    first = run(multimask_output=False)
    model.mask_decoder.eval()
    rest = run(multimask_output=True)
    return dict(masks=torch.cat([first[0], rest[0]], 2)[0],
                iou=torch.cat([first[1], rest[1]], 2)[0], object=first[3][0])


def check(args):
    from transformers import Sam2Model
    model, info = Sam2Model.from_pretrained(args.folder, dtype=torch.float32,
                                            output_loading_info=True)
    model.eval()
    bad = 0
    problems = {k: sorted(map(str, v)) for k, v in info.items() if v}
    copy = "prompt_encoder.shared_embedding.positional_embedding"
    if problems == {"missing_keys": [copy]}:       # files may hold one of the two equal matrices
        model.prompt_encoder.shared_embedding.positional_embedding.data.copy_(
            model.shared_image_embedding.positional_embedding)
    elif problems:
        print("loading:", problems)
        bad += 1
    r = load_file(args.results or os.path.join(args.folder, "check.safetensors"))
    if "pixel_values" not in r:
        sys.exit("the results file has no pixel_values")

    def compare(name, got, want):
        nonlocal bad
        if got.shape != want.shape:
            print("%-16s DIFFERENT shape: segzero %s, transformers %s" % (name, list(got.shape),
                                                                          list(want.shape)))
            bad += 1
            return
        far = relative(got, want)
        far = far if far == far else float("inf")
        bad += far > args.tolerance
        print("%-16s %s %-24s %.3g" % (name, "DIFFERENT" if far > args.tolerance else "the same ",
                                       list(want.shape), far))

    pixels = r["pixel_values"]
    if args.image:
        import numpy as np
        from PIL import Image
        r["image"] = torch.from_numpy(np.array(Image.open(args.image).convert("RGB")))
    if "image" in r:
        compare("pixel_values", pixels, transform(r["image"], pixels.shape[0]))
    with torch.no_grad():
        maps = list(model.get_image_features(pixels.permute(2, 0, 1)[None]).fpn_hidden_states)
        maps[2] = maps[2] + model.no_memory_embedding
        s0, s1, embed = [f.permute(1, 2, 0).reshape(1, -1, *hw) for f,
                         hw in zip(maps, model.backbone_feature_sizes)]
        for name, x in (("image_embed", embed), ("feat_s0", s0), ("feat_s1", s1)):
            if name in r:
                compare(name, r[name], last(x))
        count = 0
        while f"p{count + 1}.masks" in r:
            count += 1
            p = f"p{count}."
            mask = r.get(p + "mask_input")
            want = decode(model, embed, s0, s1, r.get(p + "points"), r.get(p + "labels"),
                          None if mask is None else mask[None, None])
            for k in ("masks", "iou", "object"):
                if p + k in r:
                    compare(p + k, r[p + k], want[k])
            masks = p + "masks"
            decided = -1
            if r[masks].shape == want["masks"].shape:
                decided = ((r[masks] > 0) != (want["masks"] > 0)).sum().item()
            print("%-16s %d of %d low-resolution pixels fall on the other side of 0"
                  % (masks, decided, want["masks"].numel()))
    if not count:
        print("no prompts (p1.masks, ...) in the results file")
        bad += 1
    sys.exit(1 if bad else 0)


def bench(args):
    from make_sam2 import CONFIGS, decode as sam2_decode, encode, hf_name, sample_image, prompt_inputs, sam2_model
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    spec = CONFIGS[SIZES[args.bench]]
    size = spec["image"]
    model = sam2_model(spec).to(args.device)
    for name, p in model.named_parameters():
        p.requires_grad_(hf_name(name) is not None)
    on_device = args.device == "cuda"
    if args.compile:
        model.image_encoder = torch.compile(model.image_encoder, dynamic=False)
    pixels = ((torch.from_numpy(sample_image(size, size)).permute(2, 0, 1)[None].float() - 128) / 64).to(
        args.device)
    prompt = [x if x is None else x.to(args.device) for x in prompt_inputs("box_points", size)]
    side = size // 4
    target = (torch.arange(side)[:, None] < side // 2).float().expand(1, 1, side,
                                                                      side).to(args.device)

    def seconds():
        if on_device:
            torch.cuda.synchronize()
        return time.process_time() if args.clock == "cpu" else time.perf_counter()

    def best(run):
        times = []
        for _ in range(args.best + 1):
            start = seconds()
            with torch.autocast(args.device, torch.bfloat16, enabled=args.dtype == "bf16"):
                run()
            times.append(seconds() - start)
        return round(min(times[1:]), 5)

    def train():
        model.zero_grad(set_to_none=True)
        out = sam2_decode(model, encode(model, pixels), *prompt)
        logits = out["masks"][:, 1:2]
        p = torch.sigmoid(logits)
        ce = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        focal = (ce * (1 - (p * target + (1 - p) * (1 - target))) ** 2).mean()
        dice = 1 - (2 * (p * target).sum() + 1) / (p.sum() + target.sum() + 1)
        (20 * focal + dice + (out["iou"][:, 1] - 0.5).abs().sum()).backward()

    with torch.inference_mode():
        encoder = best(lambda: encode(model, pixels))
        with torch.autocast(args.device, torch.bfloat16, enabled=args.dtype == "bf16"):
            enc = encode(model, pixels)
        decoder = best(lambda: sam2_decode(model, enc, *prompt))
    memory = torch.cuda.max_memory_allocated() / 2 ** 30 if on_device else None
    result = dict(model=args.bench, image=size, threads=args.threads, best_of=args.best,
                  encoder=encoder, decoder=decoder, device_memory=memory,
                  train=best(train) if args.train else None, torch=torch.__version__,
                  peak_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
    print(json.dumps(result))


def main():
    p = argparse.ArgumentParser()
    p.add_argument("folder", nargs="?")
    p.add_argument("--results")
    p.add_argument("--image")
    p.add_argument("--tolerance", type=float, default=1e-4)
    p.add_argument("--bench", choices=SIZES)
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--best", type=int, default=3)
    p.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    p.add_argument("--dtype", choices=["f32", "bf16"], default="f32")
    p.add_argument("--compile", action="store_true")
    p.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    p.add_argument("--no-train", dest="train", action="store_false")
    args = p.parse_args()
    if args.bench:
        bench(args)
    elif args.folder:
        check(args)
    else:
        p.error("give a folder or --bench")


if __name__ == "__main__":
    main()
