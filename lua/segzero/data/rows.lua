-- rows.lua - makes the row that a data source returns. train/records.lua describes its fields.
--
--   local row = rows.new {
--     id =, index =, problem =, solution =, image =, mask = f | nil, columns = {..} | nil }
--
-- Adds `images`, `frame` and the user's own columns: columns.category is also row.category, unless
-- the row has a field of that name.
-- Leaves out: reading files (jsonl.lua).

local M = {}

-- The side of the square that Seg-Zero's prompts, answers and thresholds count in.
local SEG_ZERO_FRAME = 840

-- Fields that the trainer sets. A column of the same name is only in row.columns.
local RESERVED = {
  columns = true, frame = true, image = true, images = true, index = true, input = true,
  mask = true, number = true,
  segment = true,
}

-- The side of the coordinate frame that a row's solution and answers count in.
function M.frame(img)
  if img.width == img.height then return img.width end
  return SEG_ZERO_FRAME
end

function M.new(row)
  row.images = { row.image }
  row.frame = row.frame or M.frame(row.image)
  row.columns = row.columns or { problem = row.problem, solution = row.solution }
  for name, value in pairs(row.columns) do
    if row[name] == nil and not RESERVED[name] then row[name] = value end
  end
  return row
end

-- Row i must be one of the set's. Level as for error().
function M.check_number(set, i, level)
  local last = set:count()
  if type(i) == "number" and i % 1 == 0 and i >= 1 and i <= last then return end
  error(("row %s: the data set %s has the rows 1 to %d"):format(tostring(i), set.name, last),
    level + 1)
end

return M
