-- agreement.lua - whether the ranks of a job were given the same run. A launcher gives all of them
-- one command; ranks that are started by hand, machine by machine, can differ, and would train one
-- model with two learning rates.
--
--   agreement.check(list, name_of)     an error that names the rank, the setting and both values
--       list: of each rank, {settings = the run's as JSON, identity = contract.identity's}
--       name_of(r) -> text             of rank r, from 0
--
-- Paths may differ from machine to machine, as may the names of folders, which rank 0 writes. The
-- rows of the training set may not. Leaves out: code (overrides of a script; doctor_ranks.lua
-- compares files); what is in a model's folder.

local cjson = require "cjson"
local contract = require "segzero.runs.contract"

local M = {}

local function check_pair(first, other, name)
  local changes = contract.changes(cjson.decode(first.settings), cjson.decode(other.settings),
    other.identity, { data = first.identity })
  for _, change in ipairs(changes) do
    if not contract.is_path(change.key) then
      error(("rank %s has %s=%s, and rank 0 has %s: give all ranks the same settings and data")
        :format(name, change.key, change.new, change.old), 0)
    end
  end
end

function M.check(list, name_of)
  for r = 1, #list - 1 do check_pair(list[1], list[r + 1], name_of(r)) end
end

return M
