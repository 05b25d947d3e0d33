-- raster.lua - the pixels of a RefShapes image: background, anti-aliased shapes, and masks as row
-- runs.
--
-- An image is uint8_t [h][w][3]. A shape's mask consists of the pixels whose centre is inside the
-- shape. It is stored as runs (int32_t [rows][2], see distance.lua), which also give the tight box
-- [left, top, right, bottom], inclusive. Edges are blended by coverage: 8 sub-rows for each pixel,
-- exact along x. Only the pixels of a shape's own box are touched.
--
-- Leaves out: shadows, textures, anything that needs a second pass.

local ffi = require "ffi"
local bit = require "bit"
local scene = require "segzero.data.refshapes.scene"

local M = {}

local floor = math.floor
local ceil = math.ceil
local max = math.max
local min = math.min
local band = bit.band
local bxor = bit.bxor
local lshift = bit.lshift
local rshift = bit.rshift
local arshift = bit.arshift
local half_width = scene.half_width

local SUB = 8
local NOISE_SHIFT = 16 -- colours are 16.16 fixed point while noise is added

local cover = ffi.new("double[?]", 844)
local column = ffi.new("int32_t[?]", 844)

-- A soft gradient along both axes around a muted base colour: lighter to the right, cooler at the
-- top and warmer at the bottom, by amounts that vary a little. So a patch's colour hints at its
-- place, as daylight does in photographs. Then noise of about +-4 levels. "plain" is the base
-- colour alone. All values stay within 15..215, so nothing is clamped.
function M.background(rgb, w, h, r, style)
  local base = r:int(100, 130)
  local cr = base + r:int(-6, 6)
  local cg = base + r:int(-6, 6)
  local cb = base + r:int(-6, 6)
  local light = r:int(26, 34)
  local tr = r:int(20, 28)
  local tg = r:int(-4, 4)
  local tb = r:int(-28, -20)
  local state = r:bits32()
  if style == "plain" then
    for i = 0, w * h * 3 - 1, 3 do
      rgb[i] = cr
      rgb[i + 1] = cg
      rgb[i + 2] = cb
    end
    return state
  end
  for x = 0, w - 1 do
    column[x] = floor((light * (2 * (x + 0.5) / w - 1)) * 65536)
  end
  local i = 0
  for y = 0, h - 1 do
    local v = 2 * (y + 0.5) / h - 1
    local rr = floor((cr + tr * v + 0.5) * 65536)
    local rg = floor((cg + tg * v + 0.5) * 65536)
    local rb = floor((cb + tb * v + 0.5) * 65536)
    for x = 0, w - 1 do
      state = bxor(state, lshift(state, 13))
      state = bxor(state, rshift(state, 17))
      state = bxor(state, lshift(state, 5))
      -- a part shared by the channels (grain), and a smaller part for each of them
      local grain = column[x] + arshift(lshift(state, 16), 13)
      rgb[i] = rshift(rr + grain + arshift(lshift(state, 8), 15), NOISE_SHIFT)
      rgb[i + 1] = rshift(rg + grain + arshift(state, 15), NOISE_SHIFT)
      rgb[i + 2] = rshift(rb + grain + arshift(lshift(state, 4), 15), NOISE_SHIFT)
      i = i + 3
    end
  end
  return state
end

-- The shape of scene object o in pixels, and the rows and columns that it touches.
local function in_pixels(o, px)
  local k = px / scene.UNIT
  local shape = { code = o.code, down = o.down, cx = o.cx * k, cy = o.cy * k }
  shape.hw = o.hw * k
  shape.hh = o.hh * k
  shape.arm = o.arm * k
  shape.left = floor(shape.cx - shape.hw)
  shape.right = floor(shape.cx + shape.hw)
  shape.top = floor(shape.cy - shape.hh)
  shape.bottom = floor(shape.cy + shape.hh)
  return shape
end

-- The mask runs and the box of scene object o in an image whose side has px pixels.
function M.runs(o, px)
  local shape = in_pixels(o, px)
  local top = shape.top
  local bottom = shape.bottom
  local runs = ffi.new("int32_t[?]", 2 * (bottom - top + 1))
  local n = 0
  local y0 = -1
  local x0 = px
  local x1 = -1
  for y = top, bottom do
    local dy = y + 0.5 - shape.cy
    local half = half_width(shape.code, shape.hw, shape.hh, shape.arm, shape.down, dy)
    local a = ceil(shape.cx - half - 0.5)
    local b = floor(shape.cx + half - 0.5)
    if half >= 0 and a <= b then
      if y0 < 0 then y0 = y end
      runs[2 * n] = a
      runs[2 * n + 1] = b
      n = n + 1
      if a < x0 then x0 = a end
      if b > x1 then x1 = b end
    end
  end
  return runs, { x0, y0, x1, y0 + n - 1 }
end

-- Fills cover[] for row y of a shape. The running sum of cover[0 .. x] is the covered part of the
-- pixel in column left + x, 0 to 1.
local function cover_row(shape, y)
  local weight = 1 / SUB
  local left = shape.left
  local cx = shape.cx
  local cy = shape.cy
  local code = shape.code
  local hw = shape.hw
  local hh = shape.hh
  local arm = shape.arm
  local down = shape.down
  for x = 0, shape.right - left + 2 do cover[x] = 0 end
  for s = 0, SUB - 1 do
    local dy = y + (s + 0.5) / SUB - cy
    local half = half_width(code, hw, hh, arm, down, dy)
    if half > 0 then
      -- The sub-row enters the shape at xl and leaves it at xr.
      local xl = cx - half - left
      local xr = cx + half - left
      local il = floor(xl)
      local ir = floor(xr)
      local fl = (il + 1 - xl) * weight
      local fr = (ir + 1 - xr) * weight
      cover[il] = cover[il] + fl
      cover[il + 1] = cover[il + 1] + weight - fl
      cover[ir] = cover[ir] - fr
      cover[ir + 1] = cover[ir + 1] - weight + fr
    end
  end
end

-- Blends the colour sr, sg, sb into `columns` pixels from byte i of rgb on, by cover[]. noise is
-- the state of the noise and amp its amplitude. Returns the new state.
local function blend_row(rgb, i, columns, sr, sg, sb, noise, amp)
  local a = 0
  for x = 0, columns - 1 do
    a = a + cover[x]
    if a > 0.002 then
      noise = bxor(noise, lshift(noise, 13))
      noise = bxor(noise, rshift(noise, 17))
      noise = bxor(noise, lshift(noise, 5))
      local grain = (band(noise, 65535) - 32768) * amp
      local r = rgb[i] + (sr + grain - rgb[i]) * a + 0.5
      local g = rgb[i + 1] + (sg + grain - rgb[i + 1]) * a + 0.5
      local b = rgb[i + 2] + (sb + grain - rgb[i + 2]) * a + 0.5
      rgb[i] = max(0, min(r, 255))
      rgb[i + 1] = max(0, min(g, 255))
      rgb[i + 2] = max(0, min(b, 255))
    end
    i = i + 3
  end
  return noise
end

-- Draws o in colour {r, g, b}, a little lighter at the top than at the bottom. state is the state
-- of the noise, or nil for no noise. Returns the new state.
function M.draw(rgb, px, o, colour, state)
  local shape = in_pixels(o, px)
  local left = shape.left
  local top = shape.top
  local columns = shape.right - left + 1
  local rows = shape.bottom - top + 1
  local noise = state or 1
  local amp = 0
  if state then amp = 1 / 8192 end
  for y = top, shape.bottom do
    cover_row(shape, y)
    local shade = 1.05 - 0.1 * (y - top) / rows
    local first = (y * px + left) * 3
    noise = blend_row(rgb, first, columns, colour[1] * shade, colour[2] * shade, colour[3] * shade,
      noise, amp)
  end
  return state and noise
end

-- A mask uint8_t [h*w] of 0 and `value`, from runs that start at the top left corner of bbox.
function M.mask(runs, bbox, w, h, value)
  local out = ffi.new("uint8_t[?]", w * h)
  for y = bbox[2], bbox[4] do
    local i = 2 * (y - bbox[2])
    local a = runs[i]
    local b = runs[i + 1]
    ffi.fill(out + (y * w + a), b - a + 1, value)
  end
  return out
end

return M
