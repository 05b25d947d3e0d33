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
from sam2.modeling.backbones.hieradet import Hiera
from sam2.modeling.backbones.image_encoder import FpnNeck, ImageEncoder
from sam2.modeling.memory_attention import MemoryAttention, MemoryAttentionLayer
from sam2.modeling.memory_encoder import CXBlock, Fuser, MaskDownSampler, MemoryEncoder
from sam2.modeling.position_encoding import PositionEmbeddingSine
from sam2.modeling.sam.mask_decoder import MaskDecoder
from sam2.modeling.sam.transformer import RoPEAttention, TwoWayTransformer
from sam2.modeling.sam2_base import SAM2Base
from sam2.sam2_image_predictor import SAM2ImagePredictor
from sam2.utils.transforms import SAM2Transforms
from transformers import Sam2Config, Sam2Model

# about how many numbers are stored of a map, a prompt's masks, a gradient
MAP_SAMPLE, MASK_SAMPLE, GRAD_SAMPLE = 500, 500, 28

CONFIGS = {
    "S1": dict(purpose="no padding", image=128, embed=8, heads=1, stages=[1, 2, 3, 1], glob=[4],
               windows=[8, 4, 4, 2],
               background=[7, 7], picture=(90, 61), salt=7, hyper0=1),
    "S2": dict(
        purpose="padding in stages 3 and 4, even window at a pooling block, two blocks in stage "
                "1; the file lacks the prompt "
               "encoder's copy of the positional matrix", image=128, embed=8, heads=2,
               stages=[2, 1, 3, 2], glob=[4],
               windows=[8, 4, 6, 3], background=[14, 14], picture=(40, 170), salt=3, hyper0=0,
               one_matrix=True),
    "S3": dict(
        purpose="the released tiny model's windows, 16 x 16 tokens padded to 28; widths 10, 20, "
                "40, 80", image=256, embed=10,
               heads=1, stages=[1, 2, 4, 2], glob=[4, 6], windows=[8, 4, 14, 7], background=[7, 7],
               picture=(256, 256), salt=6,
               hyper0=2),
    "S4": dict(
        purpose="odd window at a pooling block, oblong background; the config lacks what equals "
                "the class defaults", image=128,
               embed=8, heads=1, stages=[1, 1, 2, 1], glob=[3], windows=[8, 4, 7, 3],
               background=[5, 9], picture=(200, 333),
               salt=3, hyper0=0, sparse=True),
    "S5": dict(purpose="smallest; the same weights as an original .pt with video keys", image=64,
               embed=8, heads=1,
               stages=[1, 1, 2, 1], glob=[3], windows=[8, 4, 4, 2], background=[7, 7],
               picture=(50, 70), salt=4, hyper0=1, pt=True),
    "S6": dict(purpose="tiny as released", image=1024, embed=96, heads=1, stages=[1, 2, 7, 2],
               glob=[5, 7, 9],
               windows=[8, 4, 14, 7], background=[7, 7], real=True),
    "S7": dict(purpose="small as released", image=1024, embed=96, heads=1, stages=[1, 2, 11, 2],
               glob=[7, 10, 13],
               windows=[8, 4, 14, 7], background=[7, 7], real=True),
    "S8": dict(purpose="base_plus as released", image=1024, embed=112, heads=2,
               stages=[2, 3, 16, 3], glob=[12, 16, 20],
               windows=[8, 4, 14, 7], background=[14, 14], real=True),
    "S9": dict(purpose="large as released", image=1024, embed=144, heads=2, stages=[2, 6, 36, 4],
               glob=[23, 33, 43],
               windows=[8, 4, 16, 8], background=[7, 7], real=True),
}

# Points as fractions of the picture's side, rounded to quarter pixels; label 2 and 3 are a box's
# corners.
TL, BR, P1, P2, P3 = (0.21, 0.17), (0.72, 0.66), (0.40, 0.35), (0.58, 0.44), (0.83, 0.90)
PROMPTS = {
    "point_pos": [[(P1, 1)]],
    "point_neg": [[(P2, 0)]],
    "points": [[(P1, 1), (P3, 0), (P2, 1)]],
    "box": [[(TL, 2), (BR, 3)]],
    "box_point": [[(TL, 2), (BR, 3), (P1, 1)]],
    "box_points": [[(TL, 2), (BR, 3), (P1, 1), (P2, 1)]],
    "box_mixed": [[(TL, 2), (BR, 3), (P1, 1), (P3, 0)]],
    "none": None,
    "mask": None,
    "mask_point": [[(P2, 1)]],
    "two_boxes": [[(TL, 2), (BR, 3)], [(P2, 2), (P3, 3)]],
}
GRADIENT_PROMPTS = ["box_mixed", "mask"]
MAIN_PROMPT = "box_points"      # its tokens and maps inside the decoder are stored too


# The shared integer formulas
# ---------------------------------------------------------------------------------------------

def mix(x):
    """32-bit finaliser of MurmurHash3 on a uint32 array."""
    x = x.astype(np.uint64)
    m = np.uint64(0xFFFFFFFF)
    x ^= x >> np.uint64(16)
    x = (x * np.uint64(0x85EBCA6B)) & m
    x ^= x >> np.uint64(13)
    x = (x * np.uint64(0xC2B2AE35)) & m
    x ^= x >> np.uint64(16)
    return x.astype(np.uint32)


def fnv1a(text):
    h = 2166136261
    for b in text.encode():
        h = ((h ^ b) * 16777619) & 0xFFFFFFFF
    return h


def hashes(text, count):
    """uint32 [count]: mix((fnv1a(text) + i) mod 2^32)."""
    return mix(np.arange(count, dtype=np.uint32) + np.uint32(fnv1a(text)))


def picture(height, width):
    """u8 [height, width, 3]: a triangle wave of period 256 plus noise of 0..63, at most 191."""
    y, x, c = np.meshgrid(np.arange(height), np.arange(width), np.arange(3), indexing="ij")
    wave = np.abs((5 * y + 3 * x + 64 * c) % 256 - 128)
    noise = (hashes("picture", height * width * 3) >> np.uint32(26)).reshape(height, width, 3)
    return (wave + noise).astype(np.uint8)


def logit_map(channels, height, width):
    """f32 [channels, height, width]: (triangle wave - 64 + noise of -16..15) / 8, multiples of 1/8
    in [-10, 9.875]."""
    c, y, x = np.meshgrid(np.arange(channels), np.arange(height), np.arange(width), indexing="ij")
    wave = np.abs((7 * y + 4 * x + 50 * c) % 256 - 128) - 64
    noise = (hashes("logits", channels * height * width) >> np.uint32(27)).reshape(channels, height,
                                                                                   width).astype(
                                                                                       np.int64) - 16
    return torch.from_numpy(((wave + noise) / 8).astype(np.float32))


def exponent(name, shape, hyper0):
    """e of the weight formula: values are in (-2^-e, 2^-e)."""
    last = name.split(".")[-1]
    if last == "bias":
        return 3
    if name.endswith("positional_embedding"):
        return 0
    if "pos_embed" in name:
        return 1
    if name.endswith(("token.weight", "tokens.weight")) or "_embed" in name and len(
        shape) == 2 or name == "no_memory_embedding":
        return 0
    fan_in = shape[0] if "upscale_conv" in name else int(np.prod(shape[1:]))
    e = 0
    while 3 * 4 ** e < fan_in:
        e += 1
    if "output_hypernetworks_mlps" in name or "iou_prediction_head" in name or "pred_obj_score_head" in name:
        e -= 1
        if name.endswith("proj_out.weight") and "mlps" in name:
            e -= 1 + (hyper0 if "mlps.0." in name else 0)
    return e


def formula_weights(shapes, salt="", hyper0=0):
    """transformers name -> f32 tensor, all values exact in bf16; shapes: name -> list of ints."""
    out = {}
    for name, shape in shapes.items():
        key = "shared_image_embedding.positional_embedding" if name.endswith(
            "positional_embedding") else name
        h = hashes(key + salt, int(np.prod(shape)))
        if "norm" in name and name.endswith("weight"):
            v = 1 + ((h >> np.uint32(27)).astype(np.float64) - 16) / 64
        else:
            v = (2 * (h >> np.uint32(24)).astype(np.float64) - 255) / 256 * 2.0 ** -exponent(name,
                                                                                             shape,
                                                                                             hyper0)
        out[name] = torch.from_numpy(v.astype(np.float32).reshape(shape))
        assert torch.equal(out[name].bfloat16().float(), out[name]), name
    return out


# The two models
# --------------------------------------------------------------------------------------------------

def hf_config(spec):
    dims = [spec["embed"] << i for i in range(4)]
    size, d = spec["image"], 256 if spec.get("real") else 32
    backbone = dict(model_type="sam2_hiera_det_model", hidden_size=dims[0],
                    num_attention_heads=spec["heads"], image_size=[size, size],
                    embed_dim_per_stage=dims,
                    num_attention_heads_per_stage=[spec["heads"] << i for i in range(4)],
                    blocks_per_stage=spec["stages"], window_size_per_stage=spec["windows"],
                    global_attention_blocks=spec["glob"],
                    window_positional_embedding_background_size=spec["background"])
    vision = dict(backbone_config=backbone, backbone_channel_list=dims[::-1], fpn_hidden_size=d,
                  backbone_feature_sizes=[[size // s, size // s] for s in (4, 8, 16)])
    decoder = dict(hidden_size=d)
    if not spec.get("real"):
        decoder.update(mlp_dim=48, iou_head_hidden_dim=24)
    return Sam2Config(vision_config=dict(model_type="sam2_vision_model", **vision),
                      prompt_encoder_config=dict(hidden_size=d, image_size=size, patch_size=16),
                      mask_decoder_config=decoder, architectures=["Sam2Model"])


class SmallHeads(SAM2Base):
    """SAM2Base with the decoder widths of the tiny configurations; its builder fixes 2048 and
    256."""

    def _build_sam_heads(self):
        super()._build_sam_heads()
        if self.hidden_dim < 256:
            self.sam_mask_decoder = MaskDecoder(
                num_multimask_outputs=3, transformer_dim=self.hidden_dim, iou_head_depth=3,
                                                iou_head_hidden_dim=24,
                transformer=TwoWayTransformer(depth=2, embedding_dim=self.hidden_dim, mlp_dim=48,
                                              num_heads=8),
                use_high_res_features=True, iou_prediction_use_sigmoid=True, pred_obj_scores=True,
                                                pred_obj_scores_mlp=True,
                use_multimask_token_for_obj_ptr=True, **self.sam_mask_decoder_extra_args)


def sam2_model(spec):
    """sam2's own model. The memory parts are small and unused, but the class wants them and the .pt
    shows their keys."""
    d, dims = 256 if spec.get("real") else 32, [spec["embed"] << i for i in range(4)]
    trunk = Hiera(embed_dim=spec["embed"], num_heads=spec["heads"], stages=spec["stages"],
                  global_att_blocks=spec["glob"],
                  window_pos_embed_bkg_spatial_size=spec["background"], window_spec=spec["windows"])
    neck = FpnNeck(position_encoding=PositionEmbeddingSine(num_pos_feats=d), d_model=d,
                   backbone_channel_list=dims[::-1],
                   fpn_top_down_levels=[2, 3], fpn_interp_model="nearest")
    rope = dict(rope_theta=10000.0, feat_sizes=(4, 4), embedding_dim=d, num_heads=1)
    attention = MemoryAttention(d_model=d, pos_enc_at_input=True, num_layers=1,
                                layer=MemoryAttentionLayer(
        activation="relu", d_model=d, dim_feedforward=16, dropout=0.0, pos_enc_at_attn=False,
                                                           pos_enc_at_cross_attn_keys=True,
        pos_enc_at_cross_attn_queries=False, self_attention=RoPEAttention(**rope),
        cross_attention=RoPEAttention(rope_k_repeat=True, kv_in_dim=8, **rope)))
    memory = MemoryEncoder(out_dim=8, in_dim=d,
                           position_encoding=PositionEmbeddingSine(num_pos_feats=8),
                           mask_downsampler=MaskDownSampler(embed_dim=d, kernel_size=3, stride=2,
                                                            padding=1),
                           fuser=Fuser(CXBlock(dim=d, use_dwconv=True), num_layers=1))
    model = SmallHeads(ImageEncoder(trunk, neck, scalp=1), attention, memory,
                       image_size=spec["image"], num_maskmem=3,
                       use_high_res_features_in_sam=True, directly_add_no_mem_embed=True,
                       iou_prediction_use_sigmoid=True,
                       pred_obj_scores=True, pred_obj_scores_mlp=True,
                       use_multimask_token_for_obj_ptr=True,
                       multimask_output_in_sam=True, use_obj_ptrs_in_encoder=True,
                       use_mlp_for_obj_ptr_proj=True,
                       no_obj_embed_spatial=True, fixed_no_obj_ptr=True,
                       sam_mask_decoder_extra_args=dict(dynamic_multimask_via_stability=True,
                                                        dynamic_multimask_stability_delta=0.05,
                                                        dynamic_multimask_stability_thresh=0.98))
    return model.eval()


def in_double(model):
    """The same model, changed to double precision in place."""
    model.double()
    pe = model.sam_prompt_encoder.pe_layer       # it casts coordinates to f32 itself
    pe._pe_encoding = lambda coords: type(pe)._pe_encoding(pe, coords.double())
    return model


RENAMES = [("image_encoder.trunk.", "vision_encoder.backbone."),
           ("image_encoder.neck.", "vision_encoder.neck."),
           ("sam_prompt_encoder.", "prompt_encoder."), ("sam_mask_decoder.", "mask_decoder."),
           ("patch_embed.proj.", "patch_embed.projection."),
           (".conv.", "."), (".norm_final_attn.", ".layer_norm_final_attn."),
           (".out_proj.", ".o_proj."),
           ("pe_layer.positional_encoding_gaussian_matrix",
            "shared_embedding.positional_embedding"),
           ("mask_downscaling.0.", "mask_embed.conv1."),
           ("mask_downscaling.1.", "mask_embed.layer_norm1."),
           ("mask_downscaling.3.", "mask_embed.conv2."),
           ("mask_downscaling.4.", "mask_embed.layer_norm2."),
           ("mask_downscaling.6.", "mask_embed.conv3."), ("output_upscaling.0.", "upscale_conv1."),
           ("output_upscaling.1.", "upscale_layer_norm."),
           ("output_upscaling.3.", "upscale_conv2.")]
VIDEO = ("maskmem_tpos_enc", "no_mem_pos_enc", "no_obj_ptr", "no_obj_embed_spatial",
         "mask_downsample.", "memory_attention.",
         "memory_encoder.", "obj_ptr_proj.", "obj_ptr_tpos_proj.")


def hf_name(name):
    """sam2's name -> transformers' name, or name and row for the four point embeddings, or None for
    the video parts."""
    if name.startswith(VIDEO):
        return None
    if name == "no_mem_embed":
        return "no_memory_embedding"
    if name.startswith("sam_prompt_encoder.point_embeddings."):
        return "prompt_encoder.point_embed.weight", int(name.split(".")[2])
    for old, new in RENAMES:
        name = name.replace(old, new)
    parts = name.split(".")
    for i in range(1, 5):
        if f"norm{i}" in parts:
            parts[parts.index(f"norm{i}")] = f"layer_norm{i}"
    at = len(parts) - 3       # <mlp>.layers.<k>.weight: two layers in an MLP block, three in a head
    if at > 0 and parts[at] == "layers":
        k, two = int(parts[at + 1]), parts[at - 1] == "mlp"
        parts[at:at + 2] = ["proj_in"] if k == 0 else ["proj_out"] if two or k == 2 else ["layers",
                                                                                          "0"]
    return ".".join(parts)


def give_weights(model, weights):
    """Copies transformers-named weights into sam2's model; every image-path entry must be named."""
    used = set()
    with torch.no_grad():
        for name, p in model.state_dict().items():
            to = hf_name(name)
            if to is None:
                continue
            source = weights[to[0]][to[1]:to[1] + 1] if isinstance(to, tuple) else weights[to]
            assert p.shape == source.shape, (name, p.shape, source.shape)
            p.copy_(source)
            used.add(to[0] if isinstance(to, tuple) else to)
    left = set(weights) - used - {"shared_image_embedding.positional_embedding"}
    assert not left, left


# What is recorded
# --------------------------------------------------------------------------------------------------

def last(x):
    """[1, C, H, W] -> [H, W, C]"""
    return x[0].permute(1, 2, 0)


def quarter(fraction, size):
    return round(fraction * size * 4) / 4


def prompt_inputs(name, size):
    """points [B, n, 2], labels [B, n] and mask [1, 1, size / 4, size / 4], each or None."""
    rows = PROMPTS[name]
    points = labels = mask = None
    if rows:
        points = torch.tensor([[[quarter(f, size) for f in xy] for xy, _ in row] for row in rows])
        labels = torch.tensor([[l for _, l in row] for row in rows], dtype=torch.int32)
    if name.startswith("mask"):
        mask = logit_map(1, size // 4, size // 4)[None]
    return points, labels, mask


def encode(model, pixels):
    """sam2: what SAM2ImagePredictor.set_image computes, with the stages. All maps [1, C, H, W]."""
    stages = model.image_encoder.trunk(pixels)
    fpn, _ = model.image_encoder.neck(stages)
    embed = fpn[2] + model.no_mem_embed.reshape(1, -1, 1, 1)
    return dict(stages=stages, image_embed=embed, feat_s0=model.sam_mask_decoder.conv_s0(fpn[0]),
                feat_s1=model.sam_mask_decoder.conv_s1(fpn[1]))


def decode(model, enc, points, labels, mask):
    """sam2: all four masks [B, 4, h, w], iou [B, 4], object logit [B, 1], and stages on the way."""
    dtype = enc["image_embed"].dtype
    prompt, decoder = model.sam_prompt_encoder, model.sam_mask_decoder
    sparse, dense = prompt(points=None if points is None else (points.to(dtype), labels),
                           boxes=None,
                           masks=None if mask is None else mask.to(dtype))
    kept, hooks = {}, []
    hooks.append(decoder.transformer.register_forward_hook(lambda _m, _a,
                                                           out: kept.update(tokens=out[0],
                                                                            keys=out[1])))
    pe = prompt.get_dense_pe()
    masks, iou, _, score = decoder.predict_masks(
        image_embeddings=enc["image_embed"], image_pe=pe, sparse_prompt_embeddings=sparse.to(dtype),
                                                 dense_prompt_embeddings=dense,
        repeat_image=sparse.shape[0] > 1, high_res_features=[enc["feat_s0"], enc["feat_s1"]])
    for h in hooks:
        h.remove()
    return dict(masks=masks, iou=iou, object=score, sparse=sparse, dense=dense, dense_pe=pe,
                tokens=kept["tokens"], keys=kept["keys"])


def hf_encode(hf, pixels):
    out = hf.get_image_features(pixels)
    maps = list(out.fpn_hidden_states)
    maps[2] = maps[2] + hf.no_memory_embedding
    s0, s1, embed = [f.permute(1, 2, 0).reshape(1, -1, *hw) for f,
                     hw in zip(maps, hf.backbone_feature_sizes)]
    return dict(image_embed=embed, feat_s0=s0, feat_s1=s1)


def hf_decode(hf, enc, points, labels, mask):
    """transformers: mask 0 is what its decoder returns in training mode; no layer of it behaves
    differently there."""
    if points is None:
        dense = hf.prompt_encoder(None, None, None, mask)[1]
        sparse = enc["image_embed"].new_zeros(1, 1, 0, enc["image_embed"].shape[1])
    else:
        sparse, dense = hf.prompt_encoder(points[None], labels[None], None, mask)
    def run(**kw):
        return hf.mask_decoder(image_embeddings=enc["image_embed"], sparse_prompt_embeddings=sparse,
                               dense_prompt_embeddings=dense,
                               image_positional_embeddings=hf.get_image_wide_positional_embeddings(),
                               high_resolution_features=[enc["feat_s0"], enc["feat_s1"]], **kw)
    hf.mask_decoder.train()
    first = run(multimask_output=False)
    hf.mask_decoder.eval()
    rest, chosen = run(multimask_output=True), run(multimask_output=False)
    return dict(masks=torch.cat([first[0], rest[0]], 2)[0],
                iou=torch.cat([first[1], rest[1]], 2)[0], object=first[3][0],
                single=chosen[0][0], single_iou=chosen[1][0])


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
    """SAM2ImagePredictor itself on a picture of another size; coordinates in that picture's
    pixels."""
    height, width = spec["picture"]
    predictor = SAM2ImagePredictor(model)
    predictor._bb_feat_sizes = [(spec["image"] // s,) * 2 for s in (4, 8, 16)]
    predictor.set_image(picture(height, width))
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

    pixels = (torch.from_numpy(picture(size, size)).permute(2, 0, 1)[None].float() - 128) / 64
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
    pixels = (torch.from_numpy(picture(size, size)).permute(2, 0, 1)[None].float() - 128) / 64
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
    record, tensors = Record(), []
    resize = SAM2Transforms(resolution=1024, mask_threshold=0.0)
    for h, w in [(1024, 1024), (480, 640), (1080, 1920), (777, 333), (333, 777), (60, 100),
                 (2048, 2048), (1, 1000), (1000, 1), (1500, 700)]:
        record.put(f"in.{h}x{w}", resize(picture(h, w)).permute(1, 2, 0), 1500)
    small = SAM2Transforms(resolution=64, mask_threshold=0.0)
    for h, w in [(50, 70), (64, 64), (640, 31)]:
        record.put(f"in64.{h}x{w}", small(picture(h, w)).permute(1, 2, 0), 1500)
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
    save_file({f"{s}x{s}": torch.from_numpy(picture(s, s)) for s in (64, 128)},
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
