-- distance.lua - the exact Euclidean distance transform of a small mask, and the two points of a
-- Seg-Zero answer: the centres of the two largest inscribed circles.
--
-- A mask is given as row runs: object o covers the pixels runs[2*i] .. runs[2*i+1] (absolute x,
-- both included) of row o.bbox[2] + i; an empty run ends before it starts. All other pixels are
-- background. A distance is that to the nearest pixel centre outside the object. Squared distances
-- are exact integers.
--
-- Method: distances within each column, then the lower envelope of parabolas along each row
-- (Meijster, Roerdink, Hesselink 2000), linear in the area of the box. Scratch arrays are reused.
-- Leaves out: use by several OS threads in one Lua state.

local ffi = require "ffi"

local M = {}

local floor = math.floor
local max = math.max

local LONGEST = 12000           -- pixels of a side: squared distances stay below 2^31

local cap = 0
local side_cap = 0
local inside, column, dist -- u8, i32, i32 [h+2][w+2]: the box with a rim of background
local site, start -- i32 [w+2]: envelope stack

local function reserve(w, h)
  if w * h > cap then
    cap = w * h
    inside = ffi.new("uint8_t[?]", cap)
    column = ffi.new("int32_t[?]", cap)
    dist = ffi.new("int32_t[?]", cap)
  end
  if w > side_cap then
    side_cap = w
    site = ffi.new("int32_t[?]", w)
    start = ffi.new("int32_t[?]", w)
  end
end

-- Fills dist[0 .. w*h) with the squared distances of inside[], which must have some background.
-- What is outside of the array counts for nothing.
local function transform(w, h)
  local far = w + h             -- more than any distance within the array
  for x = 0, w - 1 do
    local run = far
    for y = 0, h - 1 do
      local i = y * w + x
      if inside[i] ~= 0 then run = run + 1 else run = 0 end
      column[i] = run
    end
    run = far
    for y = h - 1, 0, -1 do
      local i = y * w + x
      if column[i] == 0 then run = 0 else run = run + 1 end
      if run < column[i] then column[i] = run end
    end
  end
  for y = 0, h - 1 do
    local base = y * w
    local top = 0
    site[0] = 0
    start[0] = 0
    for x = 1, w - 1 do
      local gx = column[base + x]
      local gx2 = gx * gx
      while top >= 0 do
        local s = site[top]
        local t = start[top]
        local gs = column[base + s]
        if (t - s) * (t - s) + gs * gs > (t - x) * (t - x) + gx2 then top = top - 1 else break end
      end
      if top < 0 then
        top = 0
        site[0] = x
        start[0] = 0
      else
        local s = site[top]
        local gs = column[base + s]
        local from = 1 + floor((x * x - s * s + gx2 - gs * gs) / (2 * (x - s)))
        if from < w then
          top = top + 1
          site[top] = x
          start[top] = from
        end
      end
    end
    for x = w - 1, 0, -1 do
      local s = site[top]
      local gs = column[base + s]
      dist[base + x] = (x - s) * (x - s) + gs * gs
      if x == start[top] then top = top - 1 end
    end
  end
end

-- The largest squared distance and its pixel. Among equals the one nearest to (mx, my) wins, then
-- the first in scan order. Without (mx, my) it is the topmost, then leftmost.
local function peak(w, h, mx, my)
  local best = 0
  local bx = -1
  local by = -1
  local near = 0
  for y = 1, h - 2 do
    for x = 1, w - 2 do
      local d = dist[y * w + x]
      if d > best then
        best = d
        bx = x
        by = y
        if mx then near = (x - mx) * (x - mx) + (y - my) * (y - my) end
      elseif mx and d == best and d > 0 then
        local n = (x - mx) * (x - mx) + (y - my) * (y - my)
        if n < near then bx, by, near = x, y, n end
      end
    end
  end
  return best, bx, by
end

local function load(bbox, runs)
  local x0 = bbox[1]
  local y0 = bbox[2]
  local w = bbox[3] - x0 + 3
  local h = bbox[4] - y0 + 3
  reserve(w, h)
  ffi.fill(inside, w * h)
  local n = 0
  local sx = 0
  local sy = 0
  for i = 0, h - 3 do
    local a = runs[2 * i] - x0 + 1
    local b = runs[2 * i + 1] - x0 + 1
    local base = (i + 1) * w
    for x = a, b do inside[base + x] = 1 end
    local len = max(b - a + 1, 0)
    n = n + len
    sx = sx + len * (a + b) / 2
    sy = sy + len * (i + 1)
  end
  return w, h, sx / n, sy / n
end

-- The squared distances of a part of a mask: width x height pixels from (x0, y0) on, of u8 rows
-- that are `stride` long; 0 is background, of which the part must have some. What is outside of the
-- part counts for nothing. Returns int32_t [height, width], good until the next call.
function M.squared(mask, stride, x0, y0, width, height)
  if width > LONGEST or height > LONGEST then
    error(("a mask of %d x %d pixels, the most is %d"):format(width, height, LONGEST), 0)
  end
  reserve(width, height)
  for y = 0, height - 1 do
    ffi.copy(inside + y * width, mask + (y0 + y) * stride + x0, width)
  end
  transform(width, height)
  return dist
end

-- Two points {x, y} in the image's pixels for the object with this box and these runs. The second
-- is found in the same way after the first circle's pixels are removed. If nothing is left, it
-- equals the first. Also returns the first circle's squared radius.
function M.two_circles(bbox, runs)
  local w, h, mx, my = load(bbox, runs)
  transform(w, h)
  local r2, px, py = peak(w, h, mx, my)
  local ox = bbox[1] - 1
  local oy = bbox[2] - 1
  for y = 1, h - 2 do
    for x = 1, w - 2 do
      if (x - px) * (x - px) + (y - py) * (y - py) <= r2 then inside[y * w + x] = 0 end
    end
  end
  transform(w, h)
  local left, qx, qy = peak(w, h)
  if left == 0 then qx, qy = px, py end
  return { px + ox, py + oy }, { qx + ox, qy + oy }, r2
end

return M
