-- bench_table.lua - prints the figures of several benchmarks as one table, next to PyTorch's.
-- tests/gpu_check.sh prints it at its end.
--
--   ./segzero tests/bench/bench_table.lua NAME=LOG[,LOG OF THE PEER] ...
--
-- A log has JSON lines {name, value, unit, limit, ratio} among others. The peer's log has {name,
-- peer, unit} or {name, value, unit}. Each figure is a line: name, value, unit, fraction of its
-- limit, the peer's value, and how many times better ours is (less time or memory, or more per
-- second). "-" stands for a figure that one side lacks. A missing log means that the stage did not
-- run.
-- Leaves out: figures that say little by themselves.

local cjson = require "cjson"

local SHOWN = { "^matmul_bf16$", "^prefill_seconds$", "^prefill_rate$", "^read_bandwidth$",
  "^decode_%d+$", "^vision_seconds$",
  "^train_tokens_per_second$", "^train_rate$", "^models_seconds$", "^sampling_seconds$",
    "^old_seconds$", "^reference_seconds$", "^update_seconds$",
  "^update_rate$", "^optimizer_seconds$", "^step_seconds$", "_encoder$", "_decoder$", "_decoder_8$",
    "_images$", "device_memory$" }

local function shown(name)
  for _, pattern in ipairs(SHOWN) do
    if name:match(pattern) then return true end
  end
end

-- The figures of a log by name, and their names in order.
local function read(path, order)
  local rows = {}
  local file = path and io.open(path, "r")
  if not file then return rows end
  for line in file:lines() do
    local ok, row = pcall(cjson.decode, line)
    if ok and type(row) == "table" and type(row.name) == "string" and shown(row.name) then
      if not order[row.name] then
        order[#order + 1] = row.name
        order[row.name] = true
      end
      rows[row.name] = rows[row.name] or row
    end
  end
  file:close()
  return rows
end

local function text(x, format)
  if not x then return "-" end
  return (format or "%.4g"):format(x)
end

-- How many times better a is than b.
local function times_better(a, b, unit)
  if not a or not b or a <= 0 or b <= 0 then return nil end
  if unit == "s" or unit == "GiB" then return b / a end
  return a / b
end

local function line(...) print((("%-28s %10s %-9s %9s %10s %8s"):format(...):gsub("%s+$", ""))) end

line("figure", "value", "unit", "of limit", "PyTorch", "faster")
for _, word in ipairs(arg) do
  local group, logs = word:match "^([^=]+)=(.+)$"
  if not group then error("bench_table: NAME=LOG[,LOG] expected, not " .. word, 0) end
  local ours_log, peer_log = logs:match "^([^,]*),?(.*)$"
  local order = {}
  local ours = read(ours_log, order)
  local peer = read(peer_log, order)
  for _, name in ipairs(order) do
    local mine = ours[name] or {}
    local other = peer[name] or {}
    local value = mine.value
    local theirs = other.peer or other.value
    local unit = mine.unit or other.unit
    local percent = mine.ratio and 100 * mine.ratio
    local better = times_better(value, theirs, unit)
    line(group .. " " .. name, text(value), unit, text(percent, "%.1f%%"), text(theirs),
      text(better, "%.2fx"))
  end
  if #order == 0 then line(group, "-", "", "-", "-", "no figures: see the stage") end
end
