-- bench_table.lua - the figures of several benchmarks as one table, beside PyTorch's: what
-- tests/gpu_check.sh prints at its end.
--
--   ./segzero tests/bench/bench_table.lua NAME=LOG[,LOG OF THE PEER] ...
--
-- A log has JSON lines {name, value, unit, limit, ratio} among others; the peer's has {name, peer,
-- unit}, or {name, value, unit}. Prints one line a figure: name, value, unit, the part of its
-- limit, the peer's value, and how many times better ours is (less time or memory, or more a
-- second). A figure that one side lacks is "-"; a log that is not there is a stage that did not
-- run. Leaves out figures that say little by themselves.

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

-- Figures of a log by name, and their names in order.
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

local function text(x) return x and ("%.4g"):format(x) or "-" end

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
    local better
    if value and theirs and value > 0 and theirs > 0 then
      better = (unit == "s" or unit == "GiB") and theirs / value or value / theirs
    end
    line(group .. " " .. name, text(value), unit, mine.ratio
      and ("%.1f%%"):format(100 * mine.ratio) or "-", text(theirs), better
      and ("%.2fx"):format(better) or "-")
  end
  if #order == 0 then line(group, "-", "", "-", "-", "no figures: see the stage") end
end
