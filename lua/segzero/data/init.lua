-- data.lua - rows of a data set: a question about a picture, and the ground truth.
--
--   local set = data.open("refshapes", {split = "train", size = 112, seed = 42, rows = 4096})
--   local set = data.open("path/to/folder", {})       data.jsonl (+ pictures) in Seg-Zero's columns
--   set:count()    set:row(i) -> {id =, problem =, solution =, image = image object (the caller frees), frame =, index = i}
--   set:image_path(i) -> the path of row i's picture: sets that read files; set:row(i, image) takes a picture read from there
--   row.mask() -> u8 tensor [h, w] of 0 and 1, the true mask in the picture's pixels (the caller frees); row.mask is nil when
--   the set has no masks
--   data.order(n, seed, epoch) -> a shuffled list of 1..n, the same on every machine
--
-- Columns: id, problem, solution, image (a path relative to the folder), img_height, img_width, and mask in all rows or in none:
-- a picture as large as the image whose first channel is above 127 where the thing is. frame is the side of the coordinate frame
-- for the reward's pixel thresholds: the picture's side when it is square, else 840.
-- Leaves out: parquet and hub data sets.

local ffi = require "ffi"
local cjson = require "cjson"
local core = require "segzero.core.ffi"
local image = require "segzero.formats.image"
local tensor = require "segzero.core.tensor"
local refshapes = require "segzero.data.refshapes"

local M = {}

local function frame_of(img)
  return img.width == img.height and img.width or 840
end

-- ---- RefShapes: rows are made when asked for ----
local function open_refshapes(opts)
  local set = { name = ("RefShapes (%s, %d px)"):format(opts.split, opts.size) }
  function set.count() return opts.rows end
  function set.row(_, i)
    local s = refshapes.sample { seed = opts.seed, split = opts.split, index = i, size = opts.size, level = opts.level or 3, questions = 1 }
    local q = s.questions[1]
    local img = image.new(s.width, s.height)
    ffi.copy(img:pixels(), s.rgb, s.width * s.height * 3)
    local function mask()
      local t = tensor.empty({ img.height, img.width }, { dtype = "u8" })
      ffi.copy(tensor.data(t), q.mask(), img.height * img.width)
      return t
    end
    return { id = ("%s-%d"):format(opts.split, i), problem = q.problem, solution = q.solution, image = img, frame = s.width, index = i, mask = mask }
  end
  return set
end

-- ---- a folder ----
-- A path of a row is relative to the folder.
local function in_folder(folder, path) return path:sub(1, 1) == "/" and path or folder .. "/" .. path end

-- A picture that cannot be read is an error at `where` (file:line).
local function load_picture(folder, path, where)
  local ok, img = pcall(image.load, in_folder(folder, path))
  if not ok then error(("%s: %s"):format(where, (img:gsub("^[^:]*%.lua:%d+: ", ""))), 0) end
  return img
end

local function load_mask(folder, path, where, width, height)
  local img = load_picture(folder, path, where)
  if img.width ~= width or img.height ~= height then
    error(("%s: the mask %s has %d x %d pixels, the picture %d x %d"):format(where, path, img.width, img.height, width, height), 0)
  end
  local t = tensor.empty({ height, width }, { dtype = "u8" })
  local to, from = tensor.data(t), img:pixels()
  for i = 0, height * width - 1 do to[i] = from[3 * i] > 127 and 1 or 0 end
  img:free()
  return t
end

local function open_folder(path)
  local file = path:match "%.jsonl$" and path or path .. "/data.jsonl"
  local folder = file:match "^(.*)/[^/]*$" or "."
  local handle, reason = io.open(file, "r")
  if not handle then error(("data set %s: %s"):format(path, reason), 0) end
  local rows, line_number = {}, 0
  for line in handle:lines() do
    line_number = line_number + 1
    if line:match "%S" then
      local ok, row = pcall(cjson.decode, line)
      if not ok or type(row) ~= "table" then error(("%s:%d: not a JSON object"):format(file, line_number), 0) end
      for _, column in ipairs { "problem", "solution", "image" } do
        if type(row[column]) ~= "string" then
          error(("%s:%d: the column '%s' is %s, expected a string"):format(file, line_number, column, type(row[column])), 0)
        end
      end
      if row.mask == cjson.null then row.mask = nil end
      if row.mask ~= nil and type(row.mask) ~= "string" then
        error(("%s:%d: the column 'mask' is %s, expected a string"):format(file, line_number, type(row.mask)), 0)
      end
      if rows[1] and (row.mask == nil) ~= (rows[1].mask == nil) then
        error(("%s:%d: the column 'mask' is %s, but line %d has %s"):format(file, line_number, row.mask and "there" or "missing", rows[1].line,
          row.mask and "none" or "one"), 0)
      end
      row.line = line_number
      rows[#rows + 1] = row
    end
  end
  handle:close()
  if #rows == 0 then error(file .. " has no rows", 0) end
  local set = { name = path }
  function set.count() return #rows end
  function set.image_path(_, i) return in_folder(folder, rows[i].image) end
  -- read: the row's picture, when it is there already (ahead.lua).
  function set.row(_, i, read)
    local row = rows[i]
    local where = ("%s:%d"):format(file, row.line)
    local img = read or load_picture(folder, row.image, where)
    local width, height = img.width, img.height
    local id = row.id ~= cjson.null and row.id or i
    return { id = tostring(id), problem = row.problem, solution = row.solution, image = img, frame = frame_of(img), index = i,
      mask = row.mask and function() return load_mask(folder, row.mask, where, width, height) end }
  end
  return set
end

function M.open(source, opts)
  if source == "refshapes" then return open_refshapes(opts) end
  return open_folder(source)
end

local bits = ffi.new "uint32_t[4]"

-- Fisher-Yates with the counter-based generator.
function M.order(n, seed, epoch)
  local list = {}
  for i = 1, n do list[i] = i end
  for i = n, 2, -1 do
    core.C.sz_random_bits(seed, i, 0xda7a, epoch, bits)
    local j = 1 + math.floor(tonumber(bits[0]) / 2 ^ 32 * i)
    list[i], list[j] = list[j], list[i]
  end
  return list
end

return M
