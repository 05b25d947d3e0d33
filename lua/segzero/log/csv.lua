-- csv.lua - the logger that writes tables for spreadsheets and pandas:
--
--   metrics.csv        one row a step: the step, and all its numbers under veRL's names (names.lua)
--   evaluations.csv    the same for evaluations of the held-out rows
--
-- The first line names the columns: step, then the others sorted; in a name _ stands for a comma or
-- a quote. A column keeps its place; one that appears later is added on the right, and older rows
-- are empty there. A resumed run continues its files and cuts off the rows of later steps; the old
-- table is kept as metrics_before_step_N.csv. So each step has one row. When the call returns, the
-- whole row is in the file (core/lines.lua). NaN and infinities are nan, inf and -inf.
-- Leaves out: texts, images, answers.

local files = require "segzero.core.files"
local lines = require "segzero.core.lines"
local names = require "segzero.log.names"

local M = {}

local methods = {}
local mt = { __index = methods }

local function cell(v)
  if not v then return "" end
  if v ~= v then return "nan" end
  if v == math.huge then return "inf" end
  if v == -math.huge then return "-inf" end
  return ("%.9g"):format(v)
end

local function step_of(row) return tonumber(row:match "^%d+") end

-- ---- one table ----
local table_methods = {}
local table_mt = { __index = table_methods }

local function set_columns(self, list)
  self.columns = list
  self.has = {}
  for _, name in ipairs(list) do self.has[name] = true end
end

-- The rows of a file, and its columns. Bytes after the last newline are of a row that a kill cut.
local function read(self)
  local text = files.read(self.path) or ""
  local rows = {}
  for line in text:gmatch "([^\n]*)\n" do rows[#rows + 1] = line end
  if #rows == 0 then return rows end
  local columns = {}
  for name in table.remove(rows, 1):gmatch "[^,]+" do columns[#columns + 1] = name end
  set_columns(self, columns)
  return rows, text
end

-- Puts a whole table in place of the file.
local function replace(self, rows)
  if self.file then self.file:close() end
  self.file = nil
  table.insert(rows, 1, table.concat(self.columns, ","))
  files.write(self.path, table.concat(rows, "\n") .. "\n")
  self.file = lines.append(self.path)
end

-- Rows up to a step, without later ones.
local function cut(self, step)
  local rows, text = read(self)
  local kept = {}
  for _, row in ipairs(rows) do
    if (step_of(row) or 0) <= step then kept[#kept + 1] = row end
  end
  if #kept < #rows then
    files.write(self.path:gsub("%.csv$", ("_before_step_%d.csv"):format(step + 1)), text)
    replace(self, kept)
  end
  self.last = kept[#kept] and step_of(kept[#kept])
end

local function open_table(path, step)
  local self = setmetatable({ path = path }, table_mt)
  set_columns(self, {})
  if files.exists(path) then cut(self, step) end
  self.file = self.file or lines.append(path)
  return self
end

local function to_row(self, step, numbers)
  local cells = { tostring(step) }
  for i = 2, #self.columns do cells[i] = cell(numbers[self.columns[i]]) end
  return table.concat(cells, ",")
end

-- A new column, or another record of the last step, needs the whole file written again.
function table_methods:add(step, numbers)
  local fresh = {}
  for _, name in ipairs(names.sorted(numbers)) do
    if not self.has[name] then fresh[#fresh + 1] = name end
  end
  local is_again = self.last == step
  if #fresh == 0 and not is_again then
    self.file:write(to_row(self, step, numbers) .. "\n")
    self.last = step
    return
  end

  -- Older rows get empty cells on the right.
  local rows = read(self)
  if is_again then table.remove(rows) end
  for i, row in ipairs(rows) do rows[i] = row .. (","):rep(#fresh) end
  local columns = self.columns
  if #columns == 0 then columns = { "step" } end
  for _, name in ipairs(fresh) do columns[#columns + 1] = name end
  set_columns(self, columns)
  rows[#rows + 1] = to_row(self, step, numbers)
  replace(self, rows)
  self.last = step
end

-- ---- the logger ----
function M.open(run)
  local log = setmetatable({ run = run, tables = {} }, mt)
  if not run.folder then return log end
  local step = run.first_step or 0
  -- A run that has no steps left goes back to no earlier step.
  if run.total_steps and run.total_steps <= step then step = math.huge end
  for _, name in ipairs { "metrics", "evaluations" } do
    log.tables[name] = open_table(("%s/%s.csv"):format(run.folder, name), step)
  end
  return log
end

function methods:scalars(step, t)
  local name = t.reward and "metrics" or "evaluations"
  local numbers = {}
  for key, v in pairs(names.flat(t, self.run.config)) do
    numbers[key:gsub('[,"\r\n]', "_")] = v
  end
  if self.tables[name] then self.tables[name]:add(step, numbers) end
end

function methods:close()
  for _, one in pairs(self.tables) do one.file:close() end
  self.tables = {}
end

return M
