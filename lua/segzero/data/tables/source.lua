-- source.lua - files of Parquet or Arrow as a data source.
--
--   local set = source.open("path/to/folder", { split = "train" })    see names.lua and columns.lua
--   set:meta(i)         as in jsonl.lua, but `image` is a text for messages, size() is the image's
--                       {width, height} or nil and why, and `mask` draws itself (formats/mask.lua)
--   set.notes           {text, ...}: what of the files is not used
--
-- Files are mapped and read a row at a time; opening reads their metadata alone. A row's image is
-- bytes in the table, or a path relative to options.image_dir, else to the file. Without a
-- solution, the box around the mask is the truth. Errors name file, row and column.
-- Leaves out: several images in a row; rows of files whose columns differ.

local chat = require "segzero.data.chat"
local checksum = require "segzero.core.checksum"
local columns_of = require "segzero.data.tables.columns"
local core = require "segzero.core.ffi"
local data_url = require "segzero.models.qwen_vl.data_url"
local ffi = require "ffi"
local image = require "segzero.formats.image"
local mask_of = require "segzero.formats.mask"
local names = require "segzero.data.tables.names"
local rows = require "segzero.data.rows"
local tensor = require "segzero.core.tensor"
local value_text = require "segzero.data.tables.value_text"

local M = {}

local LONGEST_PATH = 4096
local EDGE = 2 ^ 16             -- bytes at both ends of a file that its fingerprint has

local methods = {}
local mt = { __index = methods }

-- ---- files ----
local function open_file(path)
  if path:find "%.parquet$" then return require("segzero.formats.parquet").open(path) end
  return require("segzero.formats.arrow").open(path)
end

local function same_columns(file, other)
  for _, column in ipairs(other.columns) do
    if not file:kind(column.name) then return column.name end
  end
end

-- Opens all files of the set and counts their rows.
local function open_files(self, list)
  for i, path in ipairs(list) do
    local file = open_file(path)
    self.files[i] = file
    self.starts[i] = self.total
    self.total = self.total + file.count
    local missing = same_columns(file, self.files[1])
    if missing then
      error(("%s has no column '%s', which %s has"):format(path, missing, list[1]), 0)
    end
  end
  if self.total == 0 then error(("%s has no rows"):format(self.name), 0) end
end

-- The file of row i, and the row's number in it.
local function place_of(self, i)
  local low = 1
  local high = #self.files
  while low < high do
    local middle = math.ceil((low + high) / 2)
    if self.starts[middle] < i then low = middle else high = middle - 1 end
  end
  return self.files[low], i - self.starts[low]
end

local function where_of(file, row) return ("%s row %d"):format(file.path, row) end

function methods:where(i) return where_of(place_of(self, i)) end

-- f(...) with the row's place and the column in front of an error.
local function at(file, row, column, f, ...)
  local ok, a, b = pcall(f, ...)
  if ok then return a, b end
  if core.is_interrupt(a) then error(a, 0) end
  local why = core.plain(a)
  local front = ("%s, column '%s'"):format(where_of(file, row), column)
  if why:sub(1, #file.path) == file.path then error(why, 0) end
  error(("%s: %s"):format(front, why), 0)
end

-- ---- values ----
local function text_of(file, row, column)
  local whole = at(file, row, column, file.value, file, row, column)
  local value, kind = columns_of.truth(whole, file:kind(column))
  if value ~= nil then return at(file, row, column, value_text.of, value, kind) end
  error(("%s: the column '%s' is null, expected a string"):format(where_of(file, row), column), 0)
end

local function id_of(file, row, column)
  local value = column and file:value(row, column)
  if value == nil then return nil end
  return at(file, row, column, value_text.of, value, file:kind(column))
end

-- ---- images ----
-- Whether these bytes are a path or a data URL and no image file.
local function is_path(pointer, count)
  if count == 0 or count > LONGEST_PATH then
    return count > LONGEST_PATH and ffi.string(pointer, 5) == "data:"
  end
  for i = 0, count - 1 do
    if pointer[i] < 32 then return false end
  end
  return true
end

local function from_path(self, text, of_file, of_url)
  if data_url.is(text) then return of_url(text) end
  return of_file(mask_of.in_folder(self.image_dir, text))
end

-- What `f` makes of a row's image: f.bytes(pointer, count, name), f.file(path), f.url(text).
-- f.most: how many of the bytes it needs.
local function with_image(self, file, row, f)
  local column = self.roles.image
  local is_struct = self.roles.image_form == "struct"
  local function use(pointer, count, images)
    if images and images > 1 then error(("%d images, and a row has one"):format(images), 0) end
    if not is_path(pointer, count) then
      return { f.bytes(pointer, count, ("the image of %d bytes"):format(count)) }
    end
    return { from_path(self, ffi.string(pointer, count), f.file, f.url) }
  end
  local function read()
    local path = { column }
    if is_struct then path[2] = "bytes" end
    local found = file:bytes(row, path, use, f.most)
    if not found and is_struct and self.has_paths then
      found = file:bytes(row, { column, "path" }, use)
    end
    if not found then error("there is no image: it is null", 0) end
    return found
  end
  return at(file, row, column, read)
end

local function size_of_url(text)
  local img = data_url.load(text)
  local width = img.width
  local height = img.height
  img:free()
  return width, height
end

-- How an image's size is read. facts: file_facts.lua, which keeps sizes of files.
local function size_with(facts)
  local function of_file(path)
    local fact, why = facts:image(path)
    if not fact then error(why, 0) end
    return fact.width, fact.height
  end
  return { bytes = image.memory.size, file = facts and of_file or image.size, url = size_of_url }
end

-- The same from the front of the bytes; an error if that is not enough.
local FRONT = { bytes = image.memory.size, most = 2 ^ 16 }
function FRONT.file() error("a path", 0) end
FRONT.url = FRONT.file

local function read_size(self, file, row, facts)
  local ok, size = pcall(with_image, self, file, row, FRONT)
  if ok then return size end
  if core.is_interrupt(size) then error(size, 0) end
  return with_image(self, file, row, size_with(facts))
end

-- The image as it is stored, for prefetching: a path, or its bytes.
local STORED = {
  bytes = function(pointer, count, name)
    return { bytes = ffi.string(pointer, count), name = name }
  end,
  file = function(path) return path end,
  url = function() return nil end,
}
local LOAD = { bytes = image.memory.decode, file = image.load, url = data_url.load }

-- ---- masks ----
local function draw_pixels(file, row, column)
  return function(out, width, height)
    local found = at(file, row, column, file.mask, file, row, column, function(mask)
      mask.draw(out, width, height)
      return true
    end)
    if not found then error(("%s: the mask is null"):format(where_of(file, row)), 0) end
  end
end

-- A mask as the bytes of an image file.
local function draw_file(file, row, path)
  local function read(out, width, height)
    return file:bytes(row, path, function(pointer, count)
      local t = image.memory.decode_mask(pointer, count, ("the mask of %d bytes"):format(count))
      local shape = t:shape()
      local ok, why = pcall(mask_of.check_size, "the mask", shape[2], shape[1],
        { width = width, height = height })
      if ok then ffi.copy(out, tensor.data(t), width * height) end
      t:free()
      if not ok then error(why, 0) end
      return true
    end)
  end
  return function(out, width, height)
    if at(file, row, path[1], read, out, width, height) then return end
    error(("%s: the mask is null"):format(where_of(file, row)), 0)
  end
end

-- The mask of a row in a form of formats/mask.lua, or nil. column: its name, or nil.
local function mask_value(file, row, column)
  if not column then return nil end
  local kind = file:kind(column)
  if columns_of.is_pixels(kind) then return { draw = draw_pixels(file, row, column) } end
  if kind.form == "struct" and kind.fields.bytes then
    return { draw = draw_file(file, row, { column, "bytes" }) }
  end
  local value = at(file, row, column, file.value, file, row, column)
  if type(value) == "string" and value:find "^[%z\1-\31\137\255]" then
    return { draw = draw_file(file, row, { column }) }
  end
  return value
end

-- ---- rows ----
function methods:count() return self.total end

-- The image's size, as row_check.lua reads facts.
local function size_reader(self, file, row)
  return function(facts)
    local ok, size = pcall(read_size, self, file, row, facts)
    if ok then return { width = size[1], height = size[2] } end
    if core.is_interrupt(size) then error(size, 0) end
    local why = core.plain(size)
    local where = where_of(file, row)
    if why:sub(1, #where) == where then why = why:sub(#where + 1):gsub("^[:,] ", "") end
    return nil, why
  end
end

-- The question, and what else the messages say.
local function add_chat(meta, file, row, roles)
  local value = at(file, row, roles.problem, file.value, file, row, roles.problem)
  local found, why = chat.read(type(value) == "table" and value or {})
  if not found then
    error(("%s, column '%s': %s"):format(meta.where, roles.problem, why), 0)
  end
  meta.problem = found.problem
  meta.system_prompt = found.system_prompt
  meta.solution = found.solution
  if roles.solution then meta.solution = text_of(file, row, roles.solution) end
  if meta.solution == nil and not roles.mask then
    error(("%s, column '%s': no answer follows the question, and there is no column for it"):format(
      meta.where, roles.problem), 0)
  end
  meta.solution = meta.solution or ""
end

function methods:meta(i)
  rows.check_number(self, i, 2)
  local file, row = place_of(self, i)
  local roles = self.roles
  local meta = { where = where_of(file, row), index = i, folder = self.folder, columns = {} }
  for _, name in ipairs(roles.others) do
    meta.columns[name] = at(file, row, name, file.value, file, row, name)
  end
  if roles.is_chat then
    add_chat(meta, file, row, roles)
  else
    meta.problem = text_of(file, row, roles.problem)
    meta.solution = roles.solution and text_of(file, row, roles.solution) or ""
  end
  meta.id = id_of(file, row, roles.id)
  meta.columns.id = meta.id
  meta.columns.problem = meta.problem
  meta.columns.solution = meta.solution
  meta.image = ("in the column '%s'"):format(roles.image)
  meta.columns.image = meta.image
  meta.size = size_reader(self, file, row)
  meta.mask = mask_value(file, row, self.roles.mask)
  meta.ignore_mask = mask_value(file, row, self.roles.ignore_mask)
  return meta
end

function methods:image(i)
  rows.check_number(self, i, 2)
  local file, row = place_of(self, i)
  return with_image(self, file, row, STORED)[1]
end

-- read: the row's image if it has been read already.
function methods:row(i, read)
  rows.check_number(self, i, 2)
  local meta = self:meta(i)
  local file, row = place_of(self, i)
  local img = read or with_image(self, file, row, LOAD)[1]
  local options = { folder = self.folder, width = img.width, height = img.height }
  meta.columns.image = nil
  return rows.new {
    id = meta.id or tostring(i), index = i, problem = meta.problem, solution = meta.solution,
    image = img, mask = rows.mask_maker(meta.where, meta.mask, options),
    ignore_mask = rows.mask_maker(meta.where, meta.ignore_mask, options),
    system_prompt = meta.system_prompt, columns = meta.columns,
  }
end

-- ---- the set ----
-- Sizes and both ends of all files: the metadata, without images.
local function edges(path)
  local file, reason = io.open(path, "rb")
  if not file then error(reason, 0) end
  local first = file:read(EDGE) or ""
  local size = file:seek "end"
  file:seek("set", math.max(0, size - EDGE))
  local last = file:read(EDGE) or ""
  file:close()
  return ("%d %s %s"):format(size, checksum.text(first), checksum.text(last))
end

function methods:paths()
  local list = {}
  for i, file in ipairs(self.files) do list[i] = file.path end
  return list
end

function methods:fingerprint()
  local list = {}
  for i, file in ipairs(self.files) do list[i] = edges(file.path) end
  return checksum.text(table.concat(list, "\n"))
end

function mt:__tostring() return ("data set %s (%d rows)"):format(self.name, self.total) end

function M.open(name, options)
  options = options or {}
  local found = names.find(name, options.split)
  local shown = name
  if found.split and not name:find("@", 1, true) then shown = name .. "@" .. found.split end
  local self = setmetatable({ name = shown, folder = found.folder, files = {}, starts = {},
    total = 0 }, mt)
  self.image_dir = rows.image_dir(options, self.folder)
  open_files(self, found.files)
  local first = self.files[1]
  self.roles = columns_of.roles(first, options)
  self.notes = self.roles.notes
  for _, file in ipairs(self.files) do self.notes[#self.notes + 1] = file.note end
  local kind = first:kind(self.roles.image)
  if kind.form == "list" then kind = kind.element end
  self.has_paths = kind.fields ~= nil and kind.fields.path ~= nil
  return self
end

return M
