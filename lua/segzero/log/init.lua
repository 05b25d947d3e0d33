-- log.lua - what a run says: one line a step on the console with an ETA, and append-only JSON lines in the run folder.
--
--   local log = log.open(folder)           metrics.jsonl and rollouts.jsonl under it; nil folder: console only
--   log:metrics{step = 1, ...}             one JSON object a line, flushed
--   log:rollout{...}
--   local p = log.progress(total)          p:line(step, text) -> "  12/100  text  1.9 s  ETA 2:51"
--   log.times({decode = 3.1, ...}, names) -> "  time: decode 41 %, ..."

local files = require "segzero.core.files"
local core = require "segzero.core.ffi"

local M = {}

local methods = {}
local mt = { __index = methods }

local function append(path)
  local file, reason = io.open(path, "a")
  if not file then error(reason, 3) end
  return file
end

function M.open(folder)
  local log = setmetatable({}, mt)
  if folder then
    log.metrics_file = append(folder .. "/metrics.jsonl")
    log.rollout_file = append(folder .. "/rollouts.jsonl")
  end
  return log
end

-- JSON has no NaN or infinity.
local function plain(t)
  local out = {}
  for k, v in pairs(t) do
    if type(v) == "table" then v = plain(v)
    elseif type(v) == "number" and (v ~= v or v == math.huge or v == -math.huge) then v = tostring(v) end
    out[k] = v
  end
  return out
end

local function write(file, record)
  if not file then return end
  file:write(files.json(plain(record)), "\n")
  file:flush()
end

function methods:metrics(record) write(self.metrics_file, record) end
function methods:rollout(record) write(self.rollout_file, record) end
function methods:close()
  for _, name in ipairs { "metrics_file", "rollout_file" } do
    if self[name] then self[name]:close() end
    self[name] = nil
  end
end

function M.clock(seconds)
  seconds = math.max(0, math.floor(seconds + 0.5))
  if seconds >= 3600 then return ("%d:%02d:%02d"):format(seconds / 3600, seconds / 60 % 60, seconds % 60) end
  return ("%d:%02d"):format(seconds / 60, seconds % 60)
end

-- "  time: decode 41 %, backward 20 %, ..., other 1 %": phases by their share, what rounds to nothing left out.
function M.times(spent, phases)
  local total, shown = 0, {}
  for i, name in ipairs(phases) do
    total = total + (spent[name] or 0)
    shown[i] = { name = name, seconds = spent[name] or 0, place = i }
  end
  table.sort(shown, function(a, b)
    if a.seconds ~= b.seconds then return a.seconds > b.seconds end
    return a.place < b.place
  end)
  local parts = {}
  for _, p in ipairs(shown) do
    local share = total > 0 and 100 * p.seconds / total or 0
    if share >= 0.5 then parts[#parts + 1] = ("%s %.0f %%"):format(p.name, share) end
  end
  return "  time: " .. table.concat(parts, ", ")
end

function M.progress(total, done)
  local started, first = core.C.sz_seconds(), done or 0
  local p = {}
  function p.line(_, step, text)
    local elapsed = core.C.sz_seconds() - started
    local each = elapsed / math.max(1, step - first)
    local width = #tostring(total)
    print(("%" .. width .. "d/%d  %s  %.1f s/step  ETA %s"):format(step, total, text, each, M.clock(each * (total - step))))
    io.stdout:flush()
  end
  return p
end

return M
