-- jsonl.lua - the logger that writes JSON lines into the run folder. Each line is written at once
-- and whole, and a failed write is an error (core/lines.lua).
--
--   metrics.jsonl     scalars: {"step": 3, "reward": 1.6, ...}, one line for each step and each
--                     evaluation. veRL's names are there, too: "critic/score/mean" (names.lua)
--   rollouts.jsonl    rows named "rollouts": one line for each answer. Rows of another name go to
--                     NAME.jsonl.
--
-- Without a run folder nothing is written. Files are appended to, so a resumed run continues them.
-- JSON has no NaN and no infinity: they are written as strings. Leaves out: texts and images, which
-- are not records.

local files = require "segzero.core.files"
local lines = require "segzero.core.lines"
local names = require "segzero.log.names"

local M = {}

local methods = {}
local mt = { __index = methods }

local function finite(v) return v == v and v ~= math.huge and v ~= -math.huge end

local function writable(t)
  local out = {}
  for k, v in pairs(t) do
    if type(v) == "table" then
      v = writable(v)
    elseif type(v) == "number" and not finite(v) then
      v = tostring(v)
    end
    out[k] = v
  end
  return out
end

-- A record as its line, without the end.
function M.text(record) return files.json(writable(record)) end

function M.open(run)
  local log = setmetatable({ folder = run.folder, config = run.config, open_files = {} }, mt)
  -- Both files exist from the start, so that a run that failed in its first step has empty ones.
  if log.folder then
    log:file "metrics"
    log:file "rollouts"
  end
  return log
end

function methods:file(name)
  if not self.open_files[name] then
    self.open_files[name] = lines.append(("%s/%s.jsonl"):format(self.folder, name))
  end
  return self.open_files[name]
end

function methods:write(name, list)
  if not self.folder or #list == 0 then return end
  local text = {}
  for i, record in ipairs(list) do text[i] = M.text(record) .. "\n" end
  self:file(name):write(table.concat(text))
end

function methods:scalars(_, t)
  local record = names.verl(t, self.config)
  for name, value in pairs(t) do record[name] = value end
  self:write("metrics", { record })
end

function methods:rows(_, name, list) self:write(name, list) end

function methods:close()
  for _, file in pairs(self.open_files) do file:close() end
  self.open_files = {}
end

return M
