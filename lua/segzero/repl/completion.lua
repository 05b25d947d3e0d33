-- completion.lua - what Tab offers at the prompt.
--
--   completion.candidates(text, cursor) -> {word, ...}, n     each can take the place of the last n
--                                                             bytes before the cursor
--   completion.options "generate" -> {name, ...}              the options of a function, if known
--
-- After `a.b.` and `a:` the names in that value; else globals and Lua's words; in a text between
-- quotes settings (of the GRPO recipe), models after qwen_vl "..., rewards after load "...,
-- modules after require "..., and files; in the braces of generate{...} and other calls their
-- options; after a colon at the beginning the prompt's own commands. Nothing is called.
-- Leaves out: locals of an unfinished entry.

local paths = require "segzero.repl.paths"
local words = require "segzero.commands.words"

local M = {}

local KEYWORDS = {}
for word in ([[and break do else elseif end false for function if in local nil not or repeat return
  then true until while]]):gmatch "%S+" do
  KEYWORDS[#KEYWORDS + 1] = word
end

-- The text of an unfinished string before the cursor and what stands before it; nil outside, false
-- in a comment.
local function open_string(before)
  local line = before:match "[^\n]*$"
  local quote, start
  local i = 1
  while i <= #line do
    local c = line:sub(i, i)
    if quote and c == "\\" then
      i = i + 1
    elseif quote and c == quote then
      quote = nil
    elseif not quote and (c == "'" or c == '"') then
      quote = c
      start = i
    elseif not quote and line:find("^%-%-", i) then
      return false
    end
    i = i + 1
  end
  if not quote then return nil end
  return line:sub(start + 1), line:sub(1, start - 1)
end

-- ---- in quotes ----
local function modules(prefix)
  local out = {}
  for name in pairs(package.loaded) do out[#out + 1] = name end
  for _, reward in ipairs(words.rewards "") do
    if not reward:find "[./]" then out[#out + 1] = "rewards." .. reward end
  end
  for _, file in ipairs(words.files("", ".lua")) do
    if not file:find "/$" then out[#out + 1] = (file:gsub("%.lua$", "")) end
  end
  return words.filter(out, prefix)
end

local function in_quotes(prefix, lead)
  if lead:find "require%s*%(?%s*$" then return modules(prefix) end
  local out = {}
  local schema = words.schema "recipes/refcocog_grpo.lua"
  local key, value = prefix:match "^([%w_.]+)=(.*)$"
  if key and schema then
    for _, word in ipairs(words.values(schema, key, value)) do
      out[#out + 1] = key .. "=" .. word
    end
    return words.filter(out, prefix)
  end
  if lead:find "qwen_vl%s*%(?%s*$" or lead:find "model%s*%(?%s*$" or lead:find "sam2%s*%(?%s*$" then
    out = words.models(prefix)
  end
  if lead:find "reward%s*=%s*$" then out = words.rewards(prefix) end
  for _, path in ipairs(words.files(prefix)) do out[#out + 1] = path end
  -- A setting, where a list of them is usual.
  if schema and prefix:find "^%a" and lead:find "[{,]%s*$" then
    for _, word in ipairs(words.settings(schema, prefix)) do out[#out + 1] = word end
  end
  return words.filter(out, prefix)
end

-- ---- options in braces ----
local OPTIONS = {
  generate = function() return require("segzero.inference.generation_config").OPTIONS end,
}
local NAMED = {
  qwen_vl = "dtype device adapter", sam2 = "dtype device", tensor = "dtype device",
  predict = "box points labels multimask", open = "split size seed rows",
}

-- The function whose braces are open at the cursor, if the word there can be an option's name.
local function open_call(before)
  local depth = 0
  for i = #before, 1, -1 do
    local c = before:sub(i, i)
    if c == "}" or c == ")" then depth = depth + 1 end
    if c == "{" or c == "(" then
      if depth == 0 and c == "(" then return nil end
      if depth == 0 then
        local inside = before:sub(i + 1)
        if not inside:find "^%s*[%w_]*$" and not inside:find ",%s*[%w_]*$" then return nil end
        local head = before:sub(1, i - 1)
        return head:match "([%w_]+)%s*%([^()]*%b()[^()]*,%s*$" or head:match "([%w_]+)%s*%([^()]*$"
          or head:match "([%w_]+)%s*$"
      end
      depth = depth - 1
    end
  end
end

function M.options(name)
  local out = {}
  if OPTIONS[name] then
    local set = OPTIONS[name]()
    for key, value in pairs(set.known or set) do
      local option = type(value) == "string" and value or key
      if type(option) == "string" then out[#out + 1] = option end
    end
  end
  for word in (NAMED[name] or ""):gmatch "%S+" do out[#out + 1] = word end
  return out
end

-- ---- names ----
local function globals(prefix)
  local out = {}
  for name in next, _G do
    if type(name) == "string" and name:find "^[%a_][%w_]*$" then out[#out + 1] = name end
  end
  for _, word in ipairs(KEYWORDS) do out[#out + 1] = word end
  return words.filter(out, prefix)
end

local function members(path, separator, prefix)
  local value = paths.value(path)
  if value == nil then return {} end
  local out = {}
  for name, member in pairs(paths.members(value)) do
    local is_name = type(name) == "string" and name:find "^[%a][%w_]*$"
    local fits = separator == "." or type(member) == "function"
    if is_name and fits then out[#out + 1] = name end
  end
  return words.filter(out, prefix)
end

local function commands(prefix)
  return words.filter(require("segzero.repl.commands").names(), prefix)
end

function M.candidates(text, cursor)
  local before = text:sub(1, cursor)

  -- The prompt's own commands, and what follows them.
  local command = before:match "^%s*:[%a]*$"
  if command then
    local typed = command:match ":.*$"
    return commands(typed), #typed
  end
  local quoted, lead = open_string(before)
  if quoted == false then return {}, 0 end
  if quoted then return in_quotes(quoted, lead), #quoted end

  local path, separator, prefix = before:match "([%a_][%w_.:]*)([.:])([%w_]*)$"
  -- "a..b" joins texts.
  if path and not path:find "[.:]$" then
    return members(path, separator, prefix), #prefix
  end
  prefix = before:match "[%w_]*$"
  if prefix == "" and not before:find "[{,]%s*$" then return {}, 0 end
  local call = open_call(before)
  local options = words.filter(call and M.options(call) or {}, prefix)
  if #options > 0 then
    for i, name in ipairs(options) do options[i] = name .. " = " end
    return options, #prefix
  end
  if prefix == "" then return {}, 0 end
  return globals(prefix), #prefix
end

return M
