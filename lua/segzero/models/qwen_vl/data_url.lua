-- data_url.lua - images inside a text: data:image/png;base64,...
--
--   local img = data_url.load(text)     an image object; the caller frees it
--   data_url.is(text)                   does the text begin with "data:"?
--
-- The bytes go to a file in memory, which image.lua reads like any other. Errors have no position
-- and show the front of the text only. Leaves out: other encodings than base64.

local ffi = require "ffi"
local core = require "segzero.core.ffi"
local image = require "segzero.formats.image"

ffi.cdef [[
int memfd_create(const char *name, unsigned int flags);
ssize_t write(int fd, const void *p, size_t n);
int close(int fd);
]]

local M = {}

function M.is(text) return text:sub(1, 5) == "data:" end

-- ---- base64 ----
local ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
local BAD, SPACE, PAD = 255, 254, 253
local value = ffi.new "uint8_t[256]"
for i = 0, 255 do value[i] = BAD end
for i = 1, #ALPHABET do value[ALPHABET:byte(i)] = i - 1 end
for _, c in ipairs { 9, 10, 13, 32 } do value[c] = SPACE end
value[("="):byte()] = PAD

-- The bytes and their count; nil and the place of a wrong character.
local function decode(text, first)
  local n = #text
  local source = ffi.cast("const uint8_t *", text)
  local out = ffi.new("uint8_t[?]", (n - first + 4) * 3 / 4 + 3)
  local bits, held, count = 0, 0, 0
  for i = first - 1, n - 1 do
    local v = value[source[i]]
    if v < 64 then
      bits = bits * 64 + v
      held = held + 6
      if held >= 8 then
        held = held - 8
        local byte = math.floor(bits / 2 ^ held)
        bits = bits - byte * 2 ^ held
        out[count] = byte
        count = count + 1
      end
    elseif v == BAD then
      return nil, i + 1
    elseif v == PAD then
      break
    end
  end
  return out, count
end

-- ---- the image ----
local function shown(text)
  if #text > 40 then text = text:sub(1, 40) .. "..." end
  return (text:gsub("%c", "?"))
end

local function read(bytes, count)
  local fd = ffi.C.memfd_create("image", 1)          -- closed when a program is started
  if fd < 0 then error("no file in memory can be made", 0) end
  local path = "/proc/self/fd/" .. fd
  local ok, img = pcall(function()
    local done = 0
    while done < count do
      local n = tonumber(ffi.C.write(fd, bytes + done, count - done))
      if n <= 0 then error("the file in memory cannot be written", 0) end
      done = done + n
    end
    return image.load(path)
  end)
  ffi.C.close(fd)
  if ok then return img end
  if core.is_interrupt(img) then error(img, 0) end
  local why = core.plain(img)
  if why:sub(1, #path + 2) == path .. ": " then why = why:sub(#path + 3) end
  error(why, 0)
end

function M.load(text)
  local _, last = text:sub(1, 200):find ";base64,"
  if not last then
    error(("%s: of data URLs only those with ;base64, are read"):format(shown(text)), 0)
  end
  local bytes, count = decode(text, last + 1)
  if not bytes then
    error(("%s: character %d is not base64"):format(shown(text), count), 0)
  end
  local ok, img = pcall(read, bytes, count)
  if ok then return img end
  if core.is_interrupt(img) then error(img, 0) end
  error(("%s (%d bytes): %s"):format(shown(text), count, tostring(img)), 0)
end

return M
