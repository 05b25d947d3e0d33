-- custom_reward.lua - GRPO with a reward of your own: copy this file, change `reward`, run it.
--
--   segzero examples/custom_reward.lua [key=value ...]          the settings of recipes/refcocog_grpo.lua
--   segzero examples/custom_reward.lua --score ANSWER TRUTH     only what the reward says of one answer
--
-- A reward is a function of strings and numbers:
--   text           what the model wrote, without special tokens
--   ground_truth   the row's `solution`: <box>(x0,y0),(x1,y1)</box><points>(x,y),(x,y)</points>
--   row            the row; row.frame is the side in pixels of the square that coordinates count in; with a SAM2 model
--                  row.segment(answer.parse(text)) is the answer's mask and row.mask() the true one (rewards/mask_iou.lua)
-- It returns a number and a table of named parts, which are logged one by one (metrics.jsonl and the evaluation's line). A
-- wrong answer is a low number; an error is a bug, and training stops with the row and the answer that caused it.
--
-- This one pays Seg-Zero's two format terms, the overlap itself instead of "over 0.5", and a little for thinking briefly.
-- Without a threshold a bad box still tells its group which of the answers was the better one.

local strict = require "rewards.seg_strict"
local terms = require "rewards.seg_terms"
local geometry = require "rewards.geometry"
local answer = require "segzero.formats.answer"

local BRIEF = 40        -- words of thinking that are free

local function reward(text, ground_truth, row)
  local _, format = strict(text, ground_truth, row)
  local parts = { thinking_format = format.thinking_format, segmentation_format = format.segmentation_format, overlap = 0, brief = 0 }
  local found = answer.parse(text)
  if found then
    local box = terms.read_truth(ground_truth)
    if box then parts.overlap = geometry.box_iou(found.bbox, box) end
    local _, words = found.think:gsub("%S+", "")
    parts.brief = words <= BRIEF and 1 or BRIEF / words
  end
  return parts.thinking_format + parts.segmentation_format + 3 * parts.overlap + 0.2 * parts.brief, parts
end

if arg[1] == "--score" then
  local score, parts = reward(arg[2] or "", arg[3] or "")
  print(("score %.3f (%s)"):format(score, require("segzero.train.trainer").sorted_parts(parts)))
  return
end

-- Arguments that come later win, so the command line may still name the run.
local args = { "trainer.experiment_name=custom_reward", unpack(arg) }
require("recipes.refcocog_grpo").run(args, { reward = reward })
