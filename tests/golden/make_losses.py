"""Policy losses, advantage estimators and KL estimates of EasyR1 on a small batch.

Usage: python make_losses.py EASYR1_FOLDER [FILE (default: losses.json next to this file)]

EASYR1_FOLDER is a checkout of hiyouga/EasyR1 (written at b44b311, torch 2.15.0). Only
core_algos of verl/trainer and the two modules that it needs are loaded.

Two groups of three answers with lengths 1 to 5. losses.json has
  lengths, scores              [group][answer]
  logprob, old, reference, advantage   one number for each token, answer after answer
  losses[name]                 options, the loss of the update and its gradient by logprob
  advantages[name]             [group][answer][token]
  penalised                    the same for two of them with a KL term in the reward
  cosine                       factors of get_cosine_schedule_with_warmup by step from 0
Left out: padding, which the answers do not have here; gae and remax.
"""
import importlib.util
import json
import os
import sys
import types

import torch

ROOT = sys.argv[1]
OUT = sys.argv[2] if len(sys.argv) > 2 else os.path.join(
    os.path.dirname(os.path.abspath(__file__)), "losses.json")
LENGTHS = [[4, 2, 5], [1, 3, 4]]
SCORES = [[1.0, 0.25, 0.5], [2.0, 2.0, 0.5]]
COEF, GAMMA = 0.05, 0.9


def load(name, path):
    spec = importlib.util.spec_from_file_location(name, os.path.join(ROOT, path))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


for package in ("verl", "verl.utils", "verl.trainer"):
    sys.modules[package] = types.ModuleType(package)
    sys.modules[package].__path__ = []
load("verl.utils.torch_dtypes", "verl/utils/torch_dtypes.py")
functional = load("verl.utils.torch_functional", "verl/utils/torch_functional.py")
sys.modules["verl.utils"].torch_functional = functional
algos = load("verl.trainer.core_algos", "verl/trainer/core_algos.py")

flat_lengths = [n for group in LENGTHS for n in group]
rows, width = len(flat_lengths), max(flat_lengths)
mask = torch.zeros(rows, width)
for i, n in enumerate(flat_lengths):
    mask[i, :n] = 1
index = [g for g, group in enumerate(LENGTHS) for _ in group]
scores = torch.tensor([s for group in SCORES for s in group])

torch.manual_seed(5)
old = -2 * torch.rand(rows, width) - 0.1
logprob = (old + 0.6 * torch.randn(rows, width)).clamp(max=-0.01)
# One ratio far outside, for the dual clip.
logprob[1, 0] = old[1, 0] = -0.02
old[1, 0] = -2.5
reference = old + 0.3 * torch.randn(rows, width)
advantage = torch.randn(rows, width)
advantage[1, 0] = -1.5


def tokens(t):
    return [x for i, n in enumerate(flat_lengths) for x in t[i, :n].tolist()]


def nested(t):
    lists = [t[i, :n].tolist() for i, n in enumerate(flat_lengths)]
    out = []
    for group in LENGTHS:
        out.append(lists[:len(group)])
        lists = lists[len(group):]
    return out


BASE = dict(clip_ratio_low=0.2, clip_ratio_high=0.3, clip_ratio_dual=3.0, tau_positive=1.0,
            tau_negative=1.05)
CASES = [
    ("ppo_clip", "default", "token", {}), ("ppo_clip", "default", "seq", {"clip_ratio_dual": 1.5}),
    ("gspo", "gspo", "seq", {"clip_ratio_low": 0.05, "clip_ratio_high": 0.1}),
    ("gspo_token", "gspo_token", "seq", {"clip_ratio_low": 0.05, "clip_ratio_high": 0.1}),
    ("cispo", "cispo", "token", {"clip_ratio_low": 0.0, "clip_ratio_high": 0.5}),
    ("sapo", "sapo", "token", {"tau_positive": 1.2, "tau_negative": 1.6}),
]
losses = []
for name, theirs, mode, changes in CASES:
    options = {**BASE, **changes}
    leaf = logprob.clone().requires_grad_()
    loss, _ = algos.compute_policy_loss(old_log_probs=old, log_probs=leaf, advantages=advantage,
                                        response_mask=mask, loss_type=theirs, loss_avg_mode=mode,
                                        **options)
    loss.backward()
    losses.append({"name": name, "average": mode, "options": options, "loss": loss.item(),
                   "gradient": tokens(leaf.grad)})


def rewards(penalty):
    """The score at the last token, minus the penalty of each token."""
    t = torch.zeros(rows, width)
    for i, n in enumerate(flat_lengths):
        t[i, n - 1] = scores[i]
    return (t - penalty) * mask


def estimate(name, penalty):
    advantages, _ = algos.compute_advantage_return(
        name, token_level_rewards=rewards(penalty), response_mask=mask, index=index, gamma=GAMMA)
    return nested(advantages)


none = torch.zeros(rows, width)
kl = algos.compute_kl(old, reference, "low_var_kl")
cosine = functional.get_cosine_schedule_with_warmup(
    torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0), num_warmup_steps=2,
    num_training_steps=10, min_lr_ratio=0.25).lr_lambdas[0]

with open(OUT, "w") as f:
    json.dump({
        "lengths": LENGTHS, "scores": SCORES, "gamma": GAMMA, "coef": COEF,
        "logprob": tokens(logprob), "old": tokens(old), "reference": tokens(reference),
        "advantage": tokens(advantage), "losses": losses,
        "advantages": {n: estimate(n, none)
                       for n in ("grpo", "rloo", "grpo_passk", "reinforce_plus_plus")},
        "penalised": {n: estimate(n, COEF * kl) for n in ("grpo", "reinforce_plus_plus")},
        "kl_mean": functional.masked_mean(kl, mask, dim=-1).mean().item(),
        "cosine": [cosine(i) for i in range(10)],
    }, f)
    f.write("\n")
