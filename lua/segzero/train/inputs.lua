-- inputs.lua - rows as the model reads them: the image and the prompt as tokens and patches.
--
--   inputs.prepare(row, policy, prompt, { system_prompt =, max_tokens =, frames = })
--                             -> row, with row.input and its frames (data/coordinates.lua)
--   inputs.messages(row, prompt, system_prompt, img)    img: what the model sees; nil: row.image
--   inputs.cure(worst, limit, processor) -> text        the settings that take prompts which are
--                             too long; worst = {tokens =, text = tokens without the image's}
--   inputs.release(rows)      frees their images, patches and cached vision features
--
-- prompt(problem) -> the text of the question, or {text before the image, text after it}. A row
-- that cannot be read is an error that names the row. Leaves out: several images in a row.

local coordinates = require "segzero.data.coordinates"
local user_code = require "segzero.core.user_code"
local vision_cache = require "segzero.inference.vision_cache"

local M = {}

local function without_place(message) return (tostring(message):gsub("^[^:]*%.lua:%d+: ", "")) end

-- The image stands between two texts.
local function around(texts, row, system_prompt, img)
  local question = { { type = "image", image = img or row.image } }
  if texts[1] ~= "" then table.insert(question, 1, { type = "text", text = texts[1] }) end
  if texts[2] ~= "" then question[#question + 1] = { type = "text", text = texts[2] } end
  return { { role = "system", content = system_prompt }, { role = "user", content = question } }
end

-- What is asked about a row, as chat messages. A row may have a system prompt of its own.
function M.messages(row, prompt, system_prompt, img)
  system_prompt = row.system_prompt or system_prompt
  local text = user_code.call("the prompt", prompt, row.problem)
  if type(text) == "table" and #text == 2 then return around(text, row, system_prompt, img) end
  if type(text) ~= "string" then
    local message = "row %s: the prompt returned %s, expected text"
    error(message:format(tostring(row.id), tostring(text)), 0)
  end
  local question = { { type = "image", image = img or row.image }, { type = "text", text = text } }
  return { { role = "system", content = system_prompt }, { role = "user", content = question } }
end

function M.cure(worst, limit, processor)
  local text = ("set data.max_prompt_length=%d"):format(worst.tokens)
  local block = processor.patch_size * processor.merge_size
  local pixels = (limit - worst.text) * block ^ 2
  if pixels < math.max(processor.min_pixels, 1) then return text end
  return text .. (" or data.max_pixels=%d"):format(pixels)
end

local function too_long(row, policy, limit)
  local length = #row.input.input_ids
  local of_image = length - #policy:tokenizer():encode(row.input.text)
  local cure = M.cure({ tokens = length, text = length - of_image }, limit, policy:processor())
  error(("row %s: the prompt has %d tokens (%d of them image), data.max_prompt_length is %d; %s")
    :format(tostring(row.id), length, of_image, limit, cure), 0)
end

function M.prepare(row, policy, prompt, options)
  local img, own = coordinates.resized(row.image, options.frames, row.resized)
  row.resized = nil
  local messages = M.messages(row, prompt, options.system_prompt, img)
  local ok, input = pcall(policy.process, policy, messages)
  local seen = ok and coordinates.seen(input, img)
  if own then img:free() end
  if not ok then error(("row %s: %s"):format(tostring(row.id), without_place(input)), 0) end
  row.input = input
  coordinates.place(row, options.frames, seen)
  if #input.input_ids > options.max_tokens then too_long(row, policy, options.max_tokens) end
  return row
end

local function release_input(input)
  vision_cache.free { input }
  if input.pixel_values then input.pixel_values:free() end
  input.position_ids:free()
end

function M.release(rows)
  for _, row in ipairs(rows) do
    row.image:free()
    if row.resized then row.resized:free() end
    if row.input then release_input(row.input) end
  end
end

return M
