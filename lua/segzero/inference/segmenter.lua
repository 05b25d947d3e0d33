-- segment.lua - answers (boxes and points) to masks with SAM2, the way Seg-Zero and VisionReasoner ask it, and how masks compare.
--
--   local seg = segment.new(sam)                    sam = sz.sam2(...), borrowed
--   local f = seg:embed(img)                        features of a picture: f.width, f.height, f:free()
--   local list = seg:masks(f, {answer, ...})        answers about that picture -> {{mask = u8 tensor [h, w] of 0 and 1, score = number}, ...}
--   local inside, either = segment.compare(mask, truth)     pixels of the intersection and of the union of two u8 tensors [h, w]
--
-- An answer, in the picture's own pixels (answer.scale, answer.scale_list):
--   {bbox = {x0, y0, x1, y1}, points = {{x, y}, {x, y}}}    one object: a single prompt of the box and all points
--   {{bbox =, point = {x, y}}, ...}                         several: a prompt for each, their masks united; {} is an empty mask
-- Of each prompt's three masks the best-rated counts (of equals the last). The score of several objects is the mean, of none 0.
-- Boxes and points go to SAM2 as they are, also outside the picture or with corners in the wrong order: it computes on any
-- number. Coordinates too large for f32 give NaN, which is in no mask, as in the reference.
--
-- The caller frees masks and features; nothing is recorded for gradients. Leaves out: training SAM2, negative points.

local bit = require "bit"
local core = require "segzero.core.ffi"
local tensor = require "segzero.core.tensor"

local C = core.C
local min, band, bor = math.min, bit.band, bit.bor

local M = {}
local methods = {}
local mt = { __index = methods }

-- Prompts of one decoder call: at the released size each needs some 40 MB, and a list may have any length.
local AT_ONCE = 16

function M.new(sam)
  if type(sam) ~= "table" or not sam.decode then error("segment.new: a SAM2 model is expected, got " .. type(sam), 2) end
  return setmetatable({ sam = sam }, mt)
end

function methods:embed(img) return self.sam:embed(img) end

local function numbers(v, n, name, level)
  local good = type(v) == "table"
  for i = 1, n do good = good and type(v[i]) == "number" end
  if not good then error(("segment: %s must be %d numbers"):format(name, n), level + 1) end
end

local function prompt_of(sam, f, box, points, name, level)
  numbers(box, 4, name .. ".bbox", level + 1)
  for i, p in ipairs(points) do numbers(p, 2, ("%s's point %d"):format(name, i), level + 1) end
  return sam:prompt(f, box, points)
end

-- Appends the answer's prompts and returns how many.
local function add_prompts(prompts, sam, f, answer, name, level)
  if type(answer) ~= "table" then error(("segment: %s is a %s, not a table"):format(name, type(answer)), level + 1) end
  if answer.bbox then
    prompts[#prompts + 1] = prompt_of(sam, f, answer.bbox, answer.points or {}, name, level + 1)
    return 1
  end
  for i, object in ipairs(answer) do
    prompts[#prompts + 1] = prompt_of(sam, f, object.bbox, { object.point }, ("%s[%d]"):format(name, i), level + 1)
  end
  return #answer
end

-- to |= logits > 0
local function unite(to, logits, n)
  for i = 0, n - 1 do
    if logits[i] > 0 then to[i] = 1 end
  end
end

-- Prompts first .. last: calls take(k, score, fine) with each one's best mask, fine an f32 tensor [1, h, w] that lives no longer.
local function best_masks(sam, f, prompts, first, last, take)
  local part = {}
  for k = first, last do part[#part + 1] = prompts[k] end
  tensor.no_grad(tensor.step, function()
    local o = sam:decode(f, part)
    local logits, iou = o.logits, o.iou:values()
    if logits:dtype() ~= "f32" then logits = logits:cast(C.SZ_F32) end
    local masks, side = sam.config.masks, sam.mask_side
    local flat, rated = logits:reshape(#part * masks, side, side), tensor.data(iou)
    for p = 1, #part do
      local scores = {}
      for m = 1, masks - 1 do scores[m] = rated[(p - 1) * masks + m] end        -- mask 0 is for calls that want one only
      local best = sam.best { scores = scores }
      tensor.step(function()
        take(first + p - 1, scores[best], sam:upsample(flat:narrow((p - 1) * masks + best, 1), f.height, f.width):values())
      end)
    end
  end)
end

function methods:masks(f, answers)
  if type(f) ~= "table" or not f.width then error("segment: masks wants what embed returned", 2) end
  local sam, prompts, owner, list = self.sam, {}, {}, {}
  for i, answer in ipairs(answers) do
    local n = add_prompts(prompts, sam, f, answer, "answer " .. i, 2)
    for k = #prompts - n + 1, #prompts do owner[k] = i end
    list[i] = { score = 0, objects = n }
  end
  tensor.step(function()
    local empty = tensor.zeros({ f.height, f.width }, { dtype = "u8" })
    for _, r in ipairs(list) do r.mask = empty:clone() end      -- outlives the caller's step, too
  end)
  for first = 1, #prompts, AT_ONCE do
    best_masks(sam, f, prompts, first, min(first + AT_ONCE - 1, #prompts), function(k, score, fine)
      local r = list[owner[k]]
      unite(tensor.data(r.mask), tensor.data(fine), f.width * f.height)
      r.score = r.score + score / r.objects
    end)
  end
  return list
end

-- Anything but 0 is inside.
local function count(a, b, n)
  local inside, either = 0, 0
  for i = 0, n - 1 do
    local x, y = min(a[i], 1), min(b[i], 1)
    inside, either = inside + band(x, y), either + bor(x, y)
  end
  return inside, either
end

function M.compare(mask, truth)
  local names, shapes = { "mask", "truth" }, {}
  for i, t in ipairs { mask, truth } do
    if not tensor.is_tensor(t) or t:dtype() ~= "u8" or #t:shape() ~= 2 then
      error(("segment.compare: %s must be a u8 tensor [h, w]"):format(names[i]), 2)
    end
    shapes[i] = t:shape()
  end
  local a, b = shapes[1], shapes[2]
  if a[1] ~= b[1] or a[2] ~= b[2] then
    error(("segment.compare: mask is %d x %d and truth %d x %d (height x width)"):format(a[1], a[2], b[1], b[2]), 2)
  end
  return count(tensor.data(mask), tensor.data(truth), mask:numel())
end

return M
