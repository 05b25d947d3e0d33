-- predictor.lua - SAM2's predictor, as methods of a SAM2 model (init.lua): set an image, then
-- ask for masks any number of times.
--
--   sam:set_image(img)                                 embeds the image once
--   local r = sam:predict{box = {x0, y0, x1, y1}, points = {{x, y}, ..}, labels = {1, ..},
--                         multimask = true}
--       r.masks      u8 tensor [k, h, w] of 0 and 1
--       r.scores     {..}, the model's own estimate of IoU
--       r.low_res    f32 [k, 4g, 4g], logits within +-32
--   sam:predict{boxes = {{..}, ..}}                    one result for each box
--   sam:predict_all({{box =, points =}, ..}, {multimask =})     unlike prompts
--   mask_input = t [4g, 4g] in a prompt: the low_res of an earlier result
--   sam.best(r) -> the index of the highest score
--   sam:embed(img) -> features; sam:use(features) makes them current again; features:free()
--
-- Coordinates are pixels of the image given. Nothing is recorded for gradients.

local options = require "segzero.core.options"
local tensor = require "segzero.core.tensor"
local is_image = require("segzero.formats.image").is_image

local M = {}

local LOW_RES_LIMIT = 32            -- of the logits that predict() returns; masks are made before
local MAX_COORDINATE = 1e9

local methods = {}
M.methods = methods

-- ---- the image ----
local function free_features(f)
  for _, name in ipairs { "embedding", "high1", "high0" } do f[name]:free() end
end

function methods:embed(img)
  return tensor.no_grad(function()
    local pixels = self:pixels(img)
    local f = self:encode(pixels)
    pixels:free()
    f.width = img.width
    f.height = img.height
    f.free = free_features
    return f
  end)
end

function methods:use(features)
  if type(features) ~= "table" or not features.width then
    error("sam:use wants what sam:embed returned", 2)
  end
  self.features = features
end

function methods:set_image(img)
  if not is_image(img) then
    error("sam2: set_image wants an image (sz.image.load), got " .. type(img), 2)
  end
  if img.ptr == nil then error("sam2: set_image wants an image, got one that has been freed", 2) end
  if self.features then self.features:free() end
  self.features = nil
  self.features = self:embed(img)
end

-- ---- prompts ----
local function is_coordinate(v)
  return type(v) == "number" and v == v and math.abs(v) < MAX_COORDINATE
end

local function check_numbers(v, n, what, level)
  local good = type(v) == "table" and #v == n
  for i = 1, n do good = good and is_coordinate(v[i]) end
  if not good then error(("sam2: %s must be %d numbers"):format(what, n), level + 1) end
end

-- A box is four numbers: left, top, right, bottom.
local function check_box(box, what, level)
  check_numbers(box, 4, what, level + 1)
  if box[1] > box[3] or box[2] > box[4] then
    error(("sam2: %s is {%g, %g, %g, %g}, expected {left, top, right, bottom}"):format(what, box[1],
      box[2], box[3], box[4]), level + 1)
  end
end

-- Turns a box and points, in pixels of the image of features f, into a prompt for decode: the box's
-- corners, then the points (with label 1 if there are no labels), then the padding point that the
-- reference always adds to points. Numbers are not checked against the image.
function methods:prompt(f, box, points, labels)
  local kx = self.image_size / f.width
  local ky = self.image_size / f.height
  local list = {}
  local function add(x, y, label) list[#list + 1] = { x * kx, y * ky, label } end
  if box then
    add(box[1], box[2], 2)
    add(box[3], box[4], 3)
  end
  for i, p in ipairs(points or {}) do add(p[1], p[2], labels and labels[i] or 1) end
  if #list > 0 then add(0, 0, -1) end
  return { image = 1, points = list }
end

local function check_labels(labels, points, level)
  if #labels ~= #points then
    error(("sam2: %d labels for %d points"):format(#labels, #points), level + 1)
  end
  for i, label in ipairs(labels) do
    if label ~= 0 and label ~= 1 then
      error(("sam2: label %d is %s, expected 1 (on the object) or 0"):format(i, tostring(label)),
        level + 1)
    end
  end
end

local PROMPT = options.set { "box", "boxes", "points", "labels", "mask_input", "multimask" }
local ONE_OF_ALL = options.set { "box", "points", "labels", "mask_input" }

-- Checks a prompt and turns it into one for decode.
local function checked_prompt(sam, prompt, f, level)
  level = level + 1
  local points = prompt.points or {}
  local labels = prompt.labels
  local mask = prompt.mask_input
  if type(points) ~= "table" or labels ~= nil and type(labels) ~= "table" then
    error("sam2: points and labels are lists", level)
  end
  if mask ~= nil and not (tensor.is_tensor(mask) and mask:numel() == sam.mask_side ^ 2) then
    error(("sam2: mask_input must be a tensor [%d, %d]"):format(sam.mask_side, sam.mask_side),
      level)
  end
  if prompt.box == nil and #points == 0 and mask == nil then
    error("sam2: the prompt is empty, expected box, points or mask_input", level)
  end
  if prompt.box ~= nil then check_box(prompt.box, "box", level) end
  for i, p in ipairs(points) do check_numbers(p, 2, "point " .. i, level) end
  if labels then check_labels(labels, points, level) end
  local out = sam:prompt(f, prompt.box, points, labels)
  out.mask = prompt.mask_input
  return out
end

-- ---- which masks ----
-- Mask 0 if it hardly changes with a small change of the threshold, else the best-rated of the
-- others.
local function single(sam, logits, iou, masks)
  if not sam.selection.dynamic then return 0 end
  local delta = sam.selection.delta
  local inside = 0
  local all = 0
  for i = 0, sam.mask_side ^ 2 - 1 do
    if logits[i] > delta then inside = inside + 1 end
    if logits[i] > -delta then all = all + 1 end
  end
  if all == 0 or inside / all >= sam.selection.threshold then return 0 end
  local best = 1
  for k = 2, masks - 1 do
    if iou[k] > iou[best] then best = k end
  end
  return best
end

-- Which masks of one prompt are returned, counted from 0. logits: float * [masks, 4g, 4g]; iou:
-- float * [masks].
function methods:select(logits, iou, multimask)
  if not multimask then return { single(self, logits, iou, self.config.masks) } end
  local list = {}
  for k = 1, self.config.masks - 1 do list[k] = k end
  return list
end

-- The index of the best-rated mask of a result; the last of equal ones, as in Seg-Zero's sorting.
function M.best(result)
  local best = 1
  for i, v in ipairs(result.scores) do
    if v >= result.scores[best] then best = i end
  end
  return best
end
methods.best = M.best

-- ---- predicting ----
-- The result of prompt p out of the decoder's logits [P * masks, 4g, 4g] and iou [P, masks].
local function result_of(sam, f, p, logits, iou, multimask)
  local masks = sam.config.masks
  local side = sam.mask_side
  local first = (p - 1) * masks
  local rated = tensor.data(iou) + first
  local chosen = sam:select(tensor.data(logits) + first * side * side, rated, multimask)
  local r = { scores = {} }
  for i, k in ipairs(chosen) do r.scores[i] = rated[k] end

  -- Chosen masks follow one another, so they are one piece of the logits.
  local kept = logits:narrow(first + chosen[1], #chosen)
  local fine = sam:upsample(kept, f.height, f.width)
  local inside = tensor.empty({ #chosen, f.height, f.width }, { dtype = "u8" })
  local from = tensor.data(fine:values())
  local to = tensor.data(inside)
  for i = 0, fine:numel() - 1 do to[i] = from[i] > 0 and 1 or 0 end
  r.masks = inside:clone()
  r.low_res = kept:clamp(-LOW_RES_LIMIT, LOW_RES_LIMIT):clone()
  return r
end

local function predict(sam, prompts, multimask, level)
  local f = sam.features
  if not f then error("sam2: call set_image first", level + 1) end
  local given = {}
  for p, prompt in ipairs(prompts) do given[p] = checked_prompt(sam, prompt, f, level + 1) end
  if #given == 0 then return {} end
  local results = {}
  tensor.no_grad(tensor.step, function()
    local o = sam:decode(f, given)
    local side = sam.mask_side
    local logits = o.logits:values():reshape(#given * sam.config.masks, side, side)
    local iou = o.iou:values()
    for p = 1, #given do results[p] = result_of(sam, f, p, logits, iou, multimask) end
  end)
  return results
end

local ALL = options.set { "multimask" }

-- True unless it is given.
local function wants_several(multimask, level)
  if multimask == nil or type(multimask) == "boolean" then return multimask ~= false end
  error(("sam2: multimask is %s, expected true or false"):format(tostring(multimask)), level + 1)
end

function methods:predict_all(prompts, opts)
  opts = options.check("sam2", opts, ALL, 2)
  if type(prompts) ~= "table" then
    error("sam2: predict_all wants a list of prompts, got " .. type(prompts), 2)
  end
  for i, prompt in ipairs(prompts) do
    if type(prompt) ~= "table" then
      error(("sam2: prompt %d is a %s, not a table"):format(i, type(prompt)), 2)
    end
    options.check("sam2", prompt, ONE_OF_ALL, 2)
  end
  local results = predict(self, prompts, wants_several(opts.multimask, 2), 2)
  return results
end

-- One prompt for each of a prompt's boxes.
local function prompts_of_boxes(prompt, level)
  level = level + 1
  if type(prompt.boxes) ~= "table" then
    error("sam2: boxes is a " .. type(prompt.boxes) .. ", expected a list of boxes", level)
  end
  for _, other in ipairs { "box", "points", "labels", "mask_input" } do
    if prompt[other] ~= nil then
      error(("sam2: boxes and %s cannot be given together"):format(other), level)
    end
  end
  local list = {}
  for i, box in ipairs(prompt.boxes) do
    check_box(box, "box " .. i, level)
    list[i] = { box = box }
  end
  return list
end

function methods:predict(prompt)
  if type(prompt) ~= "table" then
    error("sam2: a prompt is a table {box =, points =, labels =}, got " .. type(prompt), 2)
  end
  options.check("sam2", prompt, PROMPT, 2)
  local list = { prompt }
  if prompt.boxes ~= nil then
    list = prompts_of_boxes(prompt, 2)
  end
  local results = predict(self, list, wants_several(prompt.multimask, 2), 2)
  if prompt.boxes then return results end
  return results[1]
end

return M
