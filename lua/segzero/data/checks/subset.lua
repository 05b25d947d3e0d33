-- subset.lua - a data set without some of its rows.
--
--   local set = subset.new(base, leave_out)      leave_out(i): true for a row to leave out
--
-- A row keeps its id and its index in `base`. What `base` offers for its rows is passed on.
-- Leaves out: another order of the rows (sampler.lua).

local ffi = require "ffi"
local checksum = require "segzero.core.checksum"

local M = {}

local PASSED = { "row", "image", "meta", "where" }

function M.new(base, leave_out)
  local total = base:count()
  local kept = ffi.new("int32_t[?]", total + 1)
  local n = 0
  for i = 1, total do
    if not leave_out(i) then
      n = n + 1
      kept[n] = i
    end
  end

  local set = { name = base.name, base = base, split = base.split, folder = base.folder,
    ignore_masks = base.ignore_masks, sample = base.sample }
  function set.count() return n end
  for _, method in ipairs(PASSED) do
    if base[method] then
      set[method] = function(_, i, ...) return base[method](base, kept[i], ...) end
    end
  end
  if base.fingerprint then
    function set.fingerprint()
      local indices = ffi.string(ffi.cast("char *", kept + 1), 4 * n)
      return base:fingerprint() .. "-" .. checksum.text(indices)
    end
  end
  return set
end

return M
