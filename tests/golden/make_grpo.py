"""Golden GRPO loss and gradient on configuration Q1: every (prompt, answer) pair run on its own,
nothing shared or packed.

Usage: python make_grpo.py [OUTDIR (default: grpo next to this file)]     (run make_qwen_vl.py first)

Two prompts with images, four answers each, lengths 1 to 12. Per answer token t, with lp =
log-prob under the policy:
  ratio = exp(lp - old)      pg = max(-A * ratio, -A * clamp(ratio, 1 - 0.2, 1 + 0.2))
  d = ref - lp               kl = clamp(exp(d) - d - 1, -10, 10) (no gradient where clamped)
  H = entropy of the token's distribution loss = mean(pg) - 0.001 * mean(H) + 0.005 * mean(kl), each
  mean over all answer tokens of the batch at once A = (score - group mean) / (unbiased group std +
  1e-6)
case.json and case.safetensors are described in README.md. adamw.safetensors: three AdamW steps on
one small tensor. Left out: temperature other than 1, micro-batches, padding. """
import json
import os
import sys

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import Qwen2_5_VLForConditionalGeneration

import make_qwen_vl as q

CLIP, KL_COEF, ENTROPY_COEF, KL_CLAMP = 0.2, 0.005, 0.001, 10.0
PROMPTS = [[5, "140x84", 7], ["28x28", 3, "56x56", 4]]
LENGTHS = [[1, 5, 9, 3], [7, 1, 12, 4]]
SCORES = [[5.0, 2.75, 2.25, 1.0], [2.0, 0.0, 4.5, 1.0]]


def answer_terms(model, prompt, answer):
    """Per-token log-probs and entropies of one answer after one prompt; nothing is cached or
    shared."""
    ids = torch.cat([prompt["input_ids"], answer[None]], 1)
    start = prompt["input_ids"].shape[1]
    inputs = dict(input_ids=ids, mm_token_type_ids=(ids == q.IMAGE).int(),
                  image_grid_thw=prompt["image_grid_thw"],
                  pixel_values=prompt["pixel_values"].to(model.dtype))
    logits = model(**inputs).logits[0, start - 1:-1]
    logp = torch.log_softmax(logits, -1)
    return logp.gather(1, answer[:, None])[:, 0], -(logp.exp() * logp).sum(-1)


def loss_terms(lp, entropy, old, ref, adv):
    """All arguments [tokens of the batch]; returns the three means and what is also reported
    them."""
    ratio = torch.exp(lp - old)
    free, clipped = -adv * ratio, -adv * torch.clamp(ratio, 1 - CLIP, 1 + CLIP)
    d = ref - lp
    k3 = torch.exp(d) - d - 1
    return dict(pg=torch.max(free, clipped).mean(), entropy=entropy.mean(),
                kl=torch.clamp(k3, -KL_CLAMP, KL_CLAMP).mean(),
                clip_fraction=(clipped > free).double().mean(),
                clamped_fraction=(k3 > KL_CLAMP).double().mean(),
                approx_kl=(old - lp).mean())


def whole_loss(terms):
    return terms["pg"] - ENTROPY_COEF * terms["entropy"] + KL_COEF * terms["kl"]


def batch_terms(model, prompts, answers):
    pairs = [answer_terms(model, p, a) for p, group in zip(prompts, answers) for a in group]
    return [x[0] for x in pairs], [x[1] for x in pairs]


def reference_model(folder):
    """A second random model of the same shape; only its log-probs are stored."""
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32,
                                                               attn_implementation="eager")
    weights = q.random_weights(q.CONFIGS["Q1"], 77)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(weights[name].float())
    return model.eval()


def adamw(path):
    gen = torch.Generator().manual_seed(3)
    p = torch.nn.Parameter(torch.randn(37, generator=gen))
    opt = torch.optim.AdamW([p], lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2,
                            foreach=False)
    out = {"p0": p.detach().clone()}
    for step in range(1, 4):
        p.grad = torch.randn(37, generator=gen) * 10.0 ** -step
        if step == 3:
            p.grad[:5] = 0
        out[f"g{step}"] = p.grad.clone()
        opt.step()
        state = opt.state[p]
        out.update({f"p{step}": p.detach().clone(), f"m{step}": state["exp_avg"].clone(),
                    f"v{step}": state["exp_avg_sq"].clone()})
    save_file(out, path, {"adamw": "lr 1e-3, betas 0.9 0.999, eps 1e-8, weight_decay 1e-2"})


def main():
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    here = os.path.dirname(os.path.abspath(__file__))
    outdir = sys.argv[1] if len(sys.argv) > 1 else os.path.join(here, "grpo")
    os.makedirs(outdir, exist_ok=True)
    folder = os.path.join(here, "qwen_vl", "Q1")
    pixels = load_file(os.path.join(here, "qwen_vl", "pixels.safetensors"))
    gen = torch.Generator().manual_seed(556)
    prompts, names = [], []
    for i, runs in enumerate(PROMPTS):
        q_inputs, images = q.build_inputs(runs, pixels, gen)
        prompts.append(q_inputs)
        names.append(images)
    answers = []
    for group in LENGTHS:
        answers.append([torch.randint(0, 250, (n,), generator=gen) for n in group])
    for i, j in ((0, 1), (0, 2), (1, 0), (1, 2), (1, 1)):
        answers[i][j][-1] = q.EOS          # some answers end by themselves, the others were cut off

    def load(dtype):
        return Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=dtype,
                                                                  attn_implementation="eager").eval()

    policy = load(torch.float32)
    lps, ents = batch_terms(policy, prompts, answers)
    with torch.no_grad():
        refs, _ = batch_terms(reference_model(folder), prompts, answers)
    # Old log-probs near the policy's own, far enough that both clips happen for both signs of the
    # advantage.
    olds = [x.detach() + 0.5 * torch.randn(x.shape, generator=gen) for x in lps]
    scores = torch.tensor(SCORES)
    adv = (scores - scores.mean(1, keepdim=True)) / (scores.std(1, keepdim=True) + 1e-6)
    adv_tokens = torch.cat([a.expand(n) for a,
                            n in zip(adv.flatten(), [n for g in LENGTHS for n in g])])

    ratio = (torch.cat(lps).detach() - torch.cat(olds)).exp()
    assert ((adv_tokens > 0) & (ratio > 1 + CLIP)).sum() >= 2 and (
        (adv_tokens < 0) & (ratio < 1 - CLIP)).sum() >= 2
    assert torch.minimum((ratio - 1 - CLIP).abs(),
                         (ratio - 1 + CLIP).abs()).min() > 1e-3, "a ratio too near a clip"
    assert (adv_tokens == 0).any()
    terms = loss_terms(torch.cat(lps), torch.cat(ents), torch.cat(olds), torch.cat(refs),
                       adv_tokens)
    loss = whole_loss(terms)
    policy.zero_grad()
    loss.backward()
    q.MAIN_WHOLE, q.MAIN_SAMPLE = 200, 200
    grads = q.sample_gradients(policy, True)

    exact = load(torch.float64)
    lps64, ents64 = batch_terms(exact, prompts, answers)
    whole_loss(loss_terms(torch.cat(lps64), torch.cat(ents64), torch.cat(olds).double(),
                          torch.cat(refs).double(),
                          adv_tokens.double())).backward()
    exact_grads = dict(exact.named_parameters())
    noise = max(((p.grad.double() - exact_grads[n].grad).norm() / exact_grads[n].grad.norm()).item()
                for n, p in policy.named_parameters())

    tensors, k = {}, 0
    for i, p in enumerate(prompts):
        tensors[f"p{i}.input_ids"] = p["input_ids"][0].int()
        tensors[f"p{i}.image_grid_thw"] = p["image_grid_thw"].int()
        for j, a in enumerate(answers[i]):
            key = f"p{i}.a{j}."
            tensors.update({key + "ids": a.int(), key + "logprobs": lps[k].detach(),
                            key + "entropies": ents[k].detach(),
                            key + "old": olds[k], key + "ref": refs[k]})
            k += 1
    tensors.update({"scores": scores, "advantages": adv})
    tensors.update({"grad." + n: g["values"] for n, g in grads.items()})
    save_file({n: t.contiguous().clone() for n, t in tensors.items()},
              os.path.join(outdir, "case.safetensors"))
    norm = sum(p.grad.double().pow(2).sum() for p in policy.parameters()).sqrt().item()
    case = dict(config="Q1", versions=dict(torch=torch.__version__,
                                           transformers=transformers.__version__),
                clip=CLIP, kl_coef=KL_COEF, entropy_coef=ENTROPY_COEF, kl_clamp=KL_CLAMP,
                temperature=1.0,
                runs=PROMPTS, images=names, lengths=LENGTHS, tokens=sum(map(sum, LENGTHS)),
                loss=loss.item(),
                parts={n: t.item() for n, t in terms.items()}, gradient_norm=norm,
                f32_noise=dict(gradients=noise),
                gradients={n: {m: v for m, v in g.items() if m != "values"} for n,
                           g in grads.items()})
    with open(os.path.join(outdir, "case.json"), "w") as f:
        json.dump(case, f, separators=(",", ":"))
        f.write("\n")
    adamw(os.path.join(outdir, "adamw.safetensors"))
    print({m: v for m, v in case.items() if m != "gradients"})


if __name__ == "__main__":
    main()
