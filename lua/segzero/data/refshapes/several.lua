-- several.lua - questions about any number of objects of a RefShapes scene, as VisionReasoner asks
-- them.
--
--   local q = several.compose(objects, r, { level =, empty = share })
--     -> {text =, targets = {indices, from left to right}, think =}
--   several.solution(objects, targets)    objects with bbox and points (refshapes/init.lua)
--     -> '[{"bbox_2d": [..], "point_2d": [..]}, ...]'
--
-- Four kinds of questions:
--   all       "all the red shapes"                        two objects or more
--   union     "'the red circle' and 'the blue square'"    two expressions of sentence.lua
--   one       "the leftmost circle"                       an expression of sentence.lua
--   empty     "all the green crosses"                     none of the scene; `empty` is their share
-- A kind that the scene has no example of falls back to `one`. The point of an object is the centre
-- of its largest inscribed circle.
-- Leaves out: relations between groups.

local scene = require "segzero.data.refshapes.scene"
local sentence = require "segzero.data.refshapes.sentence"

local M = {}

local SHARE_ALL = 0.5           -- of the questions that have targets
local SHARE_UNION = 0.25
local TRIES = 40

local NUMBER = { "one", "two", "three", "four", "five", "six" }

local function matching(np, objects)
  local list = {}
  for i, o in ipairs(objects) do
    if sentence.matches(np, o) then list[#list + 1] = i end
  end
  table.sort(list, function(a, b)
    local p = objects[a]
    local q = objects[b]
    if p.cx ~= q.cx then return p.cx < q.cx end
    return p.cy < q.cy
  end)
  return list
end

local function plural_phrase(np)
  local text = sentence.plural(np.kind or "shape")
  if np.colour then text = np.colour .. " " .. text end
  if np.size then text = np.size .. " " .. text end
  return text
end

-- A noun phrase with at least one word; its values are those of an object or drawn from all.
local function draw_phrase(r, o)
  local np = {}
  if r:chance(0.2) then np.size = o.size end
  if r:chance(0.7) then np.colour = o.colour end
  if r:chance(0.6) then np.kind = o.kind end
  if not (np.size or np.colour or np.kind) then np.colour = o.colour end
  return np
end

local function compose_all(objects, r)
  for _ = 1, TRIES do
    local np = draw_phrase(r, objects[r:int(1, #objects)])
    local targets = matching(np, objects)
    if #targets >= 2 then
      local phrase = plural_phrase(np)
      local think = ("There are %s %s in the image."):format(NUMBER[#targets], phrase)
      return { text = "all the " .. phrase, targets = targets, think = think }
    end
  end
end

local function compose_empty(objects, r)
  for _ = 1, TRIES do
    local other = { size = r:pick { "small", "large" }, colour = r:pick(scene.colours),
      kind = r:pick(scene.kinds) }
    local np = draw_phrase(r, other)
    if #matching(np, objects) == 0 then
      local phrase = plural_phrase(np)
      return { text = "all the " .. phrase, targets = {},
        think = ("There are no %s in the image."):format(phrase) }
    end
  end
end

local function compose_union(objects, r, level)
  local asked = sentence.compose(objects, 2, level, r)
  local a = asked[1]
  local b = asked[2]
  if not b or a.target == b.target then return nil end
  local targets = { a.target, b.target }
  if objects[a.target].cx > objects[b.target].cx then targets = { b.target, a.target } end
  return { text = ("'%s' and '%s'"):format(a.text, b.text), targets = targets,
    think = "There are two objects to find. " .. a.think }
end

local function compose_one(objects, r, level)
  local q = sentence.compose(objects, 1, level, r)[1]
  return { text = q.text, targets = { q.target }, think = q.think }
end

function M.compose(objects, r, options)
  local question
  if r:uniform() < options.empty then
    question = compose_empty(objects, r)
  else
    local kind = r:uniform()
    if kind < SHARE_ALL then
      question = compose_all(objects, r)
    elseif kind < SHARE_ALL + SHARE_UNION then
      question = compose_union(objects, r, options.level)
    end
  end
  return question or compose_one(objects, r, options.level)
end

function M.solution(objects, targets)
  local parts = {}
  for i, k in ipairs(targets) do
    local b = objects[k].bbox
    local p = objects[k].points[1]
    parts[i] = ('{"bbox_2d": [%d,%d,%d,%d], "point_2d": [%d,%d]}'):format(b[1], b[2], b[3], b[4],
      p[1], p[2])
  end
  return "[" .. table.concat(parts, ", ") .. "]"
end

return M
