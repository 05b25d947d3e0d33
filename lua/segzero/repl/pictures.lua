-- pictures.lua - images in the terminal: the protocols of kitty and iTerm, sixels, or else a file.
--
--   local p = pictures.new{ kind = f() -> "kitty" | "iterm" | "sixel" | nil, write = f(text) }
--   p:show(img)                 draws it, or writes a file and its path
--   p:is_inline()               whether it would draw it
--   pictures.kitty(png) pictures.iterm(png) pictures.sixel(img)    -> text for the terminal
--
-- Small images are enlarged to about SIDE pixels, large ones made smaller. Files go to a folder of
-- this session in TMPDIR, and stay. Leaves out: finding out what the terminal can do
-- (terminal.lua).

local base64 = require "segzero.core.base64"

local M = {}

local methods = {}
local mt = { __index = methods }

local SIDE = 360                -- pixels of the longer side
local CHUNK = 4096              -- bytes of one piece in kitty's protocol
local LEVELS = 6                -- of each colour in a sixel image

function M.new(options) return setmetatable(options, mt) end

-- ---- protocols ----
function M.kitty(png)
  local data = base64.encode(png)
  local out = {}
  for i = 1, #data, CHUNK do
    local more = i + CHUNK <= #data and 1 or 0
    local head = ("m=%d"):format(more)
    if i == 1 then head = ("a=T,f=100,m=%d"):format(more) end
    out[#out + 1] = ("\27_G%s;%s\27\\"):format(head, data:sub(i, i + CHUNK - 1))
  end
  return table.concat(out) .. "\n"
end

function M.iterm(png)
  local head = ("\27]1337;File=inline=1;size=%d;preserveAspectRatio=1:"):format(#png)
  return head .. base64.encode(png) .. "\7\n"
end

-- The number of a colour of the cube of LEVELS ^ 3 colours.
local function colour_of(p)
  local step = 255 / (LEVELS - 1)
  local r = math.floor(p[0] / step + 0.5)
  local g = math.floor(p[1] / step + 0.5)
  local b = math.floor(p[2] / step + 0.5)
  return (r * LEVELS + g) * LEVELS + b
end

local function palette()
  local out = {}
  local percent = 100 / (LEVELS - 1)
  for c = 0, LEVELS ^ 3 - 1 do
    local r = math.floor(c / LEVELS ^ 2)
    local g = math.floor(c / LEVELS) % LEVELS
    out[#out + 1] = ("#%d;2;%d;%d;%d"):format(c, r * percent, g * percent, c % LEVELS * percent)
  end
  return table.concat(out)
end

-- Equal letters in a row, shortened.
local function run_of(letter, n)
  if n > 3 then return ("!%d%s"):format(n, letter) end
  return letter:rep(n)
end

-- Six rows of pixels: a line of letters for each colour in them.
local function band(img, top)
  local pixels = img:pixels()
  local width = img.width
  local bits_of = {}
  local order = {}
  for y = top, math.min(top + 5, img.height - 1) do
    for x = 0, width - 1 do
      local c = colour_of(pixels + 3 * (y * width + x))
      if not bits_of[c] then
        bits_of[c] = {}
        order[#order + 1] = c
      end
      bits_of[c][x] = (bits_of[c][x] or 0) + 2 ^ (y - top)
    end
  end
  local lines = {}
  for i, c in ipairs(order) do
    local out = { "#" .. c }
    local last, n = nil, 0
    for x = 0, width - 1 do
      local letter = string.char(63 + (bits_of[c][x] or 0))
      if letter ~= last then
        if last then out[#out + 1] = run_of(last, n) end
        last = letter
        n = 0
      end
      n = n + 1
    end
    out[#out + 1] = run_of(last, n)
    lines[i] = table.concat(out)
  end
  return table.concat(lines, "$")
end

function M.sixel(img)
  local out = { ('\27P0;1q"1;1;%d;%d'):format(img.width, img.height), palette() }
  for top = 0, img.height - 1, 6 do out[#out + 1] = band(img, top) .. "-" end
  return table.concat(out) .. "\27\\\n"
end

-- ---- showing ----
local function fitted(img)
  local longer = math.max(img.width, img.height)
  local factor = SIDE / longer
  if factor > 1 then factor = math.max(1, math.floor(factor)) end
  local w = math.max(1, math.floor(img.width * factor + 0.5))
  local h = math.max(1, math.floor(img.height * factor + 0.5))
  return img:resize(w, h, "bicubic")
end

local folder                    -- of this session's files
local count = 0

local function new_path()
  if not folder then
    local place = os.getenv "TMPDIR" or "/tmp"
    folder = require("posix.stdlib").mkdtemp(place .. "/segzero-XXXXXX")
    if not folder then error("show: no folder can be made in " .. place, 0) end
  end
  count = count + 1
  return ("%s/image_%d.png"):format(folder, count)
end

local function png_of(img)
  local path = new_path()
  img:save(path)
  local file = assert(io.open(path, "rb"))
  local bytes = file:read "*a"
  file:close()
  os.remove(path)
  return bytes
end

-- Asked at the first image, because a terminal may have to be asked.
function methods:find_kind()
  if not self.asked then
    self.asked = true
    self.found = self.kind() or nil
  end
  return self.found
end

function methods:is_inline() return self:find_kind() ~= nil end

function methods:show(img)
  local kind = self:find_kind()
  if not kind then
    local path = new_path()
    img:save(path)
    self.write(("%s: %s\n"):format(tostring(img), path))
    return
  end
  local small = fitted(img)
  local text
  if kind == "sixel" then
    text = M.sixel(small)
  else
    text = M[kind](png_of(small))
  end
  small:free()
  self.write(text)
end

return M
