-- mask.lua - a mask in any form that a data set may have, as u8 [height, width] of 0 and 1.
--
--   mask.read(value, { folder =, width =, height =, empty = }) -> tensor that the caller frees;
--                                            empty = true: a mask with nothing inside is no error
--   mask.form(value) -> "file", "run lengths", "polygons", "pixels", "stored", "union" or
--                       "nothing"; else nil and what it is
--   mask.fault(value, { width =, height = }) -> nil, or why reading it would fail; for other forms
--                                            than files, and mostly without drawing
--   mask.file(value) -> the path if it is a file's, else nil
--   mask.facts(path) -> width, height, whether it is empty, of a mask's file
--
-- value, of the column `mask`:
--   "masks/a.png"                        an image; whatever is not 0 is inside
--                                        (runtime/io/image/mask.c)
--   {size = {h, w}, counts = text}       COCO's run lengths, compressed or as a list
--   {{x, y, x, y, ...}, ...}             COCO's polygons, united; or the points of one polygon
--   {{false, true, ...}, ...}            rows of pixels; numbers too if they fit the image's size
--   {{size =, counts =}, ...}            several run lengths, united
--   {draw = f(out, width, height)}       a mask that its source draws into u8 [height, width] of
--                                        zeros; raises why it cannot
--   {union = {value, ...}}               the masks of several objects, united
--   {nothing = true}                     no pixel, of a row whose question names nothing
-- or one of the first that are lists or objects as JSON in a string. folder: where a relative path
-- starts. width and height: the image's; a mask of another size is an error, and so is one with
-- nothing inside but the last form.
-- Errors have no position.
-- Leaves out: several objects in one mask (label maps count as one), writing masks.

local cjson = require "cjson"
local core = require "segzero.core.ffi"
local ffi = require "ffi"
local rle = require "segzero.formats.rle"
local tensor = require "segzero.core.tensor"

local M = {}

local C = core.C
local side = ffi.new "int[2]"

local function fail(message, ...) error(message:format(...), 0) end

-- ---- the forms ----
-- JSON in a string -> its value; anything else is returned as it is.
local function decoded(value)
  if type(value) ~= "string" or not value:find "^%s*[%[{]" then return value end
  local ok, result = pcall(cjson.decode, value)
  if ok and type(result) == "table" then return result end
  return value
end

local function list_form(value)
  local first = value[1]
  if type(first) == "number" then return "polygons" end
  if type(first) ~= "table" then
    return nil, ("a list of %s, expected polygons or rows of pixels"):format(type(first))
  end
  if type(first[1]) == "boolean" then return "pixels" end
  if first.counts ~= nil then return "union" end
  return "polygons"
end

local function form(value)
  if type(value) == "string" then return "file" end
  if type(value) ~= "table" then
    return nil, type(value) .. ", expected a string, an object or a list"
  end
  if type(value.draw) == "function" then return "stored" end
  if type(value.union) == "table" then return "union" end
  if value.nothing == true then return "nothing" end
  if value.counts ~= nil or value.size ~= nil then
    local kind = type(value.counts)
    if kind ~= "string" and kind ~= "table" then return nil, "an object without counts" end
    if type(value.size) ~= "table" or #value.size ~= 2 then
      return nil, "an object without size [height, width]"
    end
    return "run lengths"
  end
  if value[1] == nil then return nil, "an object or list without run lengths or polygons" end
  return list_form(value)
end

function M.form(value) return form(decoded(value)) end

function M.file(value)
  value = decoded(value)
  if type(value) == "string" then return value end
  return nil
end

function M.in_folder(folder, path)
  if path:sub(1, 1) == "/" or not folder then return path end
  return folder .. "/" .. path
end

-- ---- drawing ----
local function check_size(name, width, height, wanted)
  if width == wanted.width and height == wanted.height then return end
  fail("%s has %s x %s pixels, the image %d x %d", name, tostring(width), tostring(height),
    wanted.width, wanted.height)
end
M.check_size = check_size

local draw = {}

function draw.file(path, options, out, name)
  local pixels = core.call(C.sz_mask_load(M.in_folder(options.folder, path), side, side + 1))
  local ok, why = pcall(check_size, name, side[0], side[1], options)
  if ok then ffi.copy(out, pixels, options.width * options.height) end
  C.sz_mask_free(pixels)
  if not ok then error(why, 0) end
end

function draw.stored(value, options, out) value.draw(out, options.width, options.height) end

draw["run lengths"] = function(value, options, out, name)
  check_size(name, value.size[2], value.size[1], options)
  local counts = value.counts
  if type(counts) == "string" then counts = rle.counts(counts) end
  rle.draw_counts(counts, options.width, options.height, out)
end

function draw.pixels(value, options, out)
  rle.draw_rows(value, options.width, options.height, out)
end

-- Lists of numbers are rows of pixels if there is one for each row of the image, as long as it.
local function are_rows(value, options)
  if #value ~= options.height then return false end
  for _, row in ipairs(value) do
    if type(row) ~= "table" or #row ~= options.width then return false end
  end
  return true
end

-- The polygons of a value; nil if it holds rows of pixels.
local function polygons_of(value, options)
  if type(value[1]) == "number" then value = { value } end
  if are_rows(value, options) then return nil end
  for i, points in ipairs(value) do
    if type(points) ~= "table" then fail("polygon %d is a %s", i, type(points)) end
  end
  return value
end

function draw.polygons(value, options, out)
  local polygons = polygons_of(value, options)
  if not polygons then return draw.pixels(value, options, out) end
  for _, points in ipairs(polygons) do
    rle.draw_polygon(points, options.width, options.height, out)
  end
end

function draw.union(value, options, out, name)
  for _, part in ipairs(value.union or value) do
    local kind, why = form(part)
    if not kind then fail("a part of the mask is %s", why) end
    draw[kind](part, options, out, name)
  end
end

function draw.nothing() end

-- ---- reading ----
local function is_empty(data, pixels)
  for i = 0, pixels - 1 do
    if data[i] ~= 0 then return false end
  end
  return true
end

-- What a message calls a mask.
local function name_of(value, kind)
  if kind == "file" then return "the mask " .. value end
  if kind == "stored" or kind == "union" then return "the mask" end
  return ("the mask (%s)"):format(kind)
end

function M.empty(name) return name .. " is empty: it has no pixel but 0" end

function M.read(value, options)
  value = decoded(value)
  local kind, why = form(value)
  if not kind then error("the mask is " .. why, 0) end
  local name = name_of(value, kind)
  local t = tensor.zeros({ options.height, options.width }, { dtype = "u8" })
  local out = tensor.data(t)
  local ok, reason = pcall(draw[kind], value, options, out, name)
  local may_be_empty = options.empty or kind == "nothing"
  if ok and not may_be_empty and is_empty(out, options.width * options.height) then
    ok = false
    reason = M.empty(name)
  end
  if ok then return t end
  t:free()
  reason = tostring(reason):gsub("^[^:%s]*%.lua:%d+: ", "")
  if reason:sub(1, #name) ~= name and kind ~= "file" then reason = name .. ": " .. reason end
  error(reason, 0)
end

-- ---- without drawing ----
local holds = {}

holds["run lengths"] = function(value, options)
  local counts = value.counts
  if type(counts) == "string" then counts = rle.counts(counts) end
  return rle.area(counts, options.width, options.height) > 0
end

function holds.polygons(value, options)
  local found = false
  for _, points in ipairs(polygons_of(value, options)) do
    local is_empty_one = rle.is_empty_polygon(points, options.width, options.height)
    found = found or not is_empty_one
  end
  return found
end

function holds.union(value, options)
  local found = false
  for _, part in ipairs(value.union or value) do
    local size = part.size
    if size then check_size("the mask", size[2], size[1], options) end
    local is_full = holds[form(part)](part, options)
    found = found or is_full
  end
  return found
end

function holds.nothing() return true end

-- Reads the mask after all if it seems to be at fault, for the message.
function M.fault(value, options)
  value = decoded(value)
  local ok, is_good = pcall(function() return holds[form(value)](value, options) end)
  local is_sized = value.size == nil
    or (value.size[1] == options.height and value.size[2] == options.width)
  if ok and is_good and is_sized then return nil end
  local read, t = pcall(M.read, value, options)
  if not read then return t end
  t:free()
end

function M.facts(path)
  local inside = core.call(C.sz_mask_peek(path, side, side + 1))
  return side[0], side[1], inside == 0
end

return M
