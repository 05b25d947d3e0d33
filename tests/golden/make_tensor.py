"""Writes tensor.json: what PyTorch gives for small tensor expressions, and their gradients.

    python3 make_tensor.py > tensor.json         (torch of requirements.txt)

Each case is an expression in Lua, for tests/unit/test_tensor.lua, and a function of the same inputs
here. The gradients are those of sum(w * y), w = 1, 1.25, 1.5, ... in the order of y's elements, for
every input that the expression uses. All inputs are multiples of 1/8, which f32 holds exactly.
Left out: dtypes other than f32, devices.
"""
import json
import re

import torch
import torch.nn.functional as F

INPUTS = {
    "a": [[0.5, -1.25, 2.0], [1.5, 0.25, -0.75]],
    "b": [[2.25], [-0.5]],
    "c": [1.0, -2.0, 0.375],
    "e": [[1.5, -0.25, 3.0]],
    "p": [[0.5, 1.25, 2.0], [1.5, 0.25, 0.75]],
    "d": [[[0.5, 1.0, -0.5, 2.0], [1.5, -2.0, 0.25, 0.75], [-1.0, 3.0, 0.125, -0.25]],
          [[2.5, -1.5, 0.375, 1.25], [-3.0, 0.625, 4.0, -0.125], [1.75, -0.875, 2.25, 3.5]]],
    "l": [[0.5, -1.0, 2.0, 0.25], [3.0, 1.5, -0.5, 0.0], [-2.0, 0.75, 1.0, 4.0]],
}
IDS = [2, 0, 3]
WITH_IGNORED = [2, -100, 1]


def ids(values):
    return torch.tensor(values)


# The Lua expression, and the same in Python. T is segzero's tensor module.
CASES = [
    # sums, means, extremes
    ("a:sum()", lambda a: a.sum()),
    ("a:sum(0)", lambda a: a.sum(0)),
    ("a:sum(1, true)", lambda a: a.sum(1, keepdim=True)),
    ("d:sum(1)", lambda d: d.sum(1)),
    ("d:sum(-1)", lambda d: d.sum(-1)),
    ("d:sum(-3, true)", lambda d: d.sum(-3, keepdim=True)),
    ("c:sum(0)", lambda c: c.sum(0)),
    ("a:mean()", lambda a: a.mean()),
    ("a:mean(1)", lambda a: a.mean(1)),
    ("d:mean(1, true)", lambda d: d.mean(1, keepdim=True)),
    ("a:max()", lambda a: a.max()),
    ("d:min()", lambda d: d.min()),
    ("(a:max(0))", lambda a: a.max(0).values),
    ("(d:max(1, true))", lambda d: d.max(1, keepdim=True).values),
    ("(d:min(-1))", lambda d: d.min(-1).values),
    ("(d:min(0))", lambda d: d.min(0).values),
    # softmax, cross-entropy
    ("a:softmax()", lambda a: a.softmax(-1)),
    ("a:softmax(0)", lambda a: a.softmax(0)),
    ("d:softmax(1)", lambda d: d.softmax(1)),
    ("d:softmax(-1)", lambda d: d.softmax(-1)),
    ("l:cross_entropy(IDS)", lambda l: F.cross_entropy(l, ids(IDS))),
    ("l:cross_entropy(IDS, {reduction = 'sum'})",
     lambda l: F.cross_entropy(l, ids(IDS), reduction="sum")),
    ("T.cross_entropy(l, IDS, {reduction = 'none'})",
     lambda l: F.cross_entropy(l, ids(IDS), reduction="none")),
    ("l:cross_entropy(WITH_IGNORED)", lambda l: F.cross_entropy(l, ids(WITH_IGNORED))),
    ("l:cross_entropy(IDS, {ignore_index = 3})",
     lambda l: F.cross_entropy(l, ids(IDS), ignore_index=3)),
    # broadcasting
    ("a + b", lambda a, b: a + b),
    ("b + a", lambda a, b: b + a),
    ("a - c", lambda a, c: a - c),
    ("c - a", lambda a, c: c - a),
    ("b * c", lambda b, c: b * c),
    ("b / e", lambda b, e: b / e),
    ("e / p", lambda e, p: e / p),
    ("d:transpose(0, 2) * b:reshape(2)", lambda b, d: d.transpose(0, 2) * b.reshape(2)),
    ("c + e", lambda c, e: c + e),
    ("a:minimum(b)", lambda a, b: torch.minimum(a, b)),
    ("b:maximum(c)", lambda b, c: torch.maximum(b, c)),
    ("a:maximum(0.375)", lambda a: a.clamp(min=0.375)),
    ("a:minimum(0.375)", lambda a: a.clamp(max=0.375)),
    ("a:clamp(0.375)", lambda a: a.clamp(0.375)),
    ("a:clamp(nil, 0.375)", lambda a: a.clamp(None, 0.375)),
    ("a:clamp(-1, 1)", lambda a: a.clamp(-1, 1)),
    ("c:broadcast_to({2, 3})", lambda c: c.broadcast_to(2, 3)),
    # numbers
    ("2 - a", lambda a: 2 - a),
    ("3 / p", lambda p: 3 / p),
    ("-a * 2 + 1", lambda a: -a * 2 + 1),
    # powers
    ("p:sqrt()", lambda p: p.sqrt()),
    ("p ^ 0.5", lambda p: p ** 0.5),
    ("a ^ 2", lambda a: a ** 2),
    ("a ^ 3", lambda a: a ** 3),
    ("p ^ -1.5", lambda p: p ** -1.5),
    ("2 ^ a", lambda a: 2 ** a),
    ("p ^ a", lambda a, p: p ** a),
    ("p ^ b", lambda b, p: p ** b),
    ("p:pow(c)", lambda c, p: p.pow(c)),
    ("a:abs()", lambda a: a.abs()),
    # choices
    ("T.where(a:gt(0.25), a, b)", lambda a, b: torch.where(a > 0.25, a, b)),
    ("T.where(a:gt(0), a, 0)", lambda a: torch.where(a > 0, a, 0.0)),
    ("T.where(c:lt(0), 1, a)", lambda a, c: torch.where(c < 0, 1.0, a)),
    ("a:where(b:gt(0), e)", lambda a, b, e: a.where(b > 0, e)),
    # other arrangements
    ("T.cat({a, e}, 0)", lambda a, e: torch.cat([a, e], 0)),
    ("T.cat({a, b, p}, -1)", lambda a, b, p: torch.cat([a, b, p], -1)),
    ("T.cat({a, a, a, a, a, a, a, a, a, e}, 0)", lambda a, e: torch.cat([a] * 9 + [e], 0)),
    ("T.stack({a, p}, 1)", lambda a, p: torch.stack([a, p], 1)),
    ("a:transpose()", lambda a: a.transpose(-2, -1)),
    ("a:t()", lambda a: a.t()),
    ("d:transpose(0, 1)", lambda d: d.transpose(0, 1)),
    ("d:transpose(-1, 0)", lambda d: d.transpose(-1, 0)),
    ("d:permute(2, 0, 1)", lambda d: d.permute(2, 0, 1)),
    ("d:permute({1, 2, 0})", lambda d: d.permute(1, 2, 0)),
    ("a:reshape(3, -1)", lambda a: a.reshape(3, -1)),
    ("a:reshape({1, 6})", lambda a: a.reshape(1, 6)),
    ("d:flatten()", lambda d: d.flatten()),
    ("a:unsqueeze(1)", lambda a: a.unsqueeze(1)),
    ("b:squeeze(-1)", lambda b: b.squeeze(-1)),
    ("e:squeeze()", lambda e: e.squeeze()),
    ("d:slice(1, 1, 2)", lambda d: d[:, 1:3]),
    ("d:slice(-1, 2, 1)", lambda d: d.narrow(-1, 2, 1)),
    ("d[2]", lambda d: d[1]),
    ("d[{2, -1}]", lambda d: d[1, -1]),
]

# Without gradients: what is not differentiable, and what is i32.
CONSTANT = [
    ("a:eq(a)", lambda a: a == a),
    ("a:ne(0.5)", lambda a: a != 0.5),
    ("a:lt(b)", lambda a, b: a < b),
    ("c:le(a)", lambda a, c: c <= a),
    ("a:gt(c)", lambda a, c: a > c),
    ("a:ge(0.5)", lambda a: a >= 0.5),
    ("d:argmax()", lambda d: d.argmax()),
    ("d:argmax(1)", lambda d: d.argmax(1)),
    ("d:argmin(-1, true)", lambda d: d.argmin(-1, keepdim=True)),
    ("select(2, d:max(0))", lambda d: d.max(0).indices),
    ("select(2, d:min(1, true))", lambda d: d.min(1, keepdim=True).indices),
    ("T.arange(5)", lambda: torch.arange(5)),
    ("T.arange(1, 2, 0.25)", lambda: torch.arange(1, 2, 0.25)),
    ("T.arange(3, 0, -1)", lambda: torch.arange(3, 0, -1)),
    ("T.ones({2, 2})", lambda: torch.ones(2, 2)),
    ("T.full({3}, 0.5)", lambda: torch.full((3,), 0.5)),
    ("l:argmax(1):eq(T.new(IDS, {dtype = 'i32'})):mean()",
     lambda l: (l.argmax(1) == ids(IDS)).float().mean()),
]


def used(expression):
    """The names of the inputs in a Lua expression, in the order of the function's parameters."""
    words = set(re.findall(r"\b[a-z]\b", re.sub(r":[a-z_]+", "", expression)))
    return sorted(words & INPUTS.keys())


def evaluated(expression, function, differentiate):
    names = used(expression)
    leaves = {n: torch.tensor(INPUTS[n], requires_grad=differentiate) for n in names}
    y = function(*[leaves[n] for n in names])
    value = y.detach().float().flatten().tolist()
    case = {"lua": expression, "shape": list(y.shape) or [1], "value": value}
    if differentiate:
        weights = 1 + 0.25 * torch.arange(y.numel())
        (y.flatten() * weights).sum().backward()
        used_leaves = {n: t for n, t in leaves.items() if t.grad is not None}
        case["gradients"] = {n: t.grad.flatten().tolist() for n, t in used_leaves.items()}
    return case


def main():
    cases = [evaluated(e, f, True) for e, f in CASES]
    cases += [evaluated(e, f, False) for e, f in CONSTANT]
    head = {"torch": torch.__version__, "inputs": INPUTS, "ids": IDS, "with_ignored": WITH_IGNORED}
    print(json.dumps(head)[:-1] + ', "cases": [')
    print(",\n".join(json.dumps(case) for case in cases))
    print("]}")


if __name__ == "__main__":
    main()
