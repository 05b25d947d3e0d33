-- plot.lua - values with intervals as a line chart: a PNG.
--
--   local img = plot.chart{ title = "gIoU", x = {"50", "100"}, at = {50, 100} | nil,
--     series = {{ name = "gIoU", values = {{0.3, 0.28, 0.33}, {0.4, 0.37, 0.42}} }, ...} }
--   img:save("sweep.png"); img:free()
--
-- x: what stands below each value; at: where it stands, rising; nil: evenly spaced. A value is
-- {value, low, high}, or false for none. The vertical axis reaches from the lowest to the highest
-- limit, in round steps. At most six series. Leaves out: logarithmic axes, other kinds of charts.

local draw = require "segzero.tools.draw"
local image = require "segzero.formats.image"

local M = {}

local WIDTH = 880
local HEIGHT = 480
local LEFT = 84
local RIGHT = 190               -- room for the names
local TOP = 56
local BOTTOM = 60
local SCALE = 2                 -- of letters
local GAP = 12                  -- between labels

-- Okabe and Ito's colours, which colour-blind readers can tell apart.
local COLOURS = { { 0, 114, 178 }, { 213, 94, 0 }, { 0, 158, 115 }, { 204, 121, 167 },
  { 230, 159, 0 }, { 86, 180, 233 } }

-- ---- the vertical axis ----
-- A step of 1, 2 or 5 times a power of ten that divides the range into four to ten parts.
local function round_step(range)
  local power = 10 ^ math.floor(math.log10(range / 4))
  for _, factor in ipairs { 5, 2, 1 } do
    if range / (factor * power) >= 4 then return factor * power end
  end
  return power
end

local function limits(series)
  local low = math.huge
  local high = -math.huge
  for _, one in ipairs(series) do
    for _, value in ipairs(one.values) do
      if value then
        low = math.min(low, value[1], value[2])
        high = math.max(high, value[1], value[3])
      end
    end
  end
  if low > high then low, high = 0, 1 end
  if high - low < 1e-6 then low, high = low - 0.05, high + 0.05 end
  local step = round_step(high - low)
  return math.floor(low / step) * step, math.ceil(high / step) * step, step
end

-- ---- drawing ----
local function line(img, x0, y0, x1, y1, colour)
  local steps = math.max(math.abs(x1 - x0), math.abs(y1 - y0), 1)
  for i = 0, steps do
    local x = x0 + (x1 - x0) * i / steps
    local y = y0 + (y1 - y0) * i / steps
    draw.fill(img, x - 1, y - 1, 2, 2, colour)
  end
end

local function axes(img, chart, low, high, step, y_of)
  local right = WIDTH - RIGHT
  local decimals = math.max(0, -math.floor(math.log10(step) + 1e-9))
  for k = 0, math.floor((high - low) / step + 0.5) do
    local v = low + k * step
    local y = y_of(v)
    draw.fill(img, LEFT, y, right - LEFT, 1, { 214, 218, 224 })
    local text = ("%." .. decimals .. "f"):format(v)
    draw.text(img, LEFT - 10 - draw.text_width(text, SCALE), y - 7, text, draw.GREY, SCALE)
  end
  draw.text(img, LEFT, 18, chart.title, draw.INK, SCALE)
end

-- Labels below the values; those that would touch the one before are left out.
local function x_labels(img, chart, x_of)
  local free = 0
  for i, text in ipairs(chart.x) do
    local width = draw.text_width(text, SCALE)
    local x = math.min(x_of(i) - width / 2, WIDTH - width - 4)
    draw.fill(img, x_of(i), HEIGHT - BOTTOM, 1, 6, draw.GREY)
    if x >= free then
      draw.text(img, x, HEIGHT - BOTTOM + 14, text, draw.INK, SCALE)
      free = x + width + GAP
    end
  end
end

local function draw_series(img, one, colour, x_of, y_of)
  local last_x, last_y
  for i, value in ipairs(one.values) do
    if value then
      local x = x_of(i)
      local y = y_of(value[1])
      if last_x then line(img, last_x, last_y, x, y, colour) end
      -- The interval, with a bar at both ends.
      local top = y_of(value[3])
      local bottom = y_of(value[2])
      draw.fill(img, x, top, 1, bottom - top + 1, colour)
      draw.fill(img, x - 5, top, 11, 1, colour)
      draw.fill(img, x - 5, bottom, 11, 1, colour)
      draw.disc(img, x, y, 4, colour)
      last_x = x
      last_y = y
    end
  end
end

function M.chart(chart)
  local img = image.new(WIDTH, HEIGHT)
  draw.fill(img, 0, 0, WIDTH, HEIGHT, draw.WHITE)
  local low, high, step = limits(chart.series)
  local first = LEFT + 24
  local last = WIDTH - RIGHT - 24
  local n = #chart.x
  local function x_of(i)
    if n == 1 then return math.floor((first + last) / 2) end
    local share = (i - 1) / (n - 1)
    if chart.at then share = (chart.at[i] - chart.at[1]) / (chart.at[n] - chart.at[1]) end
    return math.floor(first + share * (last - first) + 0.5)
  end
  local function y_of(v)
    local share = (v - low) / (high - low)
    return math.floor(HEIGHT - BOTTOM - share * (HEIGHT - BOTTOM - TOP) + 0.5)
  end

  axes(img, chart, low, high, step, y_of)
  x_labels(img, chart, x_of)
  for k, one in ipairs(chart.series) do
    local colour = COLOURS[(k - 1) % #COLOURS + 1]
    -- A few pixels apart, so that intervals do not hide one another.
    local shift = 4 * (k - (#chart.series + 1) / 2)
    draw_series(img, one, colour, function(i) return x_of(i) + shift end, y_of)
    local y = TOP + 24 * (k - 1)
    draw.disc(img, WIDTH - RIGHT + 10, y + 6, 5, colour)
    draw.text(img, WIDTH - RIGHT + 24, y, one.name, draw.INK, SCALE)
  end
  return img
end

return M
