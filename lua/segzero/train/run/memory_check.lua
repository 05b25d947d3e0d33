-- memory_check.lua - refuses a step that cannot fit into memory, before it starts.
--
--   plan = memory_check.rows(plan, cfg, rows)      returns a plan that covers these rows
--
-- The memory plan (tools/plan.lua) was made for the longest prompt of the first rows; a step with a
-- longer prompt is counted again. If that does not fit, the error names the row and the numbers.
-- plan = nil: nothing is checked. Leaves out: the check before the run, which is plan.check.

local M = {}

function M.rows(plan, cfg, rows)
  if not plan then return nil end
  for _, row in ipairs(rows) do
    if #row.input.input_ids > plan.prompt then
      local ok, longer = pcall(plan.longer, cfg, plan, row.input)
      if not ok then error(("row %s: %s"):format(tostring(row.id), longer), 0) end
      plan = longer
    end
  end
  return plan
end

return M
