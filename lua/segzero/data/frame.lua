-- frame.lua - frames, and the conversion of boxes, points and answers between them. A frame is the
-- coordinate system {width =, height =} that a box or point belongs to. No other file does this
-- arithmetic.
--
--   frame.of(v)                      a side, a frame or an image -> frame; nil for anything else
--   frame.square(side)               a frame of side x side
--   frame.side(f)                    its side, or nil if it is not square
--   frame.equal(a, b)
--   frame.text(f)                    "644x476", width first
--   frame.box(box, from, to)         {x0, y0, x1, y1}; frame.point(point, from, to): {x, y}
--   frame.objects(list, from, to)    {{bbox =, points = {...}}, ...}
--   frame.answer(found, from, to)    what formats/answer.lua parsed, of one object or of several
--   frame.settings(t, prefix)        the texts of t.solution_frame, t.answer_frame and t.resize ->
--                                    {solution = a spec, answer = a spec, resize = frame or nil}
--   frame.solution(spec, image)      the frame of a solution; image: its stored size
--   frame.answers(spec, image, seen) the frame of answers; seen: the size that the model sees
--   frame.sentence(frames, example)  what a run says at its start; example = {stored =, seen =}
--
-- A spec is "auto", "image", "model" or a frame. "auto" is the image's own pixels for solutions and
-- the size that the model sees for answers, unless its family states another frame
-- (models/registry.lua).
-- True boxes and points become whole numbers, floor(v + 0.5), as in Seg-Zero's data; a box that had
-- a width and a height keeps one pixel of each. Answers are rounded as Seg-Zero's scripts do it
-- (formats/answer.lua). Between equal frames nothing changes.
-- Leaves out: where a row's frames come from (coordinates.lua).

local answer = require "segzero.formats.answer"

local M = {}

local floor = math.floor

-- ---- frames ----
local MOST = 2 ^ 26             -- pixels of a side

local function is_side(v) return type(v) == "number" and v > 0 and v < math.huge end

function M.square(side) return { width = side, height = side } end

-- Side of the square that Seg-Zero's prompts, answers and thresholds count in.
M.SEG_ZERO_SIDE = 840
M.SEG_ZERO = M.square(M.SEG_ZERO_SIDE)

function M.of(v)
  if is_side(v) then return M.square(v) end
  local kind = type(v)
  if kind ~= "table" and kind ~= "cdata" then return nil end
  local width = tonumber(v.width)
  local height = tonumber(v.height)
  if is_side(width) and is_side(height) then return { width = width, height = height } end
end

function M.side(f)
  if f.width == f.height then return f.width end
end

function M.equal(a, b) return a.width == b.width and a.height == b.height end

function M.text(f) return ("%gx%g"):format(f.width, f.height) end

-- The side of the square that images of a model are resized to; json: its config.json.
function M.side_of_model(json) return tonumber(json.segzero_frame) or M.SEG_ZERO_SIDE end

-- ---- converting ----
local function round(v) return floor(v + 0.5) end

local function factors(from, to) return to.width / from.width, to.height / from.height end

function M.point(point, from, to)
  if M.equal(from, to) then return point end
  local fx, fy = factors(from, to)
  return { round(point[1] * fx), round(point[2] * fy) }
end

-- A box's two corners on one axis. They stay apart, because a box without a width or a height
-- overlaps nothing.
local function interval(low, high, factor)
  local a = round(low * factor)
  local b = round(high * factor)
  if low < high and a == b then b = a + 1 end
  return a, b
end

function M.box(box, from, to)
  if M.equal(from, to) then return box end
  local fx, fy = factors(from, to)
  local x0, x1 = interval(box[1], box[3], fx)
  local y0, y1 = interval(box[2], box[4], fy)
  return { x0, y0, x1, y1 }
end

function M.objects(list, from, to)
  local out = {}
  for i, object in ipairs(list) do
    local points = {}
    for k, point in ipairs(object.points) do points[k] = M.point(point, from, to) end
    out[i] = { bbox = M.box(object.bbox, from, to), points = points }
  end
  return out
end

function M.answer(found, from, to)
  local fx, fy = factors(from, to)
  if found.bbox then return answer.scale(found, fx, fy) end
  return answer.scale_list(found, fx, fy)
end

-- The same coordinates as numbers of another frame, not rounded: for comparing distances.
function M.stretched(values, from, to)
  local fx, fy = factors(from, to)
  local out = {}
  for i = 1, #values, 2 do
    out[i] = values[i] * fx
    out[i + 1] = values[i + 1] * fy
  end
  return out
end

-- ---- settings ----
-- "640x480" or "1000" -> a frame, or nil.
local function parse(text)
  local width, height = text:match "^(%d+)[xX](%d+)$"
  if not width then
    width = text:match "^%d+$"
    height = width
  end
  local f = M.of { width = tonumber(width), height = tonumber(height) }
  if f and f.width <= MOST and f.height <= MOST then return f end
end

local SOLUTION_WORDS = { auto = "auto", image = "image" }
local ANSWER_WORDS = { auto = "auto", image = "image", model = "model" }

local function spec_of(key, value, words, expected)
  if value == nil then return "auto" end
  local spec = words[value] or parse(tostring(value))
  if spec then return spec end
  error(("%s is '%s', expected %s or a size such as 840x840 or 1000"):format(key, tostring(value),
    expected), 0)
end

local function resize_of(key, value)
  if value == nil or value == "none" then return nil end
  local size = parse(tostring(value))
  if size then return size end
  error(("%s is '%s', expected none or a size such as 840x840"):format(key, tostring(value)), 0)
end

function M.settings(t, prefix)
  prefix = prefix or ""
  return {
    solution = spec_of(prefix .. "solution_frame", t.solution_frame, SOLUTION_WORDS,
      "auto, image"),
    answer = spec_of(prefix .. "answer_frame", t.answer_frame, ANSWER_WORDS,
      "auto, model, image"),
    resize = resize_of(prefix .. "resize", t.resize),
  }
end

function M.solution(spec, image)
  if type(spec) == "table" then return spec end
  return M.of(image)
end

function M.answers(spec, image, seen)
  if type(spec) == "table" then return spec end
  if spec == "image" then return M.of(image) end
  return M.of(seen)
end

-- ---- what a run says ----
local function spec_text(spec, example)
  if type(spec) == "table" then return M.text(spec) end
  if spec == "image" then return "the image's pixels" end
  if not example then return "the size the model sees" end
  return ("the size the model sees (e.g. %s for an image of %s)"):format(M.text(example.seen),
    M.text(example.stored))
end

function M.sentence(frames, example)
  local solution = frames.solution
  if solution == "auto" then solution = "image" end
  local resized = ""
  if frames.resize then resized = ("images resized to %s, "):format(M.text(frames.resize)) end
  local text = ("coordinates: %ssolutions in %s, answers in %s"):format(resized,
    spec_text(solution), spec_text(frames.answer, example))
  if not example then return text end
  local from = M.solution(solution, example.stored)
  local to = M.answers(frames.answer, example.stored, example.seen)
  if M.equal(from, to) then return text end
  return text .. "; boxes and points are converted from one frame to the other"
end

return M
