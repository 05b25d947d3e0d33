-- probes.lua - answers of known quality to a row, to try a reward on: a perfect one, boxes that are
-- off, wrong formats, no answer at all.
--
--   probes.of(row) -> {{kind = "perfect", text =}, ...}    row: of a data set, which no model saw
--   probes.kinds() -> {"perfect", ...}                     in the order of the list
--
-- The kinds of one object, and of several where the solution is a list. Coordinates are in the
-- frame of row.solution. A solution without boxes stands for the box around the true mask. Without
-- a mask, as in a counting task, there are only the answers that need no box; the perfect one is
-- then the solution itself between the tags.
-- Leaves out: judging (judging.lua).

local frame = require "segzero.data.frame"
local prompt = require "segzero.data.prompt"
local truth = require "segzero.data.truth"

local M = {}

local floor = math.floor

local THOUGHT = "I compare the objects and take the one that the sentence describes."

-- ---- marks ----
local function whole(values)
  local out = {}
  for i, v in ipairs(values) do out[i] = floor(v + 0.5) end
  return out
end

local function shifted(object, dx, dy)
  local points = {}
  for i, p in ipairs(object.points) do points[i] = { p[1] + dx, p[2] + dy } end
  local b = object.bbox
  return { bbox = { b[1] + dx, b[2] + dy, b[3] + dx, b[4] + dy }, points = points }
end

-- Moves by a share of the box's width.
local function moved(object, share)
  return shifted(object, share * (object.bbox[3] - object.bbox[1]), 0)
end

-- The mirror image on the other side of the image, which is far from objects that are off centre.
local function mirrored(object, size)
  local b = object.bbox
  local dx = size.width - b[1] - b[3]
  local dy = size.height - b[2] - b[4]
  if math.abs(dx) + math.abs(dy) < (b[3] - b[1] + b[4] - b[2]) / 2 then dx = b[3] - b[1] + 1 end
  return shifted(object, dx, dy)
end

local function everything(object, size)
  return { bbox = { 0, 0, size.width - 1, size.height - 1 }, points = object.points }
end

-- An object with two points inside its box.
local function with_points(object)
  local b = object.bbox
  local points = {}
  for i = 1, 2 do
    local share = i / 3
    points[i] = object.points[i]
      or { b[1] + share * (b[3] - b[1]), b[2] + share * (b[4] - b[2]) }
  end
  return { bbox = b, points = points }
end

-- ---- texts ----
local function numbers(values) return "[" .. table.concat(whole(values), ", ") .. "]" end

local function one_json(object, box_key, point_key)
  return ('{"%s": %s, "%s1": %s, "%s2": %s}'):format(box_key or "bbox", numbers(object.bbox),
    point_key or "points_", numbers(object.points[1]), point_key or "points_",
    numbers(object.points[2]))
end

local function list_json(objects)
  local texts = {}
  for i, object in ipairs(objects) do
    texts[i] = ('{"bbox_2d": %s, "point_2d": %s}'):format(numbers(object.bbox),
      numbers(object.points[1]))
  end
  return "[" .. table.concat(texts, ", ") .. "]"
end

local function all(objects, change, ...)
  local out = {}
  for i, object in ipairs(objects) do out[i] = change(object, ...) end
  return out
end

-- ---- kinds ----
-- Each: {kind, f(context) -> text or nil}. context: {json = f(objects) -> text, objects =, size =,
-- perfect = text, several =}.
local function answered(context, objects) return prompt.response(THOUGHT, context.json(objects)) end

local WITH_BOXES = {
  { "box off by 5 %", function(c) return answered(c, all(c.objects, moved, 0.05)) end },
  { "box off by half", function(c) return answered(c, all(c.objects, moved, 0.5)) end },
  { "wrong place", function(c) return answered(c, all(c.objects, mirrored, c.size)) end },
  { "whole image", function(c) return answered(c, all(c.objects, everything, c.size)) end },
  { "no tags", function(c) return c.json(c.objects) end },
  { "other keys", function(c)
    if c.several then return prompt.response(THOUGHT, (c.json(c.objects):gsub("_2d", ""))) end
    return prompt.response(THOUGHT, one_json(c.objects[1], "bbox_2d", "point_"))
  end },
  { "not a number", function(c)
    return prompt.response(THOUGHT, (c.json(c.objects):gsub("%[%d+", "[NaN", 1)))
  end },
  { "huge numbers", function(c)
    return prompt.response(THOUGHT, (c.json(c.objects):gsub("%[%d+, %d+", "[1e400, 1e400", 1)))
  end },
  { "one object missing", function(c)
    if not c.several or #c.objects < 1 then return nil end
    return answered(c, { unpack(c.objects, 2) })
  end },
  { "one object twice", function(c)
    if not c.several or #c.objects < 1 then return nil end
    return answered(c, { c.objects[1], unpack(c.objects) })
  end },
}

local OTHERS = {
  { "perfect, long thinking", function(c)
    local long = (THOUGHT .. " "):rep(40)
    return (c.perfect:gsub("<think>.-</think>", "<think>" .. long .. "</think>", 1))
  end },
  { "cut off", function(c) return c.perfect:sub(1, floor(0.6 * #c.perfect)) end },
  { "no answer", function() return "I cannot find it in the image." end },
  { "empty", function() return "" end },
}

function M.kinds()
  local names = { "perfect" }
  for _, list in ipairs { WITH_BOXES, OTHERS } do
    for _, kind in ipairs(list) do names[#names + 1] = kind[1] end
  end
  return names
end

-- ---- a row ----
-- The true objects in the frame of the solution: those that it names, else the box around the true
-- mask; nil without either.
local function true_objects(row)
  local mask
  if not truth.has_objects(row) then
    if not row.mask then return nil end
    mask = row.mask(true)
  end
  local ok, objects = pcall(truth.objects, row, mask)
  if mask then mask:free() end
  if not ok then return nil end
  return frame.objects(objects, frame.of(row.image), row.solution_frame or frame.of(row.image))
end

local function add(out, list, context)
  for _, kind in ipairs(list) do
    local text = kind[2](context)
    if text then out[#out + 1] = { kind = kind[1], text = text } end
  end
end

function M.of(row)
  local several = truth.is_list(row.solution)
  local objects = true_objects(row)
  local context = { several = several, size = row.solution_frame or frame.of(row.image) }
  context.json = several and list_json or function(list) return one_json(list[1]) end
  if objects and (several or #objects == 1) then
    context.objects = all(objects, with_points)
    context.perfect = answered(context, context.objects)
  else
    context.perfect = prompt.response(THOUGHT, tostring(row.solution))
  end

  local out = { { kind = "perfect", text = context.perfect } }
  if context.objects and #context.objects > 0 then add(out, WITH_BOXES, context) end
  add(out, OTHERS, context)
  return out
end

return M
