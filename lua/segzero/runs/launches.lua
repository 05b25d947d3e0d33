-- launches.lua - launches.jsonl of a run folder: how the run was started, each time that it was.
--
--   launches.note(folder, facts)         adds a line
--   launches.of(t) -> facts              t: a trainer, before its first step
--   launches.at(folder, step) -> facts   of the start that ran this step, or nil
--   launches.differences(old, new) -> {"threads 1 (was 2)", ...}     what numbers depend on
--
-- facts = {from = the step that the start went on from, version =, command = {words}, ranks =,
-- shards =, threads =, device =, started = "2026-11-28T12:00:00Z"}
-- Leaves out: settings (config.json).

local cjson = require "cjson"
local core = require "segzero.core.ffi"
local files = require "segzero.core.files"
local lines = require "segzero.core.lines"

local M = {}

local NAME = "/launches.jsonl"

function M.of(t)
  local has_host, host = pcall(require, "segzero.host")
  local words = {}
  for i, word in ipairs(rawget(_G, "arg") or {}) do words[i] = tostring(word) end
  table.insert(words, 1, tostring((rawget(_G, "arg") or {})[0] or ""))
  return {
    from = t.global_step, version = has_host and host.version or nil, command = words,
    ranks = t.parallel.size, shards = t.parallel.shards or 1, threads = core.C.sz_threads(),
    device = tostring(t.policy.device), started = os.date "!%Y-%m-%dT%H:%M:%SZ",
  }
end

function M.note(folder, facts)
  local file = lines.append(folder .. NAME)
  file:write(files.json(facts) .. "\n")
  file:close()
end

function M.at(folder, step)
  local file = io.open(folder .. NAME, "rb")
  if not file then return nil end
  local found
  for line in file:lines() do
    local ok, facts = pcall(cjson.decode, line)
    local is_known = ok and type(facts) == "table" and type(facts.from) == "number"
    if is_known and facts.from < step then found = facts end
  end
  file:close()
  return found
end

local COMPARED = { "threads", "ranks", "shards", "device", "version" }

function M.differences(old, new)
  local list = {}
  for _, key in ipairs(COMPARED) do
    if old[key] ~= nil and old[key] ~= new[key] then
      list[#list + 1] = ("%s %s (was %s)"):format(key, tostring(new[key]), tostring(old[key]))
    end
  end
  return list
end

return M
