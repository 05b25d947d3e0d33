-- output_rows.lua - the files output_{idx}.json that the evaluation scripts of Seg-Zero and
-- VisionReasoner write, from records of judge.lua, and back.
--
--   local rows = output_rows.of(records, { task =, protocol = })
--   output_rows.text(rows) -> JSON as Python's json.dump(rows, indent=2, ensure_ascii=False) has it
--   output_rows.read(path) -> rows, their task
--
-- A row is a list of {key, value} in their order; read() returns plain tables. By task:
--   segmentation   image_id, ann_id, think, intersection, union, bbox_iou: 1.0 if a box of the
--                  answer overlaps a true one by more than half, else 0.0, also if only a mask
--                  states the truth
--   detection      a row for each box of an answer: image_id, ann_id, think, category_id, bbox (the
--                  corners in the image's pixels), score (the box's share of the image)
--   counting       image_id, ann_id, think, pred_count, gt_count; an answer that cannot be read
--                  counts 0
-- Rows that the protocol leaves out (metrics.lua) are not written. A failed row has no think.
-- Leaves out: what the numbers amount to (tally.lua).

local cjson = require "cjson"
local files = require "segzero.core.files"
local metrics = require "segzero.evaluation.metrics"

local M = {}

local null = cjson.null
local fields = require "segzero.evaluation.fields"

local is_number = fields.is_number
local value_or = fields.value_or

-- A number that Python writes with a decimal point.
local function float(v) return { float = v } end

-- ---- rows ----
local function head(record)
  local think = value_or(record.think, "")
  if value_or(record.failure, nil) then think = "" end
  return { { "image_id", record.image_id }, { "ann_id", record.ann_id }, { "think", think } }
end

local function add(row, name, value) row[#row + 1] = { name, value } end

local make = {}

function make.segmentation(record, rows)
  local row = head(record)
  add(row, "intersection", value_or(record.intersection, 0))
  add(row, "union", value_or(record.union, 0))
  local is_hit = record.box_hit == true and record.box_stated == true
  add(row, "bbox_iou", float(is_hit and 1 or 0))
  rows[#rows + 1] = row
end

-- VisionReasoner's scripts make whole numbers of these.
local function whole(id) return tonumber(id) or id end

function make.detection(record, rows)
  for i, box in ipairs(value_or(record.bbox, {})) do
    local row = head(record)
    row[1][2] = whole(row[1][2])
    row[2][2] = whole(row[2][2])
    add(row, "category_id", whole(record.category))
    add(row, "bbox", box)
    add(row, "score", float(record.box_scores[i]))
    rows[#rows + 1] = row
  end
end

function make.counting(record, rows)
  local row = head(record)
  add(row, "pred_count", value_or(record.found_objects, 0))
  add(row, "gt_count", value_or(record.true_objects, 0))
  rows[#rows + 1] = row
end

function M.of(records, options)
  local rows = {}
  for _, record in ipairs(records) do
    local kind = value_or(record.failure_kind, nil)
    if metrics.counts({ failure_kind = kind }, options.protocol) then
      make[options.task](record, rows)
    end
  end
  return rows
end

-- ---- writing ----
local ESCAPES = { ['"'] = '\\"', ["\\"] = "\\\\", ["\b"] = "\\b", ["\f"] = "\\f", ["\n"] = "\\n",
  ["\r"] = "\\r", ["\t"] = "\\t" }

local function quoted(text)
  return '"' .. text:gsub('[%c"\\]', function(c)
    if ESCAPES[c] then return ESCAPES[c] end
    if c == "\127" then return c end
    return ("\\u%04x"):format(c:byte())
  end) .. '"'
end

-- The shortest digits that read back as the same number, as Python's repr.
local function digits(v)
  for precision = 15, 17 do
    local text = ("%." .. precision .. "g"):format(v)
    if tonumber(text) == v then return text end
  end
end

local function number_text(v)
  if v % 1 == 0 and math.abs(v) < 2 ^ 53 then return ("%.0f"):format(v) end
  return digits(v)
end

local function float_text(v)
  local text = digits(v)
  if not text:find "[.eni]" then text = text .. ".0" end
  return text
end

local function value_text(value, indent)
  if value == nil or value == null then return "null" end
  if type(value) == "number" then return number_text(value) end
  if type(value) ~= "table" then return quoted(tostring(value)) end
  if value.float then return float_text(value.float) end
  local items = {}
  for i, v in ipairs(value) do items[i] = indent .. "  " .. value_text(v, indent .. "  ") end
  return "[\n" .. table.concat(items, ",\n") .. "\n" .. indent .. "]"
end

function M.text(rows)
  if #rows == 0 then return "[]" end
  local list = {}
  for i, row in ipairs(rows) do
    local lines = {}
    for k, field in ipairs(row) do
      lines[k] = ("    %s: %s"):format(quoted(field[1]), value_text(field[2], "    "))
    end
    list[i] = "  {\n" .. table.concat(lines, ",\n") .. "\n  }"
  end
  return "[\n" .. table.concat(list, ",\n") .. "\n]"
end

-- ---- reading ----
local NUMBERS = {
  segmentation = { "intersection", "union" },
  detection = { "score", "category_id" },
  counting = { "pred_count", "gt_count" },
}

local function task_of(row)
  if type(row) ~= "table" then return nil end
  if row.pred_count ~= nil then return "counting" end
  if row.category_id ~= nil then return "detection" end
  if row.intersection ~= nil then return "segmentation" end
end

-- Whether a row has what its task needs, in numbers that can be summed up.
local function is_result(row, task)
  for _, name in ipairs(NUMBERS[task]) do
    if not is_number(row[name]) then return false end
  end
  return task ~= "detection" or fields.is_box(row.bbox)
end

function M.read(path)
  local rows = files.read_json_object(path)
  local task = task_of(rows[1])
  for i, row in ipairs(rows) do
    if not task or task_of(row) ~= task or not is_result(row, task) then
      error(("%s: row %d is not a result of an evaluation"):format(path, i), 0)
    end
    if task == "segmentation" and (row.intersection < 0 or row.intersection > row.union) then
      error(("%s: row %d has an intersection of %.17g and a union of %.17g pixels"):format(path, i,
        row.intersection, row.union), 0)
    end
  end
  return rows, task
end

return M
