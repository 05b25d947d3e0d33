-- rle.lua - masks as COCO writes them: run lengths, polygons and rows of pixels, drawn into bytes.
--
--   rle.counts(text) -> {n, ...}                  run lengths of a compressed string
--   rle.draw_counts(counts, width, height, out)   run lengths, column by column, first outside
--   rle.draw_polygon(points, width, height, out)  points: {x, y, x, y, ...} in pixels
--   rle.area(counts, width, height)               pixels inside
--   rle.is_empty_polygon(points, width, height)   the same question without drawing
--   rle.draw_rows(rows, width, height, out)       lists of true, false or numbers; 0 is outside
--
-- out: uint8_t [height * width], row by row; pixels inside become 1, others are left as they are,
-- so several polygons give their union. The pixels of a polygon are those of pycocotools
-- (frPyObjects, merge, decode), bit for bit: its boundary is walked in fifths of a pixel, and a
-- pixel is inside after an odd number of crossings in its column. Errors have no position.
-- Leaves out: writing run lengths, crowd masks with holes in polygons (COCO has none).

local bit = require "bit"
local ffi = require "ffi"

local M = {}

local floor = math.floor
local abs = math.abs

-- A boundary is walked point by point, so coordinates are bounded.
local MOST_SIDES = 10           -- of the image
local ALWAYS_ALLOWED = 1000     -- pixels

local function fail(message, ...) error(message:format(...), 0) end

-- A value in a message: a number, or what it is instead.
local function shown(v)
  if type(v) == "number" then return tostring(v) end
  return "a " .. type(v)
end

-- ---- run lengths ----
-- Five bits in each character, the sixth says that more follow; the last one's fifth bit is the
-- sign. From the fourth number on, a number is the difference to the one before the last.
function M.counts(text)
  local counts = {}
  local value = 0
  local shift = 0
  for i = 1, #text do
    -- One character: five bits of the number, and whether it goes on.
    local c = text:byte(i) - 48
    if c < 0 or c > 63 or shift > 30 then
      fail("the run lengths are damaged at character %d", i)
    end
    value = value + bit.band(c, 31) * 2 ^ shift
    shift = shift + 5
    if bit.band(c, 32) == 0 then
      if bit.band(c, 16) ~= 0 then value = value - 2 ^ shift end
      local n = #counts
      if n > 2 then value = value + counts[n - 1] end
      counts[n + 1] = value
      value = 0
      shift = 0
    end
  end
  if shift > 0 then fail "the run lengths are cut off" end
  return counts
end

-- Returns how many pixels are inside.
local function check_counts(counts, pixels)
  local sum = 0
  local inside = 0
  for i, n in ipairs(counts) do
    if type(n) ~= "number" or n < 0 or n % 1 ~= 0 then
      fail("run length %d is %s, expected a whole number from 0", i, shown(n))
    end
    sum = sum + n
    if i % 2 == 0 then inside = inside + n end
  end
  if sum ~= pixels then fail("the run lengths cover %.0f pixels of %.0f", sum, pixels) end
  return inside
end

function M.area(counts, width, height) return check_counts(counts, width * height) end

function M.draw_counts(counts, width, height, out)
  check_counts(counts, width * height)
  local x = 0
  local y = 0
  local inside = false
  for _, n in ipairs(counts) do
    local left = n
    while left > 0 do
      -- What fits into this column.
      local last = math.min(height, y + left)
      if inside then
        for row = y, last - 1 do out[row * width + x] = 1 end
      end
      left = left - (last - y)
      y = last
      if y == height then
        x = x + 1
        y = 0
      end
    end
    inside = not inside
  end
end

-- ---- polygons ----
-- Rounds towards zero, as C's (int) does.
local function whole(v)
  if v >= 0 then return floor(v) end
  return -floor(-v)
end

local function check_points(points, width, height)
  local most = math.max(ALWAYS_ALLOWED, MOST_SIDES * math.max(width, height))
  local n = #points
  if n < 6 or n % 2 == 1 then
    fail("a polygon has %d numbers, expected x, y of at least three points", n)
  end
  for i, v in ipairs(points) do
    if type(v) ~= "number" or not (abs(v) <= most) then
      fail("number %d of a polygon is %s, expected a coordinate in pixels of the %d x %d image", i,
        shown(v), width, height)
    end
  end
end

-- Calls visit(u, v) for each point of the closed boundary, in fifths of a pixel.
local function walk(points, visit)
  local n = #points / 2
  for j = 1, n do
    -- One side, from its lower end so that both directions give the same points.
    local k = j % n + 1
    local xs = whole(5 * points[2 * j - 1] + 0.5)
    local ys = whole(5 * points[2 * j] + 0.5)
    local xe = whole(5 * points[2 * k - 1] + 0.5)
    local ye = whole(5 * points[2 * k] + 0.5)
    local dx = abs(xe - xs)
    local dy = abs(ye - ys)
    local is_wide = dx >= dy
    local flip = (is_wide and xs > xe) or (not is_wide and ys > ye)
    if flip then xs, xe, ys, ye = xe, xs, ye, ys end
    local steps = math.max(dx, dy)
    for d = 0, steps do
      local t = d
      if flip then t = steps - d end
      if steps == 0 then
        visit(xs, ys)
      elseif is_wide then
        visit(xs + t, whole(ys + (ye - ys) / dx * t + 0.5))
      else
        visit(whole(xs + (xe - xs) / dy * t + 0.5), ys + t)
      end
    end
  end
end

-- Calls cross(column * height + row) where a column's parity changes.
local function find_crossings(points, width, height, cross)
  local u0, v0
  walk(points, function(u, v)
    if u0 and u ~= u0 then
      local left = u
      if u > u0 then left = u - 1 end
      local x = (left + 0.5) / 5 - 0.5
      if floor(x) == x and x >= 0 and x <= width - 1 then
        local y = (math.min(v, v0) + 0.5) / 5 - 0.5
        cross(x * height + math.ceil(math.max(0, math.min(height, y))))
      end
    end
    u0 = u
    v0 = v
  end)
end

function M.draw_polygon(points, width, height, out)
  check_points(points, width, height)
  local flips = ffi.new("uint8_t[?]", width * height + 1)
  find_crossings(points, width, height, function(at) flips[at] = 1 - flips[at] end)
  local inside = 0
  local at = 0
  for x = 0, width - 1 do
    for y = 0, height - 1 do
      inside = bit.bxor(inside, flips[at])
      at = at + 1
      if inside == 1 then out[y * width + x] = 1 end
    end
  end
end

-- A pixel is inside wherever an odd number of crossings meet.
function M.is_empty_polygon(points, width, height)
  check_points(points, width, height)
  local odd = {}
  find_crossings(points, width, height, function(at) odd[at] = not odd[at] end)
  for at, is_odd in pairs(odd) do
    if is_odd and at < width * height then return false end
  end
  return true
end

-- ---- rows of pixels ----
local function is_outside(v) return v == false or v == 0 end

function M.draw_rows(rows, width, height, out)
  if #rows ~= height then fail("the mask has %d rows, the image %d", #rows, height) end
  for y, row in ipairs(rows) do
    if type(row) ~= "table" or #row ~= width then
      local n = type(row) == "table" and #row or 0
      fail("row %d of the mask has %d pixels, the image %d", y, n, width)
    end
    for x, v in ipairs(row) do
      local kind = type(v)
      if kind ~= "boolean" and kind ~= "number" then
        fail("pixel %d of row %d of the mask is %s, expected true, false or a number", x, y, kind)
      end
      if not is_outside(v) then out[(y - 1) * width + x - 1] = 1 end
    end
  end
end

return M
