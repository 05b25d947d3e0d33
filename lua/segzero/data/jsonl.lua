-- jsonl.lua - a folder with data.jsonl and images, in Seg-Zero's columns, as a data source.
--
--   local set = jsonl.open "path/to/folder"        or "path/to/file.jsonl"
--
-- Columns: problem, solution, image (a path relative to the folder), and optionally id and mask. A
-- mask is an image as large as the row's image; its first channel is above 127 inside the object.
-- All rows have a mask or none has. Other columns are kept in row.columns. A bad line, image or
-- mask is an error that names file and line.
-- Leaves out: files larger than memory, several images in a row.

local cjson = require "cjson"
local image = require "segzero.formats.image"
local rows = require "segzero.data.rows"
local tensor = require "segzero.core.tensor"

local M = {}

local REQUIRED = { "problem", "solution", "image" }

local function in_folder(folder, path)
  if path:sub(1, 1) == "/" then return path end
  return folder .. "/" .. path
end

-- where: "file:line", for the message when the image cannot be read.
local function load_image(folder, path, where)
  local ok, img = pcall(image.load, in_folder(folder, path))
  if ok then return img end
  local reason = img:gsub("^[^:]*%.lua:%d+: ", "")
  error(("%s: %s"):format(where, reason), 0)
end

-- Loads a mask as u8 [height, width] of 0 and 1.
local function load_mask(folder, path, where, width, height)
  local img = load_image(folder, path, where)
  if img.width ~= width or img.height ~= height then
    error(("%s: the mask %s has %d x %d pixels, the image %d x %d"):format(where, path, img.width,
      img.height, width, height), 0)
  end
  local t = tensor.empty({ height, width }, { dtype = "u8" })
  local mask = tensor.data(t)
  local pixels = img:pixels()
  for i = 0, height * width - 1 do
    mask[i] = pixels[3 * i] > 127 and 1 or 0
  end
  img:free()
  return t
end

-- ---- reading the file ----
local function wrong_type(where, column, value, expected)
  error(("%s: the column '%s' is %s, expected %s"):format(where, column, type(value), expected), 0)
end

local function check_mask(where, columns, first)
  if columns.mask ~= nil and type(columns.mask) ~= "string" then
    wrong_type(where, "mask", columns.mask, "a string")
  end
  if not first or (columns.mask == nil) == (first.columns.mask == nil) then return end
  if columns.mask then
    error(("%s: the column 'mask' is present, but line %d has none"):format(where, first.line), 0)
  end
  error(("%s: the column 'mask' is missing, but line %d has one"):format(where, first.line), 0)
end

-- One line's columns, checked. first: the first entry of the file, or nil.
local function parse_line(text, where, first)
  local ok, columns = pcall(cjson.decode, text)
  if not ok or type(columns) ~= "table" then error(where .. ": not a JSON object", 0) end
  for name, value in pairs(columns) do
    if value == cjson.null then columns[name] = nil end
  end
  for _, column in ipairs(REQUIRED) do
    if type(columns[column]) ~= "string" then
      wrong_type(where, column, columns[column], "a string")
    end
  end
  check_mask(where, columns, first)
  return columns
end

-- All lines as {{columns =, line = number}, ...}.
local function read_entries(name, file)
  local handle, reason = io.open(file, "r")
  if not handle then error(("data set %s: %s"):format(name, reason), 0) end
  local entries = {}
  local number = 0
  for text in handle:lines() do
    number = number + 1
    if text:match "%S" then
      local columns = parse_line(text, ("%s:%d"):format(file, number), entries[1])
      entries[#entries + 1] = { columns = columns, line = number }
    end
  end
  handle:close()
  if #entries == 0 then error(file .. " has no rows", 0) end
  return entries
end

-- ---- the set ----
function M.open(name)
  local file = name
  if not name:match "%.jsonl$" then file = name .. "/data.jsonl" end
  local folder = file:match "^(.*)/[^/]*$" or "."
  local entries = read_entries(name, file)
  local set = { name = name }

  function set.count() return #entries end

  -- What tells this row from others: its id, question, answer and image.
  function set.identity(_, i)
    local columns = entries[i].columns
    return table.concat({ tostring(columns.id or i), columns.problem, columns.solution,
      columns.image }, "\0")
  end

  function set.image(_, i) return in_folder(folder, entries[i].columns.image) end

  -- read: the row's image if prefetching has read it already.
  function set.row(_, i, read)
    local columns = entries[i].columns
    local where = ("%s:%d"):format(file, entries[i].line)
    local img = read or load_image(folder, columns.image, where)
    local width = img.width
    local height = img.height
    local mask
    if columns.mask then
      mask = function() return load_mask(folder, columns.mask, where, width, height) end
    end
    return rows.new {
      id = tostring(columns.id or i), index = i,
      problem = columns.problem, solution = columns.solution,
      image = img, mask = mask, columns = columns,
    }
  end

  return set
end

return M
