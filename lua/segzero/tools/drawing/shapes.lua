-- shapes.lua - filled shapes, boxes, points and answers on images; images put together.
--
-- tools/draw.lua lists the functions; this file has those without words and masks.
-- Colours are {r, g, b}, 0 to 255. Everything is clipped to the image.
-- Leaves out: words (lettering.lua), masks (masks.lua).

local ffi = require "ffi"
local image = require "segzero.formats.image"

local M = {}

local floor = math.floor
local max = math.max
local min = math.min

M.WHITE = { 255, 255, 255 }
M.INK = { 28, 32, 40 }
M.GREY = { 96, 104, 116 }
M.PAPER = { 244, 245, 248 }
M.GREEN = { 0, 190, 90 }
M.RED = { 230, 40, 60 }
M.YELLOW = { 255, 214, 10 }
M.CYAN = { 0, 205, 235 }

-- 2 pixels for a small image, 3 from 500 on a side, 4 from 700, and so on.
function M.thickness(img) return max(2, floor(min(img.width, img.height) / 200 + 0.5)) end

local function clamp(v, lo, hi) return max(lo, min(v, hi)) end

-- ---- filled shapes ----
-- Fills the pixels x .. x + w - 1, y .. y + h - 1 that are inside the image.
function M.fill(img, x, y, w, h, colour)
  local p = img:pixels()
  local width = img.width
  local x0 = max(floor(x), 0)
  local x1 = min(floor(x) + floor(w), width) - 1
  for row = max(floor(y), 0), min(floor(y) + floor(h), img.height) - 1 do
    for col = x0, x1 do
      local q = p + 3 * (row * width + col)
      q[0] = colour[1]
      q[1] = colour[2]
      q[2] = colour[3]
    end
  end
end

-- A disc around the centre of pixel (x, y). Its edge is one pixel soft.
function M.disc(img, x, y, radius, colour)
  local p = img:pixels()
  local width = img.width
  for row = max(floor(y - radius - 1), 0), min(floor(y + radius + 1), img.height - 1) do
    for col = max(floor(x - radius - 1), 0), min(floor(x + radius + 1), width - 1) do
      local cover = clamp(radius + 0.5 - math.sqrt((col - x) ^ 2 + (row - y) ^ 2), 0, 1)
      if cover > 0 then
        local q = p + 3 * (row * width + col)
        for c = 0, 2 do q[c] = floor(q[c] + (colour[c + 1] - q[c]) * cover + 0.5) end
      end
    end
  end
end

-- Infinite corners are clipped as far ones are: a model may answer 1e308, which is then enlarged.
local function four(box, level)
  for i = 1, 4 do
    local v = type(box) == "table" and box[i]
    if type(v) ~= "number" or v ~= v then
      error("draw: a box is four numbers {x0, y0, x1, y1}", level + 1)
    end
  end
  return box[1], box[2], box[3], box[4]
end

local function frame(img, x0, y0, x1, y1, t, colour)
  local w = x1 - x0 + 1
  local h = y1 - y0 + 1
  M.fill(img, x0, y0, w, t, colour)
  M.fill(img, x0, y1 - t + 1, w, t, colour)
  M.fill(img, x0, y0, t, h, colour)
  M.fill(img, x1 - t + 1, y0, t, h, colour)
end

-- Draws a line centred on the box's outermost pixels. A line thicker than 1 has a white hairline on
-- each side, which sets it off from any background. Swapped corners mean the same box.
function M.box(img, box, colour, thickness)
  local x0, y0, x1, y1 = four(box, 2)
  if x0 > x1 then x0, x1 = x1, x0 end
  if y0 > y1 then y0, y1 = y1, y0 end
  local t = thickness or M.thickness(img)
  local out = floor((t - 1) / 2)
  -- Corners far outside are moved closer, so that lengths stay small numbers.
  x0, x1 = clamp(floor(x0), -9999, img.width + 9999) - out,
    clamp(floor(x1), -9999, img.width + 9999) + out
  y0, y1 = clamp(floor(y0), -9999, img.height + 9999) - out,
    clamp(floor(y1), -9999, img.height + 9999) + out
  if t > 1 then frame(img, x0 - 1, y0 - 1, x1 + 1, y1 + 1, t + 2, M.WHITE) end
  frame(img, x0, y0, x1, y1, t, colour)
end

function M.point(img, point, colour, radius)
  local x = point[1]
  local y = point[2]
  if type(x) ~= "number" or type(y) ~= "number" or x ~= x or y ~= y then
    error("draw: a point is two numbers {x, y}", 2)
  end
  local r = radius or 1.6 * M.thickness(img)
  if x < -r or y < -r or x > img.width + r or y > img.height + r then return end
  M.disc(img, x, y, r + max(1, r / 3), M.INK)
  M.disc(img, x, y, r, colour)
end

-- The box (red) and the points (yellow) of an answer, or of a list of objects.
function M.answer(img, a)
  for _, object in ipairs(a) do
    if object.bbox then M.box(img, object.bbox, M.RED) end
  end
  for _, object in ipairs(a) do
    if object.point then M.point(img, object.point, M.YELLOW) end
  end
  if a.bbox then M.box(img, a.bbox, M.RED) end
  for _, p in ipairs(a.points or {}) do M.point(img, p, M.YELLOW) end
end

-- ---- putting images together ----
function M.canvas(width, height, colour)
  local img = image.new(width, height)
  M.fill(img, 0, 0, width, height, colour or M.WHITE)
  return img
end

-- Copies src to img with its top left corner at (x, y), clipped to img.
function M.paste(img, src, x, y)
  local to = img:pixels()
  local from = src:pixels()
  local x0 = max(x, 0)
  local x1 = min(x + src.width, img.width)
  if x1 <= x0 then return end
  for row = max(y, 0), min(y + src.height, img.height) - 1 do
    ffi.copy(to + 3 * (row * img.width + x0), from + 3 * ((row - y) * src.width + x0 - x),
      3 * (x1 - x0))
  end
end

function M.enlarge(img, k)
  if type(k) ~= "number" or k % 1 ~= 0 or k < 1 then
    error("draw.enlarge: a whole number from 1 is expected, got " .. tostring(k), 2)
  end
  local w = img.width * k
  local h = img.height * k
  local big = image.new(w, h)
  local to = big:pixels()
  local from = img:pixels()
  for y = 0, img.height - 1 do
    local row = to + 3 * w * k * y
    for x = 0, img.width - 1 do
      local p = from + 3 * (y * img.width + x)
      for i = x * k, x * k + k - 1 do
        row[3 * i] = p[0]
        row[3 * i + 1] = p[1]
        row[3 * i + 2] = p[2]
      end
    end
    for i = 1, k - 1 do ffi.copy(row + 3 * w * i, row, 3 * w) end
  end
  return big
end

-- The same size without steps at the edges of pixels.
function M.enlarge_smooth(img, k)
  if k == 1 then return M.enlarge(img, 1) end
  return img:resize(img.width * k, img.height * k, "bicubic")
end

-- Coordinates in an enlarged image: a box covers the same pixels, a point is in the middle of its
-- pixel.
function M.enlarge_box(b, k) return { b[1] * k, b[2] * k, b[3] * k + k - 1, b[4] * k + k - 1 } end
function M.enlarge_point(p, k)
  return { p[1] * k + floor((k - 1) / 2), p[2] * k + floor((k - 1) / 2) }
end

function M.side_by_side(list, gap)
  gap = gap or 8
  local width = gap * (#list - 1)
  local height = 1
  for _, img in ipairs(list) do
    width, height = width + img.width, max(height, img.height)
  end
  local out = M.canvas(max(width, 1), height)
  local x = 0
  for _, img in ipairs(list) do
    M.paste(out, img, x, floor((height - img.height) / 2))
    x = x + img.width + gap
  end
  return out
end

return M
