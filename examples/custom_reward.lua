-- custom_reward.lua - GRPO with your own reward: copy this file, change it.
--
--   segzero examples/custom_reward.lua [key=value ...]        3 steps by default
--   segzero examples/custom_reward.lua --score ANSWER TRUTH   the reward of one answer
--
-- The settings are those of recipes/refcocog_grpo.lua.
--
-- A reward is a function of strings and numbers:
--   text           what the model wrote, without special tokens
--   ground_truth   the row's `solution`: <box>(x0,y0),(x1,y1)</box><points>(x,y),(x,y)</points>
--   row            the row; row.frame is the frame that text and ground_truth count in: a square's
--                  side, or {width =, height =}. With a SAM2 model, row.segment(answer.parse(text))
--                  is the answer's mask and row.mask() the true one (rewards/mask_iou.lua)
-- It returns a number and a table of named parts, which are logged one by one (metrics.jsonl and
-- the line of an evaluation). Give a wrong answer a low number. An error is a bug: training stops
-- and shows the row and the answer that caused it.
--
-- This reward adds Seg-Zero's two format terms, the overlap itself instead of "over 0.5", and a
-- small bonus for thinking briefly. Without a threshold, two bad boxes still differ, so the group
-- shows which one was better.

local strict = require "rewards.seg_strict"
local terms = require "rewards.seg_terms"
local geometry = require "rewards.geometry"
local answer = require "segzero.formats.answer"
local cli = require "segzero.config.cli"
local grpo = require "recipes.refcocog_grpo"
local reward_parts = require "segzero.log.reward_parts"

local ABOUT = "Trains as recipes/refcocog_grpo.lua does, with the reward of this file."
local USAGE = { "[key=value ...]", "--score ANSWER TRUTH" }

local M = { on_ranks = true,
  schema = grpo.schema:renamed("examples/custom_reward.lua", ABOUT, USAGE) }

local BRIEF = 40        -- words of thinking that are free

function M.reward(text, ground_truth, row)
  local _, format = strict(text, ground_truth, row)
  local parts = {
    thinking_format = format.thinking_format,
    segmentation_format = format.segmentation_format,
    overlap = 0,
    brief = 0,
  }
  local found = answer.parse(text)
  if found then
    local box = terms.read_truth(ground_truth)
    if box then parts.overlap = geometry.box_iou(found.bbox, box) end
    local _, words = found.think:gsub("%S+", "")
    parts.brief = math.min(1, BRIEF / words)
  end
  local format_score = parts.thinking_format + parts.segmentation_format
  return format_score + 3 * parts.overlap + 0.2 * parts.brief, parts
end

local function print_score(text, ground_truth)
  local score, parts = M.reward(text or "", ground_truth or "")
  print(("score %.3f (%s)"):format(score, reward_parts.text(parts)))
end

function M.run(args)
  if args[1] == "--score" then return print_score(args[2], args[3]) end
  -- A short run by default. Later arguments win, so the command line can ask for more steps.
  local all = { "trainer.experiment_name=custom_reward", "trainer.max_steps=3", unpack(args) }
  return grpo.run(all, { reward = M.reward })
end

cli.main(M)

return M
