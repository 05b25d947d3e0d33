-- reward_parts.lua - the parts of a reward as text, in the order of their names.
--
--   reward_parts.text { iou = 0.5, points = 1 } -> "iou 0.50, points 1.00"
--   reward_parts.in_brackets(parts) -> " (...)"     empty without parts
--   reward_parts.of_step(t) -> {iou = 0.5, ...}     from a step's numbers, named reward/iou
--
-- Leaves out: what each part means (rewards/).

local M = {}

function M.text(parts)
  local names = {}
  for name in pairs(parts) do names[#names + 1] = name end
  table.sort(names)
  local texts = {}
  for i, name in ipairs(names) do texts[i] = ("%s %.2f"):format(name, parts[name]) end
  return table.concat(texts, ", ")
end

function M.in_brackets(parts)
  if next(parts) == nil then return "" end
  return (" (%s)"):format(M.text(parts))
end

function M.of_step(t)
  local parts = {}
  for name, v in pairs(t) do
    local part = name:match "^reward/(.+)$"
    if part then parts[part] = v end
  end
  return parts
end

return M
