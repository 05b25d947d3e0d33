-- prompt_length.lua - how many tokens a row's prompt has, from its text and its image's size alone.
--
--   local counter = prompt_length.new(policy, cfg, prompt)    policy: may be without weights
--   counter:fault(meta, fact) -> nil, or why and its kind     for data/checks/row_check.lua
--   counter:key() -> text                                     what faults depend on besides rows
--   counter:cure() -> text                                    settings that take every prompt that
--                                                             fault() found too long; or nil
--
-- nil from new() if the policy's processor cannot plan an image (models of a user's own).
-- Leaves out: several images in a row.

local frame = require "segzero.data.frame"
local checksum = require "segzero.core.checksum"
local core = require "segzero.core.ffi"
local files = require "segzero.core.files"
local inputs = require "segzero.train.inputs"
local messages_of = require "segzero.models.qwen_vl.messages"

local M = {}

local methods = {}
local mt = { __index = methods }

function M.new(policy, cfg, prompt)
  local processor = policy:processor()
  if type(processor) ~= "table" or not processor.plan then return nil end
  processor.min_pixels = cfg.data.min_pixels
  processor.max_pixels = cfg.data.max_pixels
  return setmetatable({ plans = {}, processor = processor, tokenizer = policy:tokenizer(),
    dir = policy.dir, prompt = prompt, system_prompt = cfg.data.system_prompt,
    resize = frame.settings(cfg.data, "data.").resize,
    limit = cfg.data.max_prompt_length }, mt)
end

local function render(self, meta)
  local row = { problem = meta.problem, image = "image", system_prompt = meta.system_prompt }
  local messages = inputs.messages(row, self.prompt, self.system_prompt)
  return messages_of.render(messages, { add_generation_prompt = true }, self.tokenizer.system)
end

-- The tokens of an image, or nil and why the model cannot take it. Sizes repeat from row to row.
local function image_tokens(self, width, height)
  local key = width * 2 ^ 26 + height
  if not self.plans[key] then
    local ok, plan = pcall(self.processor.plan, self.processor, width, height)
    if not ok then return nil, core.plain(plan) end
    self.plans[key] = plan.tokens
  end
  return self.plans[key]
end

function methods:fault(meta, fact)
  local size = self.resize or fact
  local of_image, why = image_tokens(self, size.width, size.height)
  if not of_image then return ("row %s: %s"):format(meta.id or meta.index, why), "image" end
  local text = render(self, meta)
  -- A token of plain ASCII has at least one byte.
  if #text + of_image <= self.limit and not text:find "[\128-\255]" then return nil end
  -- The image is one token of the text.
  local tokens = self.tokenizer:count(text) - 1 + of_image
  if tokens <= self.limit then return nil end
  local worst = self.worst or { tokens = 0, text = 0 }
  self.worst = worst
  worst.tokens = math.max(worst.tokens, tokens)
  worst.text = math.max(worst.text, tokens - of_image)
  return ("row %s: the prompt has %d tokens (%d of them image), data.max_prompt_length is %d")
    :format(meta.id or meta.index, tokens, of_image, self.limit), "prompt"
end

-- The files of the policy that say how a text and an image are counted.
local FILES = { "config.json", "tokenizer.json", "tokenizer_config.json",
  "preprocessor_config.json", "chat_template.json", "chat_template.jinja",
  "vocab.json", "merges.txt", "added_tokens.json" }

function methods:key()
  local size = self.resize and frame.text(self.resize) or ""
  local processor = self.processor
  local parts = { render(self, { problem = "a question" }), size, self.limit, processor.min_pixels,
    processor.max_pixels, self.dir or "" }
  for _, name in ipairs(FILES) do
    local path = self.dir and self.dir .. "/" .. name
    if path and files.exists(path) then parts[#parts + 1] = checksum.file(path) end
  end
  return table.concat(parts, "\n")
end

function methods:cure()
  if not self.worst then return nil end
  return inputs.cure(self.worst, self.limit, self.processor)
end

return M
