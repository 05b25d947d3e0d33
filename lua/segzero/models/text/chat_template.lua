-- chat_template.lua - the chat templates that messages.lua renders without Jinja: Qwen-VL's, and
-- the same with another default system message or with none.
--
--   local kind = chat_template.read(dir, config)      config: tokenizer_config.json's table
--     -> {system = text | false}, or nil, path for a template that is not Qwen-VL's
--   chat_template.QWEN                                Qwen-VL's own, without the last newline
--
-- The file that counts is the one that transformers' processor uses: processor_config.json's key,
-- else chat_template.jinja, else chat_template.json, else tokenizer_config.json's key. Released
-- folders have a template for tools in the last one, which no processor uses. A folder without any
-- gets Qwen-VL's.
-- Leaves out: Jinja.

local cjson = require "cjson"
local files = require "segzero.core.files"

local M = {}

local HEAD = [[{% set image_count = namespace(value=0) %}{% set video_count = namespace(value=0) ]]
  .. [[%}{% for message in messages %}]]
local TAIL = [[<|im_start|>{{ message['role'] }}]]
  .. "\n"
  .. [[{% if message['content'] is string %}{{ message['content'] }}<|im_end|>]]
  .. "\n"
  .. [[{% else %}{% for content in message['content'] %}{% if content['type'] == 'image' ]]
  .. [[or 'image' in content or 'image_url' in content %}{% set image_count.value = ]]
  .. [[image_count.value + 1 %}{% if add_vision_id %}Picture {{ image_count.value }}: {% ]]
  .. [[endif %}<|vision_start|><|image_pad|><|vision_end|>{% elif content['type'] == ]]
  .. [['video' or 'video' in content %}{% set video_count.value = video_count.value + 1 ]]
  .. [[%}{% if add_vision_id %}Video {{ video_count.value }}: {% endif ]]
  .. [[%}<|vision_start|><|video_pad|><|vision_end|>{% elif 'text' in content %}{{ ]]
  .. [[content['text'] }}{% endif %}{% endfor %}<|im_end|>]]
  .. "\n"
  .. [[{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant]]
  .. "\n"
  .. [[{% endif %}]]
local BEFORE_SYSTEM = [[{% if loop.first and message['role'] != 'system' %}]]
  .. "<|im_start|>system\n"
local AFTER_SYSTEM = "<|im_end|>\n{% endif %}"
local SYSTEM = "You are a helpful assistant."

M.QWEN = HEAD .. BEFORE_SYSTEM .. SYSTEM .. AFTER_SYSTEM .. TAIL

-- ---- reading ----
-- The template's text and its file; nil without one. A list of named templates has a default.
local function text_of(value)
  if type(value) ~= "table" then return value end
  for _, t in ipairs(value) do
    if type(t) == "table" and t.name == "default" then return t.template end
  end
  return value.default
end

local function find(dir, config)
  local function from_json(name)
    local json = files.read_json_object(dir .. "/" .. name, true)
    local value = json and json.chat_template
    if value ~= nil and value ~= cjson.null then return value end
  end
  local value = from_json "processor_config.json"
  if value then return value, "processor_config.json" end
  local path = dir .. "/chat_template.jinja"
  files.check_regular(path)
  value = files.read(path)
  if value then return value, "chat_template.jinja" end
  value = from_json "chat_template.json"
  if value then return value, "chat_template.json" end
  value = config.chat_template
  if value ~= nil and value ~= cjson.null then return value, "tokenizer_config.json" end
end

-- ---- comparing ----
local function starts(text, front) return text:sub(1, #front) == front end
local function ends(text, back) return #text >= #back and text:sub(-#back) == back end

-- The default system message of a template like Qwen-VL's: a text, or false for none; nil for
-- another template.
local function system_of(text)
  if not starts(text, HEAD) or not ends(text, TAIL) then return nil end
  if #text < #HEAD + #TAIL then return nil end
  local middle = text:sub(#HEAD + 1, #text - #TAIL)
  if middle == "" then return false end
  if #middle < #BEFORE_SYSTEM + #AFTER_SYSTEM then return nil end
  if not starts(middle, BEFORE_SYSTEM) or not ends(middle, AFTER_SYSTEM) then return nil end
  local system = middle:sub(#BEFORE_SYSTEM + 1, #middle - #AFTER_SYSTEM)
  if system:find "{[{%%#]" then return nil end
  return system
end

function M.read(dir, config)
  local value, name = find(dir, config)
  if value == nil then return { system = SYSTEM } end
  local text = text_of(value)
  if type(text) ~= "string" then return nil, name end
  local system = system_of((text:gsub("%s+$", "")))
  if system == nil then return nil, name end
  return { system = system }
end

return M
