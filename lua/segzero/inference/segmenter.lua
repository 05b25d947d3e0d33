-- segmenter.lua - turns answers (boxes and points) into masks with SAM2, prompted as Seg-Zero and
-- VisionReasoner do it, and compares masks.
--
--   local seg = segmenter.new(sam)                  sam = sz.sam2(...), borrowed
--   local f = seg:embed(img)                    features of an image: f.width, f.height, f:free()
--   local list = seg:masks(f, {answer, ...})    answers about that image
--       -> {{mask = u8 tensor [h, w] of 0 and 1, score = number}, ...}
--   local inside, either = segmenter.compare(mask, truth, ignored)
--                                               pixels of the intersection and of the union of two
--                                               u8 tensors [h, w]; ignored, optional: a third one,
--                                               whose pixels are in neither
--
-- An answer, in the image's own pixels (answer.scale, answer.scale_list):
--   {bbox = {x0, y0, x1, y1}, points = {{x, y}, ...}}
--       one object: a single prompt of the box and the points
--   {{bbox =, point = {x, y}}, ...}
--       several: a prompt for each, their masks united; {} is an empty mask
-- The best-rated of each prompt's three masks is used (the last of equal ones). The score of
-- several objects is their mean, and 0 without objects. Boxes and points go to SAM2 unchanged, even
-- outside the image or with swapped corners. Coordinates too large for f32 become NaN, which is in
-- no mask, as in the reference.
--
-- The caller frees masks and features; nothing is recorded for gradients. Leaves out: training
-- SAM2, negative points.

local bit = require "bit"
local core = require "segzero.core.ffi"
local tensor = require "segzero.core.tensor"

local C = core.C

local M = {}
local methods = {}
local mt = { __index = methods }

-- Prompts of one decoder call. At the released size each needs about 40 MB, and a list may be long.
local MOST_PROMPTS = 16

function M.new(sam)
  if type(sam) ~= "table" or not sam.decode then
    error("segment.new: a SAM2 model is expected, got " .. type(sam), 2)
  end
  return setmetatable({ sam = sam }, mt)
end

function methods:embed(img) return self.sam:embed(img) end

-- ---- prompts ----
local function check_numbers(v, n, name, level)
  local good = type(v) == "table"
  for i = 1, n do good = good and type(v[i]) == "number" end
  if not good then error(("segment: %s must be %d numbers"):format(name, n), level + 1) end
end

local function prompt_of(sam, f, box, points, name, level)
  check_numbers(box, 4, name .. ".bbox", level + 1)
  for i, p in ipairs(points) do
    check_numbers(p, 2, ("%s's point %d"):format(name, i), level + 1)
  end
  return sam:prompt(f, box, points)
end

-- The prompts of an answer.
local function prompts_of(sam, f, answer, name, level)
  level = level + 1
  if type(answer) ~= "table" then
    error(("segment: %s is a %s, not a table"):format(name, type(answer)), level)
  end
  if answer.bbox then
    return { prompt_of(sam, f, answer.bbox, answer.points or {}, name, level) }
  end
  local prompts = {}
  for i, object in ipairs(answer) do
    local object_name = ("%s[%d]"):format(name, i)
    prompts[i] = prompt_of(sam, f, object.bbox, { object.point }, object_name, level)
  end
  return prompts
end

-- ---- masks ----
-- mask |= logits > 0
local function unite(mask, logits, n)
  for i = 0, n - 1 do
    if logits[i] > 0 then mask[i] = 1 end
  end
end

-- The best-rated mask of prompt p (from 1) of a decoder's result: its number and score. Mask 0 is
-- for calls that want a single mask.
local function best_mask(sam, iou, p)
  local scores = {}
  for m = 1, sam.config.masks - 1 do scores[m] = iou[(p - 1) * sam.config.masks + m] end
  local best = sam.best { scores = scores }
  return best, scores[best]
end

-- Prompts first .. last: calls take(k, score, fine) with each one's best mask; fine is an f32
-- tensor [1, h, w] that lives until take returns.
local function best_masks(sam, f, prompts, first, last, take)
  local part = { unpack(prompts, first, last) }
  tensor.no_grad(tensor.step, function()
    local o = sam:decode(f, part)
    local logits = o.logits
    local iou = o.iou:values()
    if logits:dtype() ~= "f32" then logits = logits:cast(C.SZ_F32) end
    local masks = sam.config.masks
    local side = sam.mask_side
    local flat = logits:reshape(#part * masks, side, side)
    for p = 1, #part do
      local best, score = best_mask(sam, tensor.data(iou), p)
      tensor.step(function()
        local chosen = flat:narrow((p - 1) * masks + best, 1)
        take(first + p - 1, score, sam:upsample(chosen, f.height, f.width):values())
      end)
    end
  end)
end

-- n results with empty masks. They outlive the caller's step.
local function empty_results(f, n)
  local list = {}
  tensor.step(function()
    local empty = tensor.zeros({ f.height, f.width }, { dtype = "u8" })
    for i = 1, n do list[i] = { score = 0, objects = 0, mask = empty:clone() } end
  end)
  return list
end

function methods:masks(f, answers)
  if type(f) ~= "table" or not f.width then error("segment: masks wants what embed returned", 2) end
  local prompts = {}
  local owner = {}
  local objects = {}
  for i, answer in ipairs(answers) do
    local own = prompts_of(self.sam, f, answer, "answer " .. i, 2)
    objects[i] = #own
    for _, prompt in ipairs(own) do
      prompts[#prompts + 1] = prompt
      owner[#prompts] = i
    end
  end
  local list = empty_results(f, #answers)
  for i, r in ipairs(list) do r.objects = objects[i] end
  local function take(k, score, fine)
    local r = list[owner[k]]
    unite(tensor.data(r.mask), tensor.data(fine), f.width * f.height)
    r.score = r.score + score / r.objects
  end
  for first = 1, #prompts, MOST_PROMPTS do
    best_masks(self.sam, f, prompts, first, math.min(first + MOST_PROMPTS - 1, #prompts), take)
  end
  return list
end

-- ---- comparing ----
-- Pixels other than 0 are inside a mask.
local function count(a, b, n)
  local inside = 0
  local either = 0
  for i = 0, n - 1 do
    local x = math.min(a[i], 1)
    local y = math.min(b[i], 1)
    inside = inside + bit.band(x, y)
    either = either + bit.bor(x, y)
  end
  return inside, either
end

-- The same without the pixels of c.
local function count_outside(a, b, c, n)
  local inside = 0
  local either = 0
  for i = 0, n - 1 do
    if c[i] == 0 then
      local x = math.min(a[i], 1)
      local y = math.min(b[i], 1)
      inside = inside + bit.band(x, y)
      either = either + bit.bor(x, y)
    end
  end
  return inside, either
end

function M.compare(mask, truth, ignored)
  local names = { "mask", "truth", "ignored" }
  local list = { mask, truth }
  if ignored ~= nil then list[3] = ignored end
  local shapes = {}
  for i = 1, math.max(2, #list) do
    local t = list[i]
    if not tensor.is_tensor(t) or t:dtype() ~= "u8" or #t:shape() ~= 2 then
      error(("segment.compare: %s must be a u8 tensor [h, w]"):format(names[i]), 2)
    end
    shapes[i] = t:shape()
  end
  local a = shapes[1]
  for i = 2, #shapes do
    local b = shapes[i]
    if a[1] ~= b[1] or a[2] ~= b[2] then
      error(("segment.compare: mask is %d x %d and %s %d x %d (height x width)"):format(a[1], a[2],
        names[i], b[1], b[2]), 2)
    end
  end
  if ignored then
    return count_outside(tensor.data(mask), tensor.data(truth), tensor.data(ignored),
      mask:numel())
  end
  return count(tensor.data(mask), tensor.data(truth), mask:numel())
end

return M
