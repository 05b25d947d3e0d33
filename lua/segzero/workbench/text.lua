-- text.lua - numbers as plain text for a terminal: columns, histograms, means.
--
--   text.number(2.14159) -> "2.142"              up to four digits that count
--   text.seconds(0.0023) -> "2.3 ms"
--   text.table(rows, left) -> lines              rows of texts; left: {[column] = true} for those
--                                                that are aligned to the left, nil: the first
--   text.histogram(values) -> lines              a line for each value if there are up to 8, else
--                                                for each of 8 ranges
--   text.statistics(values) -> {mean =, std =, min =, max =, zero = share of 0, count =}
--   text.width(s)                                characters of a UTF-8 text
--
-- Leaves out: colours, wide characters.

local M = {}

local BAR = 40                  -- characters of the longest bar
local MOST_LINES = 8

function M.width(s) return select(2, s:gsub("[^\128-\191]", "")) end

function M.number(v)
  if v == nil then return "-" end
  if v == math.floor(v) and math.abs(v) < 1e6 then return ("%d"):format(v) end
  return ("%.4g"):format(v)
end

function M.statistics(values)
  local s = { count = #values, sum = 0, zeros = 0, min = math.huge, max = -math.huge }
  for _, v in ipairs(values) do
    s.sum = s.sum + v
    s.min = math.min(s.min, v)
    s.max = math.max(s.max, v)
    if v == 0 then s.zeros = s.zeros + 1 end
  end
  s.mean = s.sum / s.count
  local squares = 0
  for _, v in ipairs(values) do squares = squares + (v - s.mean) ^ 2 end
  s.std = math.sqrt(squares / s.count)
  s.zero = s.zeros / s.count
  return s
end

function M.seconds(s)
  if s >= 1 then return ("%.3g s"):format(s) end
  return ("%.3g ms"):format(1000 * s)
end

-- ---- columns ----
local function padded(s, width, to_left)
  local space = (" "):rep(width - M.width(s))
  if to_left then return s .. space end
  return space .. s
end

function M.table(rows, left)
  left = left or { true }
  local widths = {}
  for _, row in ipairs(rows) do
    for k, s in ipairs(row) do widths[k] = math.max(widths[k] or 0, M.width(s)) end
  end
  local lines = {}
  for i, row in ipairs(rows) do
    local cells = {}
    for k, s in ipairs(row) do cells[k] = padded(s, widths[k], left[k]) end
    lines[i] = ("  " .. table.concat(cells, "  ")):gsub("%s+$", "")
  end
  return lines
end

-- ---- histograms ----
local function distinct(values)
  local list = {}
  local count = {}
  for _, v in ipairs(values) do
    if not count[v] then list[#list + 1] = v end
    count[v] = (count[v] or 0) + 1
    if #list > MOST_LINES then return nil end
  end
  table.sort(list)
  local bins = {}
  for i, v in ipairs(list) do bins[i] = { label = M.number(v), count = count[v] } end
  return bins
end

local function ranges(values)
  local s = M.statistics(values)
  local width = (s.max - s.min) / MOST_LINES
  local bins = {}
  for i = 1, MOST_LINES do
    local low = s.min + (i - 1) * width
    bins[i] = { count = 0, label = ("%s to %s"):format(M.number(low), M.number(low + width)) }
  end
  for _, v in ipairs(values) do
    local i = math.min(MOST_LINES, 1 + math.floor((v - s.min) / width))
    bins[i].count = bins[i].count + 1
  end
  return bins
end

function M.histogram(values)
  if #values == 0 then return {} end
  local bins = distinct(values) or ranges(values)
  local most = 0
  for _, bin in ipairs(bins) do most = math.max(most, bin.count) end
  local rows = {}
  for i, bin in ipairs(bins) do
    local bar = ("#"):rep(math.ceil(BAR * bin.count / most))
    rows[i] = { bin.label, bar, ("%d"):format(bin.count) }
  end
  local lines = {}
  local label = 0
  for _, row in ipairs(rows) do label = math.max(label, #row[1]) end
  for i, row in ipairs(rows) do
    lines[i] = ("  %s%s |%s %s"):format((" "):rep(label - #row[1]), row[1], row[2], row[3])
  end
  return lines
end

return M
