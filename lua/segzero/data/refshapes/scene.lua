-- scene.lua - the layout of a RefShapes image before any pixel is drawn: kinds, colours, sizes and
-- places.
--
-- Coordinates are integer units of 1/840 of the image's side, so the same (seed, split, index)
-- shows the same scene at every image size. An object is a table
--   { kind="circle", code=1, colour="red", size="small"|"large", cx=, cy=,
--     hw=, hh=   half the width and height of its box
--     arm=       half the width of a cross's arm
--     down=      1 if a triangle points down
--     area= }
-- Boxes of objects are at least GAP units apart.
--
-- The splits are disjoint by construction: a scene is held out exactly if a hash of its whole
-- layout falls into one class of 8, and each split draws until it finds a scene of its own.
--
-- Leaves out: rotation, overlap.

local rng = require "segzero.data.refshapes.rng"

local M = {}

local floor = math.floor
local abs = math.abs
local sqrt = math.sqrt

local UNIT = 840
local GAP = 30
local MARGIN = 20

M.UNIT = UNIT
M.kinds = { "circle", "square", "triangle", "diamond", "rectangle", "cross" }
M.colours = { "red", "green", "blue", "yellow", "purple", "orange", "white" }
M.rgb = {
  red = { 218, 38, 42 },
  green = { 40, 165, 62 },
  blue = { 38, 82, 222 },
  yellow = { 246, 218, 40 },
  purple = { 142, 50, 176 },
  orange = { 250, 134, 22 },
  white = { 244, 244, 240 },
}

local CODE = {}
for i, name in ipairs(M.kinds) do CODE[name] = i end
local COLOUR_CODE = {}
for i, name in ipairs(M.colours) do COLOUR_CODE[name] = i end
M.code = CODE

-- Side lengths by level and size class. Small and large differ by a factor of at least about 1.3.
local SIDES = {
  { large = { 300, 560 } },
  { small = { 150, 190 }, large = { 270, 350 } },
  { small = { 135, 170 }, large = { 225, 300 } },
}

local function round(x) return floor(x + 0.5) end

-- Sets half extents and area of o for a nominal side s.
local function set_extent(o, s, r)
  local kind = o.kind
  if kind == "circle" then
    o.hw = round(s * 0.5)
    o.hh = o.hw
    o.area = 3.14159 * o.hw * o.hw
  elseif kind == "square" then
    o.hw = round(s * 0.46)
    o.hh = o.hw
    o.area = 4 * o.hw * o.hh
  elseif kind == "triangle" then
    o.hw = round(s * 0.54)
    o.hh = round(s * 0.48)
    o.down = r:chance(0.25) and 1 or 0
    o.area = 2 * o.hw * o.hh
  elseif kind == "diamond" then
    o.hw = round(s * 0.5)
    o.hh = round(s * 0.6)
    o.area = 2 * o.hw * o.hh
  elseif kind == "rectangle" then
    local long = round(s * 0.58)
    local short = round(s * 0.32)
    if r:chance(0.5) then o.hw, o.hh = long, short else o.hw, o.hh = short, long end
    o.area = 4 * o.hw * o.hh
  else
    o.hw = round(s * 0.5)
    o.hh = o.hw
    o.arm = round(s * 0.18)
    o.area = 8 * o.hw * o.arm - 4 * o.arm * o.arm
  end
  o.down = o.down or 0
  o.arm = o.arm or 0
end

local function prefix(r, list, n)
  local copy = {}
  for i = 1, #list do copy[i] = list[i] end
  r:shuffle(copy)
  for i = #copy, n + 1, -1 do copy[i] = nil end
  return copy
end

-- Draws kinds, colours and size classes of one scene.
local function draw_attributes(r, level)
  local objects = {}
  if level == 1 then
    objects[1] = { kind = r:pick(M.kinds), colour = r:pick(M.colours), size = "large" }
    return objects
  end
  local n
  if level == 2 then
    n = r:int(2, 3)
  else
    n = r:int(3, 6)
  end
  -- A small choice produces repetitions, which relations and superlatives need.
  local few = 4
  if level == 2 then few = 6 end
  local kinds = prefix(r, M.kinds, r:int(2, few))
  local colours = prefix(r, M.colours, r:int(2, few))
  local large_left = 2
  if n <= 4 then large_left = 3 end
  for i = 1, n do
    local size = "small"
    if large_left > 0 and r:chance(0.5) then
      size = "large"
      large_left = large_left - 1
    end
    objects[i] = { kind = r:pick(kinds), colour = r:pick(colours), size = size }
  end
  -- Sometimes one object differs from all others, in colour or in kind.
  if level == 3 and r:chance(0.22) then
    local key = "kind"
    local values = M.kinds
    if r:chance(0.5) then
      key = "colour"
      values = M.colours
    end
    local pair = prefix(r, values, 2)
    for i = 1, n do objects[i][key] = pair[1] end
    objects[r:int(1, n)][key] = pair[2]
  end
  return objects
end

local function clear_of(o, placed, n)
  for i = 1, n do
    local p = placed[i]
    if abs(o.cx - p.cx) < o.hw + p.hw + GAP and abs(o.cy - p.cy) < o.hh + p.hh + GAP then
      return false
    end
  end
  return true
end

local function place(r, objects)
  for i = 1, #objects do
    local o = objects[i]
    local ok = false
    for _ = 1, 40 do
      o.cx = r:int(o.hw + MARGIN, UNIT - o.hw - MARGIN)
      o.cy = r:int(o.hh + MARGIN, UNIT - o.hh - MARGIN)
      if clear_of(o, objects, i - 1) then
        ok = true
        break
      end
    end
    if not ok then return false end
  end
  return true
end

-- Whether attributes alone identify some object, so that every image has a question.
local function has_unique(objects)
  for i = 1, #objects do
    local o = objects[i]
    local twins = 0
    for j = 1, #objects do
      local p = objects[j]
      if p.kind == o.kind and p.colour == o.colour and p.size == o.size then twins = twins + 1 end
    end
    if twins == 1 then return true end
  end
  return false
end

-- Largest first, because large objects are the hardest to place. The other fields order equal
-- areas.
local function by_size(a, b)
  if a.area ~= b.area then return a.area > b.area end
  if a.code ~= b.code then return a.code < b.code end
  if a.hw ~= b.hw then return a.hw < b.hw end
  if a.down ~= b.down then return a.down < b.down end
  return a.colour < b.colour
end

-- The class of a layout, 0 to 7. Class 0 is held out.
local function layout_class(objects)
  local h = 0ULL
  for i = 1, #objects do
    local o = objects[i]
    local look = (o.code * 16 + COLOUR_CODE[o.colour]) * 2 + o.down
    h = rng.combine(h, ((look * 1024 + o.cx) * 1024 + o.cy) * 1024 + o.hw)
  end
  return tonumber(h % 8ULL)
end
M.layout_class = layout_class

-- Draws one scene of the split ("train" or "heldout"). r: the image's random stream.
function M.draw(r, split, level)
  local sides = SIDES[level]
  while true do
    local objects = draw_attributes(r, level)
    for i = 1, #objects do
      local o = objects[i]
      local side = sides[o.size]
      o.code = CODE[o.kind]
      set_extent(o, r:int(side[1], side[2]), r)
    end
    if #objects > 1 then table.sort(objects, by_size) end
    if has_unique(objects) and place(r, objects)
      and (layout_class(objects) == 0) == (split == "heldout") then
      return objects
    end
  end
end

-- Half the width of object o at height dy from its centre, in the units of its arguments; below 0
-- outside. Every kind is symmetric left to right and crosses each row once, so drawing needs
-- nothing else.
function M.half_width(code, hw, hh, arm, down, dy)
  if dy < -hh or dy > hh then return -1 end
  if code == 1 then
    return sqrt(hw * hw - dy * dy)
  elseif code == 3 then
    if down == 1 then dy = -dy end
    return hw * (dy + hh) / (2 * hh)
  elseif code == 4 then
    return hw * (1 - abs(dy) / hh)
  elseif code == 6 then
    if abs(dy) <= arm then return hw end
    return arm
  end
  return hw
end

return M
