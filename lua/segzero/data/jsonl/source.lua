-- source.lua - a folder with data.jsonl and images, in Seg-Zero's columns, as a data source.
--
--   local set = jsonl.open "path/to/folder"        or "path/to/file.jsonl"; also data.json or a
--                                                  .json file: a list of objects, or lines
--   local set = jsonl.open(name, { check = false })   lines are read when they are needed;
--                                                  otherwise the first bad line is an error now
--   set:meta(i)    what is known of row i without its image, for checking all rows:
--                  {where = "file:line", index = i, id =, problem =, solution =, image = path,
--                  mask = value, folder =, columns =}. The id is nil if the row states none
--
-- Columns: problem, solution, image (a path relative to the folder or to options.image_dir, or
-- bytes in base64: see line.lua), and optionally id and mask (any form that formats/mask.lua
-- reads); options has prompt_key, answer_key and image_key if they are named otherwise. A row whose
-- image is no file has meta.size (tables/source.lua). All rows have a mask or none has. Other
-- columns are kept in row.columns. A bad line, image or mask is an error that names file and line.
-- Memory: 16 bytes a row; lines are read and decoded again when they are needed.
-- Leaves out: several images in a row.

local checksum = require "segzero.core.checksum"
local core = require "segzero.core.ffi"
local image = require "segzero.formats.image"
local data_url = require "segzero.models.qwen_vl.data_url"
local files = require "segzero.core.files"
local json_line = require "segzero.data.jsonl.line"
local json_list = require "segzero.data.jsonl.list"
local lines_of = require "segzero.data.jsonl.lines"
local mistake = require "segzero.core.mistake"
local mask_of = require "segzero.formats.mask"
local rows = require "segzero.data.rows"

local M = {}

local KEPT = 256                -- decoded lines
local ASKED = 64                -- rows that say whether rows have masks
local LONG_LINE = 2 ^ 16        -- bytes; such lines, with masks in them, are decoded each time

local function read_lines(name, file)
  local open = lines_of.open
  if file:find "%.json$" and json_list.is_list(file) then open = json_list.open end
  local ok, list = pcall(open, file)
  if not ok and not files.exists(file) then
    mistake.raise(require("segzero.data.foreign_set").describe(name))
  end
  if not ok then error(("data set %s: %s"):format(name, core.plain(list)), 0) end
  if list:count() == 0 then error(file .. " has no rows", 0) end
  return list
end

-- ---- the set ----
local methods = {}
local mt = { __index = methods }

function methods:count() return self.lines:count() end

function methods:where(i) return ("%s:%d"):format(self.file, self.lines:number(i)) end

-- Whether rows have masks, as most of those that are asked say, and the first line that says so.
local function most_masks(self)
  if self.masks ~= nil then return self.masks, self.masks_line end
  local counts = { [true] = 0, [false] = 0 }
  local lines = {}
  local total = self:count()
  local asked = math.min(ASKED, total)
  for n = 0, asked - 1 do
    local i = 1 + math.floor(n * total / asked)
    local ok, columns = pcall(json_line.columns, self.lines:text(i), "", self.keys)
    if ok then
      local has_mask = columns.mask ~= nil
      counts[has_mask] = counts[has_mask] + 1
      lines[has_mask] = lines[has_mask] or self.lines:number(i)
    end
  end
  -- Of as many with as without, the first row decides.
  self.masks = counts[true] > counts[false]
  if counts[true] == counts[false] and lines[true] then self.masks = lines[true] < lines[false] end
  self.masks_line = lines[self.masks]
  return self.masks, self.masks_line
end

local function check_mask(self, columns, where)
  local has_masks, line = most_masks(self)
  if has_masks == (columns.mask ~= nil) then return end
  if columns.mask then
    error(("%s: the column 'mask' is present, but line %d has none"):format(where, line), 0)
  end
  error(("%s: the column 'mask' is missing, but line %d has one"):format(where, line), 0)
end

-- The size of an image that is no file, as row_check.lua reads facts.
local function size_of_url(url)
  return function()
    local ok, img = pcall(data_url.load, url)
    if not ok then
      if core.is_interrupt(img) then error(img, 0) end
      return nil, core.plain(img)
    end
    local size = { width = img.width, height = img.height }
    img:free()
    return size
  end
end

function methods:meta(i)
  local known = self.known[i]
  if known then return known end
  rows.check_number(self, i, 2)
  local where = self:where(i)
  local text = self.lines:text(i)
  local columns, id, system_prompt = json_line.columns(text, where, self.keys)
  check_mask(self, columns, where)
  local path, url = json_line.image(columns, where)
  known = { where = where, index = i, id = id, problem = columns.problem,
    solution = columns.solution, url = url, system_prompt = system_prompt,
    image = path and mask_of.in_folder(self.image_dir, path),
    size = url and size_of_url(url), mask = columns.mask, folder = self.folder, columns = columns }
  columns.image = path or "in base64"
  if #text > LONG_LINE then return known end
  -- A step asks for a row two or three times: for its image's path, and for itself.
  if self.n_known == KEPT then
    self.known = {}
    self.n_known = 0
  end
  self.known[i] = known
  self.n_known = self.n_known + 1
  return known
end

function methods:paths() return { self.file } end

-- Changes with the lines, not with the place of the file.
function methods:fingerprint() return checksum.file(self.file) end

function methods:image(i)
  rows.check_number(self, i, 2)
  return self:meta(i).image
end

local function load_image(meta, where)
  local ok, img
  if meta.url then
    ok, img = pcall(data_url.load, meta.url)
  else
    ok, img = pcall(image.load, meta.image)
  end
  if ok then return img end
  if core.is_interrupt(img) then error(img, 0) end
  -- The path is the row's, and may hold anything.
  error(("%s: %s"):format(where, (core.plain(img):gsub("%c", "?"))), 0)
end

-- read: the row's image if prefetching has read it already.
function methods:row(i, read)
  rows.check_number(self, i, 2)
  local meta = self:meta(i)
  local img = read or load_image(meta, meta.where)
  local options = { folder = meta.folder, width = img.width, height = img.height }
  local columns = {}
  for name, value in pairs(meta.columns) do columns[name] = value end
  return rows.new {
    id = meta.id or tostring(i), index = i, problem = meta.problem, solution = meta.solution,
    image = img, mask = rows.mask_maker(meta.where, meta.mask, options),
    ignore_mask = rows.mask_maker(meta.where, meta.columns.ignore_mask, options),
    system_prompt = meta.system_prompt, columns = columns,
  }
end

function mt:__tostring() return ("data set %s (%d rows)"):format(self.name, self:count()) end

function M.open(name, options)
  local file = name
  if not name:match "%.jsonl?$" then
    file = name .. "/data.jsonl"
    if not files.exists(file) and files.exists(name .. "/data.json") then
      file = name .. "/data.json"
    end
  end
  local self = { name = name, file = file, folder = file:match "^(.*)/[^/]*$" or ".",
    lines = read_lines(name, file), known = {}, n_known = 0, keys = options or {} }
  self.image_dir = rows.image_dir(options, self.folder)
  setmetatable(self, mt)
  if not options or options.check ~= false then
    for i = 1, self:count() do self:meta(i) end
  end
  return self
end

return M
