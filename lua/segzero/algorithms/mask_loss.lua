-- mask_loss.lua - the losses that SAM2 is trained with, on mask logits.
--
--   local loss = require "segzero.algorithms.mask_loss"
--   local total, parts = loss.sam2(out, truth, { modes = {"both", ...}, weights = loss.WEIGHTS })
--   loss.focal(x, y), loss.dice(x, y)   logits x and truth y f32 [n, k] -> f32 [n, 1]
--   loss.iou_of(x, y)                   the actual IoU of each row: logits above 0, truth above 0.5
--
-- out is what sam:decode returns: logits [P, m, s, s], iou [P, m], object [P, 1]. truth is f32
-- [P, h, w], 0 to 1. Logits are resized bilinearly to h x w, as the predictor does to make masks.
-- modes[p] says which masks prompt p trains: "single" the first, "multi" the best of the others,
-- "both" (the default).
-- With "multi", only the mask with the smallest focal + dice loss gets gradients from these terms.
-- The predicted IoU of every trained mask is compared with its actual IoU. An empty truth trains
-- only the object score. All terms are means over what is trained. total is one element to call
-- backward() on; parts are numbers: mask, dice, iou, object, total, actual (mean IoU of the picked
-- masks), score_error.
--
-- Leaves out: several clicks on one object, frames of a video.

local tensor = require "segzero.core.tensor"
local core = require "segzero.core.ffi"

local M = {}

local BILINEAR = 1

M.WEIGHTS = { mask = 20, dice = 1, iou = 1, object = 1 }
local TERMS = { "mask", "dice", "iou", "object" }
local MODES = { single = true, multi = true, both = true }

-- ---- terms ----
-- Sums over the rows, [n, k] -> [n, 1]. A product with ones, because that has a gradient.
local function row_sums(x)
  local ones = tensor.zeros({ 1, x:shape()[2] }, { device = x:device() }):affine(0, 1)
  return x:linear(ones)
end

-- Cross entropy of logits, without overflow. Its gradient is sigmoid(x) - y.
local function cross_entropy(x, y) return x:softplus():sub(x:mul(y)) end

-- Cross entropy weighted by (1 - p_t)^2, where p_t is the probability of the truth, and by alpha
-- where the truth is 1 and 1 - alpha where it is 0; the mean of each row.
function M.focal(x, y, alpha)
  alpha = alpha or 0.25
  local miss = x:sigmoid():mul(y:affine(-2, 1)):add(y)              -- 1 - p_t = p (1 - 2y) + y
  local weighted = cross_entropy(x, y):mul(miss:mul(miss))
  weighted = weighted:mul(y:affine(2 * alpha - 1, 1 - alpha))
  return row_sums(weighted):affine(1 / x:shape()[2], 0)
end

function M.dice(x, y)
  local p = x:sigmoid()
  local numerator = row_sums(p:mul(y)):affine(2, 1)
  local denominator = row_sums(p):add(row_sums(y)):affine(1, 1)
  return numerator:div(denominator):affine(-1, 1)
end

-- 0 where both are empty, as in the reference: a 1 would reward answering nothing.
function M.iou_of(x, y)
  local shape = x:shape()
  local k = shape[2]
  local logits = x:values()
  local truth = y:values()
  local p = tensor.data(logits)
  local q = tensor.data(truth)
  local list = {}
  for i = 0, shape[1] - 1 do
    local intersection = 0
    local union = 0
    for j = i * k, i * k + k - 1 do
      local is_inside = p[j] > 0
      local is_true = q[j] > 0.5
      if is_inside and is_true then intersection = intersection + 1 end
      if is_inside or is_true then union = union + 1 end
    end
    list[i + 1] = intersection / math.max(union, 1)
  end
  return list
end

-- ---- which masks are trained ----
local function ids(list) return tensor.new(list, { dtype = "i32" }) end

-- Rows [n, s s] of low-resolution logits -> [n, h w].
local function resized(rows, size)
  local n = rows:shape()[1]
  if size.height ~= size.side or size.width ~= size.side then
    rows = rows:reshape(n, size.side, size.side, 1):resize(size.height, size.width, BILINEAR)
  end
  return rows:reshape(n, size.height * size.width)
end

-- A group is the masks of one prompt of which the best is trained: {prompt =, first =, last =},
-- counted from 0.
local function groups_of(size, modes, level)
  local list = {}
  for p = 0, size.prompts - 1 do
    local mode = modes and modes[p + 1] or "both"
    if not MODES[mode] then
      error(("mask_loss: the mode of prompt %d is %s, expected single, multi or both")
        :format(p + 1, tostring(mode)), level + 1)
    end
    if mode ~= "multi" or size.masks == 1 then
      list[#list + 1] = { prompt = p, first = 0, last = 0 }
    end
    if mode ~= "single" and size.masks > 1 then
      list[#list + 1] = { prompt = p, first = 1, last = size.masks - 1 }
    end
  end
  return list
end

-- Sets `best` of each group, the mask with the smallest loss, and `actual`, the IoU of each of its
-- masks. Records no gradients.
local function pick_best(rows, truth, list, weights, size)
  local mask_ids = {}
  local prompt_ids = {}
  for _, group in ipairs(list) do
    for k = group.first, group.last do
      mask_ids[#mask_ids + 1] = group.prompt * size.masks + k
      prompt_ids[#prompt_ids + 1] = group.prompt
    end
  end
  tensor.no_grad(tensor.step, function()
    local x = resized(rows:gather_rows(ids(mask_ids)), size)
    local y = truth:gather_rows(ids(prompt_ids))
    local actual = M.iou_of(x, y)
    local focal = M.focal(x, y):values()
    local dice = M.dice(x, y):values()
    local f = tensor.data(focal)
    local d = tensor.data(dice)
    local i = 0
    for _, group in ipairs(list) do
      local least = math.huge
      group.actual = {}
      group.best = group.first
      for k = group.first, group.last do
        local value = weights.mask * f[i] + weights.dice * d[i]
        group.actual[k] = actual[i + 1]
        if value < least then
          group.best = k
          least = value
        end
        i = i + 1
      end
    end
  end)
end

-- A list: 1 for each prompt with an object in its truth, else 0.
local function objects_present(truth, size)
  local host = truth:values()
  local data = tensor.data(host)
  local pixels = size.height * size.width
  local present = {}
  for p = 0, size.prompts - 1 do
    present[p + 1] = 0
    for j = p * pixels, (p + 1) * pixels - 1 do
      if data[j] > 0 then
        present[p + 1] = 1
        break
      end
    end
  end
  return present
end

-- What the terms are computed from:
--   picked, prompt, share   of each group: its best mask's row, its prompt, its part of the loss
--   actual, weight          of every mask: its actual IoU, its part of the loss of predicted IoUs
--   mean, score_error       means over the groups that have an object: IoU, and how far the
--                           predicted IoU is from it
local function selection(list, present, predicted, size)
  local s = { picked = {}, prompt = {}, share = {}, actual = {}, weight = {} }
  for i = 1, size.prompts * size.masks do
    s.actual[i] = 0
    s.weight[i] = 0
  end
  local host = predicted:values()
  local scores = tensor.data(host)
  local count = 0
  local actual = 0
  local score_error = 0
  for i, group in ipairs(list) do
    local first = group.prompt * size.masks
    local share = present[group.prompt + 1] / #list
    s.picked[i] = first + group.best
    s.prompt[i] = group.prompt
    s.share[i] = share
    for k = group.first, group.last do
      s.actual[first + k + 1] = group.actual[k]
      s.weight[first + k + 1] = share / (group.last - group.first + 1)
    end
    if share > 0 then
      local best = group.actual[group.best]
      count = count + 1
      actual = actual + best
      score_error = score_error + math.abs(scores[first + group.best] - best)
    end
  end
  s.mean = actual / math.max(count, 1)
  s.score_error = score_error / math.max(count, 1)
  return s
end

-- ---- the loss ----
local function as_f32(t)
  if t:dtype() == "f32" then return t end
  return t:cast(core.C.SZ_F32)
end

local function sizes(out, truth, level)
  local logits = out.logits:shape()
  local shape = truth:shape()
  if shape[1] ~= logits[1] then
    local message = "mask_loss: truth has %d masks, out has %d prompts"
    error(message:format(shape[1], logits[1]), level + 1)
  end
  return {
    prompts = logits[1], masks = logits[2], side = logits[3],
    height = shape[2], width = shape[3],
  }
end

-- The terms, each a tensor of one element with a gradient.
local function terms_of(out, rows, truth, s, present, size)
  local device = { device = out.logits:device() }
  local x = resized(rows:gather_rows(ids(s.picked)), size)
  local y = truth:gather_rows(ids(s.prompt))
  local shares = tensor.new(s.share, device):reshape(#s.share, 1)
  local terms = {
    mask = M.focal(x, y):mul(shares):sum(),
    dice = M.dice(x, y):mul(shares):sum(),
  }
  local off = as_f32(out.iou):reshape(size.prompts * size.masks):sub(tensor.new(s.actual, device))
  terms.iou = off:relu():add((-off):relu()):mul(tensor.new(s.weight, device)):sum()
  local object = as_f32(out.object):reshape(size.prompts)
  terms.object = cross_entropy(object, tensor.new(present, device)):mean()
  return terms
end

function M.sam2(out, truth, opts)
  opts = opts or {}
  local weights = opts.weights or M.WEIGHTS
  local size = sizes(out, truth, 2)
  local list = groups_of(size, opts.modes, 2)
  local rows = as_f32(out.logits):reshape(size.prompts * size.masks, size.side * size.side)
  local y = truth:to { device = out.logits:device() }
  y = y:reshape(size.prompts, size.height * size.width)

  -- Pick the mask of each group that is trained, and what it is compared with.
  pick_best(rows, y, list, weights, size)
  local present = objects_present(truth, size)
  local s = selection(list, present, out.iou, size)

  -- Add up the weighted terms.
  local terms = terms_of(out, rows, y, s, present, size)
  local parts = { actual = s.mean, score_error = s.score_error }
  local total
  for _, name in ipairs(TERMS) do
    parts[name] = terms[name]:item()
    local part = terms[name] * (weights[name] or 0)
    if total then total = total + part else total = part end
  end
  parts.total = total:item()
  return total, parts
end

return M
