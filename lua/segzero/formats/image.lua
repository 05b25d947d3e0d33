-- image.lua - images as Lua objects: 8-bit RGB, row-major [h, w, 3], held in C memory; masks.
--
--   local img = image.load(path)                  PNG, JPEG, WebP, BMP, GIF or PNM, recognised by
--                                                 its content
--   img.width, img.height
--   img:resize(w, h, "bilinear" | "bicubic")      a new image, bit for bit as Pillow does
--                                                 (default "bicubic"); "area": as OpenCV's
--                                                 INTER_AREA does
--   img:save(path)                                .png, .jpg or .jpeg; never a partial file
--   img:totensor() -> u8 tensor [h, w, 3]         image.from_tensor(t) does the reverse
--   img:show()                                    at the prompt: in the terminal, or a file's path
--   img:pixels() -> uint8_t *, valid while img is alive
--   img:free()                                    frees the memory at once; otherwise the collector
--                                                 does
--   image.info(path) -> {width=, height=, format=, orientation=}
--                                                 from the header, without decoding: the upright
--                                                 image's size; "png", "jpeg", "webp", "gif", "bmp"
--                                                 or "pnm"; EXIF's orientation, 1 to 8 (from 5 on
--                                                 the stored rows are the columns)
--   image.size(path) -> w, h                      the same size
--   image.load_mask(path) -> u8 tensor [h, w]     1 inside, 0 outside; anything but 0 in the file
--                                                 is inside. The rules for palettes, alpha and
--                                                 lossy files are in runtime/io/image/mask.c
--   image.decode(bytes [, name])                  the same of a file's bytes: a string. `name`
--   image.decode_info(bytes [, name])             stands for the path in messages; default
--   image.decode_mask(bytes [, name])             "image bytes"
--   image.new(w, h)                               black
--   image.write_png(path, w, h, channels, p)      any 8-bit pixels, 1 or 3 channels
--
-- An image is turned upright as EXIF says, and what is transparent is put on white, as the
-- processors of transformers 5 do. Leaves out: alpha, drawing, cropping, colour profiles.

local ffi = require "ffi"
local core = require "segzero.core.ffi"
local options = require "segzero.core.options"

local C = core.C
local check = core.check

local M = {}
local Image = {}
local mt = { __index = Image }

local FILTER = { bilinear = 0, bicubic = 1, area = 2 }
-- A full collection starts after this many bytes of new images.
local COLLECT_AFTER = 256 * 2 ^ 20

-- The collector does not see C memory. Without these collections, a loop that forgets free() would
-- keep every image it loaded.
local made = 0
local function wrap(ptr)
  local w = C.sz_image_width(ptr)
  local h = C.sz_image_height(ptr)
  made = made + w * h * 3
  local self = setmetatable({ ptr = ffi.gc(ptr, C.sz_image_free), width = w, height = h }, mt)
  if made > COLLECT_AFTER then
    made = 0
    collectgarbage()
  end
  return self
end

M.wrap = wrap       -- takes over a C image

function M.is_image(x) return getmetatable(x) == mt end

local function live(self, level)
  if getmetatable(self) ~= mt then error("an image is expected, got " .. type(self), level + 1) end
  if self.ptr == nil then error("this image has been freed", level + 1) end
  return self.ptr
end

local function whole(x, name, level)
  if type(x) ~= "number" or x % 1 ~= 0 or x < 1 or x > 2 ^ 30 then
    error(("%s must be a whole number from 1, got %s"):format(name, tostring(x)), level + 1)
  end
  return x
end

local function path_of(path, level)
  if type(path) ~= "string" then error("a file name is expected, got " .. type(path), level + 1) end
  return path
end

function M.load(path)
  return wrap(check(C.sz_image_load(path_of(path, 2)), 2))
end

function M.new(width, height)
  return wrap(check(C.sz_image_new(whole(width, "width", 2), whole(height, "height", 2)), 2))
end

local side = ffi.new("int[2]")

function M.size(path)
  check(C.sz_image_size(path_of(path, 2), side, side + 1), 2)
  return side[0], side[1]
end

local header

local function info_of(raw)
  return {
    width = raw.width, height = raw.height, format = ffi.string(raw.format),
    orientation = raw.orientation,
  }
end

function M.info(path)
  header = header or ffi.new "sz_image_header"
  check(C.sz_image_info(path_of(path, 2), header), 2)
  return info_of(header)
end

-- A tensor of the mask whose size is in `side`; frees the mask.
local function mask_tensor(mask)
  local tensor = require "segzero.core.tensor"
  local width = side[0]
  local height = side[1]
  local ok, t = pcall(tensor.empty, { height, width }, { dtype = "u8" })
  if ok then ffi.copy(tensor.data(t), mask, width * height) end
  C.sz_mask_free(mask)
  if not ok then error(t, 0) end
  return t
end

function M.load_mask(path)
  return mask_tensor(check(C.sz_mask_load(path_of(path, 2), side, side + 1), 2))
end

-- ---- from bytes in memory ----
local DEFAULT_NAME = "image bytes"

-- The name for messages; checks both arguments.
local function name_of(bytes, name, level)
  if type(bytes) ~= "string" then
    error("the bytes of an image file are expected, got " .. type(bytes), level + 1)
  end
  if name ~= nil and type(name) ~= "string" then
    error("the image's name must be a string, got " .. type(name), level + 1)
  end
  return name or DEFAULT_NAME
end

function M.decode(bytes, name)
  name = name_of(bytes, name, 2)
  return wrap(check(C.sz_image_load_bytes(bytes, #bytes, name), 2))
end

function M.decode_info(bytes, name)
  name = name_of(bytes, name, 2)
  header = header or ffi.new "sz_image_header"
  check(C.sz_image_info_bytes(bytes, #bytes, name, header), 2)
  return info_of(header)
end

function M.decode_mask(bytes, name)
  name = name_of(bytes, name, 2)
  return mask_tensor(check(C.sz_mask_load_bytes(bytes, #bytes, name, side, side + 1), 2))
end

-- The same of `count` bytes at a pointer, for readers of tables. Errors have no position.
M.memory = {}

function M.memory.decode(pointer, count, name)
  return wrap(core.call(C.sz_image_load_bytes(pointer, count, name)))
end

function M.memory.size(pointer, count, name)
  header = header or ffi.new "sz_image_header"
  core.call(C.sz_image_info_bytes(pointer, count, name, header))
  return header.width, header.height
end

function M.memory.decode_mask(pointer, count, name)
  return mask_tensor(core.call(C.sz_mask_load_bytes(pointer, count, name, side, side + 1)))
end

function M.write_png(path, width, height, channels, pixels)
  check(C.sz_image_write_png(path_of(path, 2), whole(width, "width", 2), whole(height, "height", 2),
    channels, pixels), 2)
end

function M.from_tensor(t)
  local tensor = require "segzero.core.tensor"
  if not tensor.is_tensor(t) then
    error("an image is made of a u8 tensor [h, w, 3], not a " .. type(t), 2)
  end
  local shape = t:shape()
  if t:dtype() ~= "u8" or #shape ~= 3 or shape[3] ~= 3 then
    local sizes = table.concat(shape, ", ")
    error(("an image is made of a u8 tensor [h, w, 3], not %s [%s]"):format(t:dtype(), sizes), 2)
  end
  local img = M.new(shape[2], shape[1])
  ffi.copy(C.sz_image_pixels(img.ptr), tensor.data(t), shape[1] * shape[2] * 3)
  return img
end

function Image:resize(width, height, filter)
  local ptr = live(self, 2)
  local code = FILTER[filter == nil and "bicubic" or filter]
  if not code then
    local given = type(filter) == "string" and filter or "a " .. type(filter)
    error(("resize: the filter is %s, expected bilinear, bicubic or area"):format(given), 2)
  end
  return wrap(check(C.sz_image_resize(ptr, whole(width, "width", 2), whole(height, "height", 2),
    code), 2))
end

function Image:save(path)
  check(C.sz_image_save(live(self, 2), path_of(path, 2)), 2)
end

function Image:pixels() return C.sz_image_pixels(live(self, 2)) end

function Image:totensor()
  local ptr = live(self, 2)
  local tensor = require "segzero.core.tensor"
  local t = tensor.empty({ self.height, self.width, 3 }, { dtype = "u8" })
  ffi.copy(tensor.data(t), C.sz_image_pixels(ptr), self.width * self.height * 3)
  return t
end

-- The prompt sets image.on_show (repl/pictures.lua).
function Image:show()
  live(self, 2)
  if not M.on_show then error("show: this works at the prompt; img:save(path) writes a file", 2) end
  M.on_show(self)
end

function Image:free()
  if self.ptr == nil then return end
  C.sz_image_free(ffi.gc(self.ptr, nil))
  self.ptr = nil
end

local MOST = { load = 1, new = 2, size = 1, info = 1, load_mask = 1, from_tensor = 1,
  decode = 2, decode_info = 2, decode_mask = 2 }
for name, most in pairs(MOST) do
  M[name] = options.at_most("image." .. name, most, M[name])
end
options.limit(Image, { resize = 3, save = 1, show = 0, pixels = 0, totensor = 0, free = 0 })

function mt:__tostring()
  local text = ("image %d x %d"):format(self.width, self.height)
  if self.ptr == nil then return text .. " (freed)" end
  return text
end

return M
