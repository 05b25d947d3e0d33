"""The models that make_sam2.py records: sizes, weights by formula, inputs, and how both packages
(sam2 and transformers) encode and decode. Left out: what is recorded of them (make_sam2.py). """
import numpy as np
import torch
from sam2.modeling.backbones.hieradet import Hiera
from sam2.modeling.backbones.image_encoder import FpnNeck, ImageEncoder
from sam2.modeling.memory_attention import MemoryAttention, MemoryAttentionLayer
from sam2.modeling.memory_encoder import CXBlock, Fuser, MaskDownSampler, MemoryEncoder
from sam2.modeling.position_encoding import PositionEmbeddingSine
from sam2.modeling.sam.mask_decoder import MaskDecoder
from sam2.modeling.sam.transformer import RoPEAttention, TwoWayTransformer
from sam2.modeling.sam2_base import SAM2Base
from transformers import Sam2Config

CONFIGS = {
    "S1": dict(purpose="no padding", image=128, embed=8, heads=1, stages=[1, 2, 3, 1], glob=[4],
               windows=[8, 4, 4, 2],
               background=[7, 7], original=(90, 61), salt=7, hyper0=1),
    "S2": dict(
        purpose="padding in stages 3 and 4, even window at a pooling block, two blocks in stage "
                "1; the file lacks the prompt "
               "encoder's copy of the positional matrix", image=128, embed=8, heads=2,
               stages=[2, 1, 3, 2], glob=[4],
               windows=[8, 4, 6, 3], background=[14, 14], original=(40, 170), salt=3, hyper0=0,
               one_matrix=True),
    "S3": dict(
        purpose="the released tiny model's windows, 16 x 16 tokens padded to 28; widths 10, 20, "
                "40, 80", image=256, embed=10,
               heads=1, stages=[1, 2, 4, 2], glob=[4, 6], windows=[8, 4, 14, 7], background=[7, 7],
               original=(256, 256), salt=6,
               hyper0=2),
    "S4": dict(
        purpose="odd window at a pooling block, oblong background; the config lacks what equals "
                "the class defaults", image=128,
               embed=8, heads=1, stages=[1, 1, 2, 1], glob=[3], windows=[8, 4, 7, 3],
               background=[5, 9], original=(200, 333),
               salt=3, hyper0=0, sparse=True),
    "S5": dict(purpose="smallest; the same weights as an original .pt with video keys", image=64,
               embed=8, heads=1,
               stages=[1, 1, 2, 1], glob=[3], windows=[8, 4, 4, 2], background=[7, 7],
               original=(50, 70), salt=4, hyper0=1, pt=True),
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

# Points as fractions of the image's side, rounded to quarter pixels; label 2 and 3 are a box's
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


def sample_image(height, width):
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
