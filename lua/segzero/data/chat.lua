-- chat.lua - a row's question as chat messages, as veRL, ms-swift and LLaVA write it.
--
--   chat.read(list) -> { problem = text, solution = text | nil, system_prompt = text | nil }
--                      or nil and why it cannot be a row
--
-- list: {{role = "system" | "user" | "assistant", content = text | {part, ...}}, ...} (veRL's
-- prompt, ms-swift's messages), or {{from = "human" | "gpt" | "system", value = text}, ...}
-- (LLaVA's conversations). part: {type = "text", text =} or {type = "image"}, which becomes <image>
-- in the problem. An answer after the question is the solution of a set that has no column for it.
-- Leaves out: several questions in a row (each error says so), tools, videos.

local visible = require "segzero.core.visible"

local M = {}

local MOST_SHOWN = 40           -- bytes of a name in a message

local ROLES = { system = "system", user = "user", human = "user", assistant = "assistant",
  gpt = "assistant" }

local function shown(v) return visible.line(tostring(v), MOST_SHOWN) end

-- Parts of a message as one text; nil and why.
local function text_of(content)
  if type(content) == "string" then return content end
  if type(content) ~= "table" then return nil, "a message without text" end
  local texts = {}
  for i, part in ipairs(content) do
    local kind = type(part) == "table" and (part.type or (part.text and "text"))
    if kind == "text" and type(part.text) == "string" then
      texts[i] = part.text
    elseif kind == "image" or kind == "image_url" then
      texts[i] = "<image>"
    else
      return nil, ("a part of type '%s' in a message"):format(shown(kind or type(part)))
    end
  end
  return table.concat(texts)
end

local function message_of(entry)
  if type(entry) ~= "table" then return nil, "a message that is a " .. type(entry) end
  local name = entry.role or entry.from
  local role = ROLES[type(name) == "string" and name or ""]
  if not role then return nil, ("a message of '%s'"):format(shown(name)) end
  local content = entry.content
  if content == nil then content = entry.value end
  local text, why = text_of(content)
  if not text then return nil, why end
  return role, text
end

function M.read(list)
  local found = {}
  for _, entry in ipairs(list) do
    local role, text = message_of(entry)
    if not role then return nil, text end
    -- The order is: system, question, answer.
    if role == "system" then
      if found.system or found.user then return nil, "a system message that is not the first" end
      found.system = text
    elseif role == "user" then
      if found.user then return nil, "several questions, and a row has one" end
      found.user = text
    else
      if not found.user or found.assistant then return nil, "an answer without a question" end
      found.assistant = text
    end
  end
  if not found.user then return nil, "no message of the user" end
  return { problem = found.user, solution = found.assistant, system_prompt = found.system }
end

return M
