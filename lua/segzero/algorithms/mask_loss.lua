-- mask_loss.lua - the losses that SAM2 is trained with, on mask logits.
--
--   local loss = require "segzero.algorithms.mask_loss"
--   local total, parts = loss.sam2(out, truth, {modes = {"both", ..}, weights = {mask = 20, dice = 1, iou = 1, object = 1}})
--   loss.focal(x, y)   loss.dice(x, y)        logits x and truth y f32 [n, k] -> f32 [n, 1], a loss for each row
--   loss.iou_of(x, y)                         {actual IoU of each row}: logits above 0 against truth above 0.5
--
-- out is what sam:decode returns (logits [P, m, s, s], iou [P, m], object [P, 1]); truth f32 [P, h, w], 0 to 1. Logits are
-- stretched to h x w, bilinearly, as masks are made. modes[p] says which masks prompt p trains: "single" the first, "multi" the
-- best of the others, "both". Of "multi" only the mask with the least focal + dice has those gradients; every mask's
-- predicted IoU is held to the actual one. An empty truth trains the object score alone. All are means over what is trained.
-- total is one element to call backward() on; parts are numbers: mask, dice, iou, object, total, actual (mean IoU of the
-- masks picked), score_error.
--
-- Leaves out: several clicks on one object in a row, frames of a video.

local tensor = require "segzero.core.tensor"
local core = require "segzero.core.ffi"

local M = {}

local BILINEAR = 1

M.WEIGHTS = { mask = 20, dice = 1, iou = 1, object = 1 }

-- Sums of the rows [n, k] -> [n, 1]; a product, which has a gradient.
local function row_sums(x)
  return x:linear(tensor.zeros({ 1, x:shape()[2] }, { device = x:device() }):affine(0, 1))
end

-- Cross entropy of logits without overflow; its gradient is sigmoid(x) - y.
local function cross_entropy(x, y) return x:softplus():sub(x:mul(y)) end

-- Cross entropy weighted by (1 - p_t)^2, p_t being the probability of what is true, and by alpha where the truth is 1 and
-- 1 - alpha where it is 0; mean over a row.
function M.focal(x, y, alpha)
  alpha = alpha or 0.25
  local miss = x:sigmoid():mul(y:affine(-2, 1)):add(y)              -- 1 - p_t = p (1 - 2y) + y
  local weighted = cross_entropy(x, y):mul(miss:mul(miss)):mul(y:affine(2 * alpha - 1, 1 - alpha))
  return row_sums(weighted):affine(1 / x:shape()[2], 0)
end

function M.dice(x, y)
  local p = x:sigmoid()
  local numerator = row_sums(p:mul(y)):affine(2, 1)
  return numerator:div(row_sums(p):add(row_sums(y)):affine(1, 1)):affine(-1, 1)
end

-- 1 where both are empty would reward nothing being there: it is 0, as in the reference.
function M.iou_of(x, y)
  local shape, out = x:shape(), {}
  local said_of, truth_of, k = x:values(), y:values(), shape[2]
  local p, q = tensor.data(said_of), tensor.data(truth_of)
  for i = 0, shape[1] - 1 do
    local inter, union = 0, 0
    for j = i * k, i * k + k - 1 do
      local said, true_ = p[j] > 0, q[j] > 0.5
      if said and true_ then inter = inter + 1 end
      if said or true_ then union = union + 1 end
    end
    out[i + 1] = inter / math.max(union, 1)
  end
  return out
end

local function ids(list) return tensor.new(list, { dtype = "i32" }) end

-- Rows [., s s] of low-resolution logits -> [., h w].
local function stretch(rows, side, height, width)
  local n = rows:shape()[1]
  if height ~= side or width ~= side then rows = rows:reshape(n, side, side, 1):resize(height, width, BILINEAR) end
  return rows:reshape(n, height * width)
end

-- What is trained: {{prompt = p from 0, first = k, last = k}, ..}, k a mask's number from 0.
local function groups(prompts, masks, modes)
  local list = {}
  for p = 0, prompts - 1 do
    local mode = modes and modes[p + 1] or "both"
    if mode ~= "single" and mode ~= "multi" and mode ~= "both" then error(("mask_loss: mode %s of prompt %d"):format(tostring(mode), p + 1), 3) end
    if mode ~= "multi" or masks == 1 then list[#list + 1] = { prompt = p, first = 0, last = 0 } end
    if mode ~= "single" and masks > 1 then list[#list + 1] = { prompt = p, first = 1, last = masks - 1 } end
  end
  return list
end

-- Of each group the mask with the least loss, and every trained mask's actual IoU, from the values.
local function judge(rows, truth, list, weights, side, height, width)
  return tensor.no_grad(tensor.step, function()
    local mine, of = {}, {}
    for _, g in ipairs(list) do
      for k = g.first, g.last do mine[#mine + 1], of[#of + 1] = g.prompt * g.masks + k, g.prompt end
    end
    local x, y = stretch(rows:gather_rows(ids(mine)), side, height, width), truth:gather_rows(ids(of))
    local actual = M.iou_of(x, y)
    local focal, dice = M.focal(x, y):values(), M.dice(x, y):values()
    local f, d, i = tensor.data(focal), tensor.data(dice), 0
    for _, g in ipairs(list) do
      local least = math.huge
      g.actual = {}
      for k = g.first, g.last do
        local value = weights.mask * f[i] + weights.dice * d[i]
        g.actual[k] = actual[i + 1]
        if value < least then g.best, least = k, value end
        i = i + 1
      end
      g.best = g.best or g.first
    end
  end)
end

function M.sam2(out, truth, opts)
  opts = opts or {}
  local weights = opts.weights or M.WEIGHTS
  local shape, size = out.logits:shape(), truth:shape()
  local prompts, masks, side, height, width = shape[1], shape[2], shape[3], size[2], size[3]
  if size[1] ~= prompts then error(("mask_loss: %d truths for %d prompts"):format(size[1], prompts), 2) end
  local f32 = function(t) return t:dtype() == "f32" and t or t:cast(core.C.SZ_F32) end
  local rows, y = f32(out.logits):reshape(prompts * masks, side * side), truth:to { device = out.logits:device() }:reshape(prompts, height * width)
  local list = groups(prompts, masks, opts.modes)
  for _, g in ipairs(list) do g.masks = masks end
  judge(rows, y, list, weights, side, height, width)

  local there = {}            -- 1 where the truth is not empty
  local whole = truth:values()
  local q = tensor.data(whole)
  for p = 0, prompts - 1 do
    there[p + 1] = 0
    for j = p * height * width, (p + 1) * height * width - 1 do
      if q[j] > 0 then
        there[p + 1] = 1
        break
      end
    end
  end
  local picked, of, share, count = {}, {}, {}, 0
  local held, weight = {}, {}                                         -- of each mask: actual IoU, share of the loss
  for i = 1, prompts * masks do held[i], weight[i] = 0, 0 end
  local actual, score_error = 0, 0
  local scores = out.iou:values()
  local said = tensor.data(scores)
  for i, g in ipairs(list) do
    local at = g.prompt * masks
    picked[i], of[i], share[i] = at + g.best, g.prompt, there[g.prompt + 1] / #list
    for k = g.first, g.last do
      held[at + k + 1], weight[at + k + 1] = g.actual[k], share[i] / (g.last - g.first + 1)
    end
    if share[i] > 0 then
      count, actual = count + 1, actual + g.actual[g.best]
      score_error = score_error + math.abs(said[at + g.best] - g.actual[g.best])
    end
  end

  local x, t = stretch(rows:gather_rows(ids(picked)), side, height, width), y:gather_rows(ids(of))
  local beside = { device = out.logits:device() }
  local shares = tensor.new(share, beside):reshape(#list, 1)
  local terms = { mask = M.focal(x, t):mul(shares):sum(), dice = M.dice(x, t):mul(shares):sum() }
  local off = f32(out.iou):reshape(prompts * masks):sub(tensor.new(held, beside))
  terms.iou = off:relu():add((-off):relu()):mul(tensor.new(weight, beside)):sum()
  terms.object = cross_entropy(f32(out.object):reshape(prompts), tensor.new(there, beside)):mean()

  local total
  local parts = { actual = actual / math.max(count, 1), score_error = score_error / math.max(count, 1) }
  for _, name in ipairs { "mask", "dice", "iou", "object" } do
    parts[name] = terms[name]:item()
    local part = terms[name] * (weights[name] or 0)
    total = total and total + part or part
  end
  parts.total = total:item()
  return total, parts
end

return M
