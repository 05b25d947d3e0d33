-- rows.lua - makes the row that a data source returns. train/records.lua describes its fields.
--
--   local row = rows.new {
--     id =, index =, problem =, solution =, image =, mask = f | nil, ignore_mask = f | nil,
--     system_prompt = text | nil, columns = {..} | nil,
--     solution_frame = {width =, height =} | nil }
--
-- Adds `images`, `frame` and the user's own columns: columns.category is also row.category, unless
-- the row has a field of that name. Until the row is given to a model, `frame` is the frame of the
-- solution: the image's own pixels, unless the source states another one.
--
-- mask(empty) and ignore_mask(empty) make u8 [height, width] that the caller frees; with empty =
-- true a mask with nothing inside is no error. ignore_mask: pixels that are neither right nor
-- wrong, as ReasonSeg's "ignore" polygons and COCO's crowds; they do not belong to `mask`. What
-- they count as is the evaluation's choice (evaluation/target.lua).
--
--   rows.mask_maker(where, value, options)    such a function for a value of formats/mask.lua, or
--                                             nil for nil. where begins its errors; options:
--                                             {folder =, width =, height =}
-- Leaves out: reading files (jsonl/source.lua), the frame of answers (coordinates.lua).

local core = require "segzero.core.ffi"
local frame = require "segzero.data.frame"
local mask_of = require "segzero.formats.mask"

local M = {}

-- Fields that the trainer sets. A column of the same name is only in row.columns.
local RESERVED = {
  answer_frame = true, columns = true, frame = true, ignore_mask = true, image = true,
  images = true, index = true, input = true, mask = true, number = true, segment = true,
  solution_frame = true, stored_solution = true, system_prompt = true,
}

-- A frame as scripts read it: a square's side as a number, else {width =, height =}.
function M.frame(size)
  local f = frame.of(size)
  return frame.side(f) or f
end

function M.new(row)
  row.images = { row.image }
  row.solution_frame = row.solution_frame or frame.of(row.frame)
  row.frame = row.frame or M.frame(row.solution_frame or row.image)
  row.columns = row.columns or { problem = row.problem, solution = row.solution }
  for name, value in pairs(row.columns) do
    if row[name] == nil and not RESERVED[name] then row[name] = value end
  end
  return row
end

function M.mask_maker(where, value, options)
  if value == nil then return nil end
  local folder = options.folder
  local width = options.width
  local height = options.height
  return function(empty)
    local ok, t = pcall(mask_of.read, value,
      { folder = folder, width = width, height = height, empty = empty })
    if ok then return t end
    if core.is_interrupt(t) then error(t, 0) end
    error(("%s: %s"):format(where, core.plain(t)), 0)
  end
end

-- The folder that relative paths of images start from. folder: the set's own.
function M.image_dir(options, folder)
  local stated = options and options.image_dir
  if stated == nil or stated == "" then return folder end
  return stated
end

-- Row i must be one of the set's. Level as for error().
function M.check_number(set, i, level)
  local last = set:count()
  if type(i) == "number" and i % 1 == 0 and i >= 1 and i <= last then return end
  error(("row %s: the data set %s has the rows 1 to %d"):format(tostring(i), set.name, last),
    level + 1)
end

return M
