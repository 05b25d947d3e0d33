-- prompt_length.lua - how many tokens a row's prompt has, from its text and its image's size alone.
--
--   local counter = prompt_length.new(policy, cfg, prompt)    policy: may be without weights
--   counter:tokens(problem, width, height) -> all, of_image   an image that the model cannot take
--                                                             is an error
--   counter:fault(meta, fact) -> nil, or why and its kind     for data/row_check.lua
--   counter:cure() -> text                                    settings that take every prompt that
--                                                             fault() found too long; or nil
--   prompt_length.cure(worst, limit) -> text                  the same; worst: {tokens =, text =,
--                                                             block =}
--
-- nil from new() if the policy's processor cannot plan an image (models of a user's own).
-- Leaves out: several images in a row.

local core = require "segzero.core.ffi"
local inputs = require "segzero.train.inputs"
local messages_of = require "segzero.models.messages"

local M = {}

local methods = {}
local mt = { __index = methods }

function M.new(policy, cfg, prompt)
  local processor = policy:processor()
  if type(processor) ~= "table" or not processor.plan then return nil end
  processor.min_pixels = cfg.data.min_pixels
  processor.max_pixels = cfg.data.max_pixels
  return setmetatable({ processor = processor, tokenizer = policy:tokenizer(), prompt = prompt,
    system_prompt = cfg.data.system_prompt, limit = cfg.data.max_prompt_length,
    block = processor.patch_size * processor.merge_size }, mt)
end

local function render(self, problem)
  local row = { problem = problem, image = "image" }
  local messages = inputs.messages(row, self.prompt, self.system_prompt)
  return messages_of.render(messages, { add_generation_prompt = true }, self.tokenizer.system)
end

-- The image is one token of the text.
function methods:tokens(problem, width, height)
  local of_image = self.processor:plan(width, height).tokens
  return #self.tokenizer:encode(render(self, problem)) - 1 + of_image, of_image
end

function methods:fault(meta, fact)
  local ok, plan = pcall(self.processor.plan, self.processor, fact.width, fact.height)
  if not ok then return ("row %s: %s"):format(tostring(meta.id), core.plain(plan)), "image" end
  local of_image = plan.tokens
  local text = render(self, meta.problem)
  -- A token of plain ASCII has at least one byte.
  if #text + of_image <= self.limit and not text:find "[\128-\255]" then return nil end
  local tokens = #self.tokenizer:encode(text) - 1 + of_image
  if tokens <= self.limit then return nil end
  local worst = self.worst or { tokens = 0, text = 0, block = self.block }
  self.worst = worst
  worst.tokens = math.max(worst.tokens, tokens)
  worst.text = math.max(worst.text, tokens - of_image)
  return ("row %s: the prompt has %d tokens (%d of them image), data.max_prompt_length is %d")
    :format(tostring(meta.id), tokens, of_image, self.limit), "prompt"
end

function M.cure(worst, limit)
  local text = ("set data.max_prompt_length=%d"):format(worst.tokens)
  local pixels = (limit - worst.text) * worst.block ^ 2
  if pixels > 0 then text = text .. (" or data.max_pixels=%d"):format(pixels) end
  return text
end

function methods:cure()
  if not self.worst then return nil end
  local text = M.cure(self.worst, self.limit)
  local smallest = self.processor.min_pixels
  if (self.limit - self.worst.text) * self.block ^ 2 < smallest then
    text = text:gsub(" or data%.max_pixels=.*", "")
  end
  return text
end

return M
