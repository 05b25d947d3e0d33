-- init.lua - RefShapes: generated images of coloured shapes, with sentences that each describe
-- exactly one of them.
--
-- A sample depends only on (seed, split, index, size, level, background, ...): not on files, on
-- earlier calls or on the machine. The same (seed, split, index, level) shows the same scene at
-- every size. "train" and "heldout" never share a scene (see refshapes/scene.lua).
--
--   local refshapes = require "segzero.data.refshapes"
--   local s = refshapes.sample { seed = 42, index = 0, split = "train", size = 168 }
--   s.width, s.height, s.rgb            uint8_t [h][w][3], owned by s
--   s.objects[i]                        { kind=, colour=, size="small"|"large", bbox=, cx=, cy=
--                                       (units of 1/840), ... }
--   s.questions[k]                      { problem=, target=, bbox=, points={p1,p2}, solution=,
--                                       think=, answer=, mask= }
--   local m = s.questions[1].mask()     uint8_t [h][w] of 0 and 1, a new one at each call
--
-- Boxes are {left, top, right, bottom} in pixels, with inclusive maxima. Points are {x, y}, the
-- centres of the two largest inscribed circles (see refshapes/distance.lua). `solution` is
-- Seg-Zero's ground-truth string, `answer` the JSON that a model should write.
--
-- With several = {empty = share} the one question is about any number of objects
-- (refshapes/several.lua): {problem=, targets=, solution=, answer=, think=, mask=}, with
-- VisionReasoner's list as the solution and the union as the mask.
--
-- Leaves out: writing images (the caller of write_dataset passes a function for it).

local ffi = require "ffi"
local files = require "segzero.core.files"
local notes = require "segzero.core.notes"
local options = require "segzero.core.options"
local rng = require "segzero.data.refshapes.rng"
local scene = require "segzero.data.refshapes.scene"
local raster = require "segzero.data.refshapes.raster"
local distance = require "segzero.data.refshapes.distance"
local several = require "segzero.data.refshapes.several"
local sentence = require "segzero.data.refshapes.sentence"

local M = {}

local format = string.format

M.kinds = scene.kinds
M.colours = scene.colours
M.splits = { "train", "heldout" }

local Sample = {}
Sample.__index = Sample
Sample.__tostring = function(s)
  return format("refshapes sample: %s seed %d index %d, %dx%d, %d objects, %d questions", s.split,
    s.seed, s.index,
    s.width, s.height, #s.objects, #s.questions)
end

local function integer(opts, name, default, lo, hi, level)
  local v = opts[name]
  if v == nil then v = default end
  if type(v) ~= "number" or v ~= math.floor(v) or v < lo or v > hi then
    error(format("refshapes: %s must be an integer from %.0f to %.0f, got %s", name, lo, hi,
      tostring(v)), level)
  end
  return v
end

local BIG = 2 ^ 53

local OPTIONS = options.set {
  "seed", "index", "size", "level", "questions", "split", "background", "several",
}

local function read_options(opts)
  options.check("refshapes.sample", opts, OPTIONS, 3)
  local o = {
    seed = integer(opts, "seed", 0, -BIG, BIG, 4),
    index = integer(opts, "index", 0, -BIG, BIG, 4),
    size = integer(opts, "size", 168, 84, 840, 4),
    level = integer(opts, "level", 3, 1, 3, 4),
    questions = integer(opts, "questions", 4, 0, 64, 4),
    split = opts.split or "train",
    background = opts.background or "gradient",
    several = opts.several,
  }
  if o.size % 28 ~= 0 then error("refshapes: size must be a multiple of 28, got " .. o.size, 3) end
  if o.split ~= "train" and o.split ~= "heldout" then
    error(format("refshapes: split must be \"train\" or \"heldout\", got %q", tostring(o.split)), 3)
  end
  if o.background ~= "gradient" and o.background ~= "plain" then
    error(format("refshapes: background must be \"gradient\" or \"plain\", got %q",
      tostring(o.background)), 3)
  end
  return o
end

local function solution(b, p, q)
  return format("<box>(%d,%d),(%d,%d)</box><points>(%d,%d),(%d,%d)</points>", b[1], b[2], b[3],
    b[4], p[1], p[2],
    q[1], q[2])
end

local function answer(b, p, q)
  return format('{"bbox": [%d,%d,%d,%d], "points_1": [%d,%d], "points_2": [%d,%d]}', b[1], b[2],
    b[3], b[4], p[1],
    p[2], q[1], q[2])
end
M.solution = solution
M.answer = answer

-- Draws the background and the objects, and adds runs and bbox to each object.
local function paint(rgb, objects, size, r, style)
  local noise = raster.background(rgb, size, size, r, style)
  if style == "plain" then noise = nil end
  for i = 1, #objects do
    local o = objects[i]
    local c = scene.rgb[o.colour]
    local lum = r:int(-8, 8) -- mostly light, little hue: white stays white
    local jitter = { c[1] + lum + r:int(-3, 3), c[2] + lum + r:int(-3, 3),
      c[3] + lum + r:int(-3, 3) }
    o.runs, o.bbox = raster.runs(o, size)
    noise = raster.draw(rgb, size, o, jitter, noise)
  end
end

local function find_points(o)
  if o.points then return end
  local p1, p2 = distance.two_circles(o.bbox, o.runs)
  o.points = { p1, p2 }
end

-- The union of the objects' masks.
local function union_mask(objects, targets, size, value)
  local union = ffi.new("uint8_t[?]", size * size)
  for _, k in ipairs(targets) do
    local mask = raster.mask(objects[k].runs, objects[k].bbox, size, size, value)
    for i = 0, size * size - 1 do
      if mask[i] ~= 0 then union[i] = value end
    end
  end
  return union
end

local function complete_several(q, objects, size)
  for _, k in ipairs(q.targets) do find_points(objects[k]) end
  local list = several.solution(objects, q.targets)
  return {
    problem = q.text, think = q.think, targets = q.targets, solution = list, answer = list,
    mask = function(value) return union_mask(objects, q.targets, size, value or 1) end,
  }
end

local function complete(q, objects, size)
  local o = objects[q.target]
  find_points(o)
  local b = o.bbox
  local p = o.points
  return {
    problem = q.text,
    think = q.think,
    expr = q.expr,
    target = q.target,
    bbox = b,
    points = p,
    solution = solution(b, p[1], p[2]),
    answer = answer(b, p[1], p[2]),
    mask = function(value) return raster.mask(o.runs, b, size, size, value or 1) end,
  }
end

-- The largest size of a sample up to `side`.
function M.nearest_size(side)
  return math.max(84, math.min(840, math.floor(side / 28) * 28))
end

-- opts: seed, index, split, size (a multiple of 28 from 84 to 840), level (1: one large object; 2:
-- two or three that differ in attributes; 3: everything), questions (the maximum number),
-- background ("gradient" or "plain"), several ({empty = share of the questions without a target}).
function M.sample(opts)
  local o = read_options(opts or {})
  local size = o.size
  local r = rng.new(o.seed, o.split, o.index)
  local objects = scene.draw(r, o.split, o.level)
  local rgb = ffi.new("uint8_t[?]", size * size * 3)
  paint(rgb, objects, size, r, o.background)
  local s = {
    seed = o.seed, index = o.index, split = o.split, level = o.level,
    width = size, height = size, rgb = rgb, objects = objects, questions = {},
  }
  setmetatable(s, Sample)
  if o.several then
    local q = several.compose(objects, r, { level = o.level, empty = o.several.empty })
    s.questions[1] = complete_several(q, objects, size)
    return s
  end
  local asked = sentence.compose(objects, o.questions, o.level, r)
  for k = 1, #asked do s.questions[k] = complete(asked[k], objects, size) end
  return s
end

-- Writes a data set in Seg-Zero's columns and returns its number of rows.
--   dir/data.jsonl       one row for each question: id, problem, solution, image and mask (paths
--                        relative to dir), img_height, img_width
--   dir/images/*.png     3 channels
--   dir/masks/<id>.png   1 channel, 0 and 255
-- opts: n images (default 16), first (index of the first, 0), seed, split, size, level, questions
-- (default 1), background. save_png(path, w, h, channels, pixels) writes one image and raises an
-- error if it cannot. A data set that is in the folder is replaced, with a note.
function M.write_dataset(dir, opts, save_png)
  if type(save_png) ~= "function" then
    error("refshapes: write_dataset needs a save_png function", 2)
  end
  local json = require "cjson"
  local n = integer(opts, "n", 16, 0, BIG, 3)
  local first = integer(opts, "first", 0, -BIG, BIG, 3)
  if files.exists(dir .. "/data.jsonl") then
    notes.say(dir .. "/data.jsonl is there already; its rows are replaced")
  end
  files.make_dir(dir .. "/images")
  files.make_dir(dir .. "/masks")
  local out = require("segzero.core.lines").create(dir .. "/data.jsonl")
  local rows = 0
  for i = first, first + n - 1 do
    local s = M.sample {
      seed = opts.seed, index = i, split = opts.split, size = opts.size, level = opts.level,
      questions = opts.questions or 1, background = opts.background,
    }
    local name = format("%s_%d_%06d", s.split, s.seed, i)
    local image = "images/" .. name .. ".png"
    save_png(dir .. "/" .. image, s.width, s.height, 3, s.rgb)
    for k, q in ipairs(s.questions) do
      local id = format("%s_%d", name, k)
      local mask = format("masks/%s.png", id)
      save_png(dir .. "/" .. mask, s.width, s.height, 1, q.mask(255))
      -- The keys are written one by one, so that their order is fixed.
      out:write(
        format(
        '{"id": %s, "problem": %s, "solution": %s, "image": %s, "mask": %s, '
        .. '"img_height": %d, "img_width": %d}\n',
        json.encode(id), json.encode(q.problem), json.encode(q.solution), json.encode(image),
          json.encode(mask), s.height, s.width))
      rows = rows + 1
    end
  end
  out:close()
  return rows
end

return M
