-- masks.lua - masks on images: an outline and a light fill, so that the object keeps its colour.
--
--   masks.draw(img, mask, { colour = CYAN, fill = 0.08, line = pixels, rim = true })
--   masks.outline(img, mask, colour, line)        without a fill
--
-- mask: u8 tensor [h, w], anything but 0 is inside. If the image is k times as large as the mask,
-- each pixel of the mask covers k x k pixels. The outline is drawn on the mask's outermost `line`
-- pixels; rim: a white hairline around it, which sets it off from any ground.
-- Leaves out: smoothing.

local shapes = require "segzero.tools.drawing.shapes"
local tensor = require "segzero.core.tensor"

local M = {}

local floor = math.floor
local max = math.max

local FILL = 0.08               -- weight of the colour inside: red stays red

-- The factor between image and mask. level: whose fault a wrong mask is, counted from the caller.
local function factor(img, mask, level)
  if not tensor.is_tensor(mask) or mask:dtype() ~= "u8" or #mask:shape() ~= 2 then
    error("draw.mask: a u8 tensor [h, w] is expected", level + 1)
  end
  local h, w = unpack(mask:shape())
  local k = img.width / w
  if k < 1 or k % 1 ~= 0 or img.height ~= h * k then
    error(("draw.mask: a mask of %d x %d does not fit an image of %d x %d"):format(w, h, img.width,
      img.height), level + 1)
  end
  return k, w
end

local function blend(pixel, colour, weight)
  for c = 0, 2 do pixel[c] = floor(pixel[c] + (colour[c + 1] - pixel[c]) * weight + 0.5) end
end

-- near(x, y, d, side): whether one of the four pixels at distance 1 .. d is in the image and on the
-- side of the mask, 1 inside or 0 outside.
local function new_near(m, w, k, width, height)
  local function is(x, y, inside)
    if x < 0 or y < 0 or x >= width or y >= height then return false end
    return (m[floor(y / k) * w + floor(x / k)] ~= 0) == inside
  end
  return function(x, y, distance, inside)
    for d = 1, distance do
      if is(x - d, y, inside) or is(x + d, y, inside) or is(x, y - d, inside)
        or is(x, y + d, inside) then
        return true
      end
    end
    return false
  end
end

local function draw(img, mask, o, level)
  local k, w = factor(img, mask, level + 1)
  local m = tensor.data(mask)
  local pixels = img:pixels()
  local width = img.width
  local height = img.height
  local near = new_near(m, w, k, width, height)
  local hairline = 0
  if o.rim then hairline = max(1, floor(o.line / 2)) end
  for y = 0, height - 1 do
    local row = m + floor(y / k) * w
    for x = 0, width - 1 do
      local pixel = pixels + 3 * (y * width + x)
      if row[floor(x / k)] ~= 0 then
        local weight = o.fill
        if near(x, y, o.line, false) then weight = 1 end
        blend(pixel, o.colour, weight)
      elseif hairline > 0 and near(x, y, hairline, true) then
        blend(pixel, shapes.WHITE, 1)
      end
    end
  end
end

-- level: 1, or more if a wrong mask is the fault of the caller's caller.
function M.draw(img, mask, options, level)
  local o = options or {}
  draw(img, mask, { colour = o.colour or shapes.CYAN, fill = o.fill or FILL, rim = o.rim ~= false,
    line = o.line or shapes.thickness(img) }, (level or 1) + 1)
end

function M.outline(img, mask, colour, line)
  draw(img, mask, { colour = colour, fill = 0, rim = false, line = line or shapes.thickness(img) },
    2)
end

return M
