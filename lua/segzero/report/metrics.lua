-- metrics.lua - the numbers of a run as columns, from metrics.jsonl.
--
--   local m = metrics.new(path)
--   m:read()                        takes in the lines that are new
--   m:json() -> text                {"columns": ["step", ...], "rows": [[1, ...], ...]}, by step. A
--                                   row that is shorter than the columns ends with unknown numbers
--   m.held_out:json()               the same of evaluations
--   m.last                          the last step, or nil
--   m:complaint()                   of reader.lua
--
-- Numbers under veRL's names are left out, because they are there under ours, too. Nested numbers
-- get a path as their name: time.forward is "time/forward". Of a step that the log has twice, the
-- last line counts. What is no number, such as a NaN, is null. Each row is kept as text, which
-- costs the garbage collector little in a long run.
-- Leaves out: what the page calls a column and where it draws it (web/charts.js).

local cjson = require "cjson"
local log_names = require "segzero.log.names"
local reader = require "segzero.report.reader"

local M = {}

-- ---- a table of numbers ----
local Columns = {}
Columns.__index = Columns

function M.columns()
  return setmetatable({ names = {}, place = {}, rows = {}, steps = {} }, Columns)
end

local function place_of(self, name)
  if not self.place[name] then
    self.names[#self.names + 1] = name
    self.place[name] = #self.names
  end
  return self.place[name]
end

local function text_of(v)
  if type(v) ~= "number" or v ~= v or v == math.huge or v == -math.huge then return "null" end
  return ("%.6g"):format(v)
end

-- numbers: by name. The step comes first.
function Columns:put(step, numbers)
  local cells = { ("%d"):format(step) }
  place_of(self, "step")
  local names = {}
  for name in pairs(numbers) do names[#names + 1] = name end
  table.sort(names)
  for _, name in ipairs(names) do cells[place_of(self, name)] = text_of(numbers[name]) end
  for i = 1, #self.names do cells[i] = cells[i] or "null" end
  if not self.rows[step] then self.steps[#self.steps + 1] = step end
  self.rows[step] = "[" .. table.concat(cells, ",") .. "]"
end

function Columns:json()
  table.sort(self.steps)
  local rows = {}
  for i, step in ipairs(self.steps) do rows[i] = self.rows[step] end
  local names = "[]"
  if #self.names > 0 then names = cjson.encode(self.names) end
  return ('{"columns":%s,"rows":[%s]}'):format(names, table.concat(rows, ","))
end

-- ---- the file ----
local methods = {}
local mt = { __index = methods }

function M.new(path)
  return setmetatable({ path = path, reader = reader.new(path), steps = M.columns(),
    held_out = M.columns() }, mt)
end

local function add(numbers, name, value)
  if type(value) == "table" then
    for key, v in pairs(value) do add(numbers, name .. "/" .. tostring(key), v) end
  elseif name ~= "step" then
    numbers[name] = value
  end
end

local function flat(record)
  local numbers = {}
  for name, value in pairs(record) do
    if not log_names.is_verl(tostring(name)) then add(numbers, tostring(name), value) end
  end
  return numbers
end

-- held_out_parts/iou -> parts/iou; held_out_reward -> reward.
local function of_evaluation(numbers)
  local out = {}
  for name, value in pairs(numbers) do out[name:gsub("^held_out_", "")] = value end
  return out
end

local MOST_STEPS = 2 ^ 31

local function is_step(v)
  return type(v) == "number" and v >= 0 and v % 1 == 0 and v < MOST_STEPS
end

local function take(self, line)
  local ok, record = pcall(cjson.decode, line)
  if not ok or type(record) ~= "table" then return self.reader:damaged "it is no JSON object" end
  if not is_step(record.step) then return self.reader:damaged "it has no step" end
  if record.held_out_reward ~= nil then
    self.held_out:put(record.step, of_evaluation(flat(record)))
  else
    self.steps:put(record.step, flat(record))
    self.last = record.step
  end
end

function methods:read()
  local state = self.reader:each(function(line) take(self, line) end)
  if state ~= "cut" then return end
  local fresh = M.new(self.path)
  for name, value in pairs(fresh) do self[name] = value end
  self:read()
end

function methods:json() return self.steps:json() end

function methods:complaint() return self.reader:complaint() end

return M
