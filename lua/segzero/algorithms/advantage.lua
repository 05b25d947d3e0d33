-- advantage.lua - from the rewards of a group to the advantages of its answers: plain functions on lists of numbers.
--
--   advantage.grpo({5, 3, 3, 1})  ->  {1.2247, 0, 0, -1.2247}
--
-- GRPO: (r - mean) / (std + 1e-6) with the unbiased standard deviation, as Seg-Zero; a group of one keeps its reward.

local M = {}

local EPSILON = 1e-6

function M.grpo(rewards)
  local n = #rewards
  if n == 1 then return { rewards[1] / (1 + EPSILON) } end
  local mean, squares = 0, 0
  for _, r in ipairs(rewards) do mean = mean + r / n end
  for _, r in ipairs(rewards) do squares = squares + (r - mean) ^ 2 end
  local std = math.sqrt(squares / (n - 1))
  local out = {}
  for i, r in ipairs(rewards) do out[i] = (r - mean) / (std + EPSILON) end
  return out
end

return M
