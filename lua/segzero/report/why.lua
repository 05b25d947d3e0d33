-- why.lua - why a part of the reward is 0, in words, for the parts of segzero's own rewards.
--
--   why.zeros { reward = "seg_strict", text =, solution =, parts =, frame = {width =, height =} }
--     -> {iou = "the boxes overlap by 0.31; more than 0.5 is asked", ...}
--
-- reward: the setting worker.reward.compute_score. frame: what answer and solution count in; nil if
-- it is not known, and then the distances have no limit in the words. The words are the reward's
-- own, its third result, so the reward runs again on the text. A part of a user's reward has no
-- words, because a report runs no code of a user's; `segzero why` does.
-- Leaves out: parts between 0 and their best; masks, which would need SAM2.

local loading = require "segzero.reward.loading"
local reasons = require "segzero.reward.reasons"

local M = {}

local function has_zero(parts)
  for _, value in pairs(parts) do
    if value == 0 then return true end
  end
  return false
end

function M.zeros(answer)
  local reward = loading.own(answer.reward)
  if not reward or type(answer.parts) ~= "table" or not has_zero(answer.parts) then return {} end
  local sample = answer.frame and { frame = answer.frame }
  local ok, _, _, why = pcall(reward, answer.text, answer.solution, sample)
  if not ok then return {} end
  return reasons.zeros(answer.parts, why)
end

return M
