-- line.lua - one line of a data.jsonl as a table of columns, checked.
--
--   json_line.columns(text, where, keys) -> columns     where: "file:line"; a bad line is an error
--                                                 that starts with it. null columns are left out.
--                                                 keys: {prompt_key =, answer_key =, image_key =},
--                                                 the columns' names; nil: the defaults
--                                                 Also the id (see below), and the row's system
--                                                 prompt or nil
--   json_line.image(columns, where) -> path | nil, data URL
--
-- problem, solution and id are texts, as in tables: other values become a number as it is written,
-- True or False, or the JSON of a list or object. A list as problem is chat messages
-- (data/chat.lua). mask is a mask of any form (formats/mask.lua), image a path, a data URL,
-- {path =} or {bytes = base64}, or a list with one of them. The columns that the keys name are
-- also columns.problem, .solution, .image.
-- Leaves out: what needs more than the line itself (check.lua).

local chat = require "segzero.data.chat"
local columns_of = require "segzero.data.tables.columns"
local cjson = require "cjson"
local mask_of = require "segzero.formats.mask"
local member_text = require "segzero.data.jsonl.member_text"
local utf8 = require "segzero.formats.utf8"
local value_text = require "segzero.data.tables.value_text"
local visible = require "segzero.core.visible"

local accepted = columns_of.accepted
local truth = columns_of.truth

local M = {}

local REQUIRED = { "problem", "solution", "image" }
local KEYS = { problem = "prompt_key", solution = "answer_key", image = "image_key" }

local function fail(where, message, ...) error(where .. ": " .. message:format(...), 0) end

-- ---- decoding ----
-- Why cjson refuses the line.
local function reason_of(text, message)
  local escape = utf8.lone_surrogate(text)
  if escape then return ("has a lone surrogate: %s without its other half"):format(escape) end
  return ("not a JSON object: %s"):format((tostring(message):gsub("^%u", string.lower)))
end

local function decode(text, where)
  local at, reason = utf8.fault(text)
  if at then fail(where, "not UTF-8: %s", (reason:gsub(" is not UTF%-8$", ""))) end
  local ok, columns = pcall(cjson.decode, text)
  if not ok then fail(where, "%s", reason_of(text, columns)) end
  if type(columns) ~= "table" or text:find "^%s*%[" then fail(where, "not a JSON object") end
  for name, value in pairs(columns) do
    if value == cjson.null then columns[name] = nil end
  end
  return columns
end

-- ---- the image ----
-- One image: a path, or base64 as a data URL; nil and what it is instead.
local function path_or_url(value)
  if type(value) == "string" then
    if value:sub(1, 5) == "data:" then return nil, value end
    return value
  end
  if type(value) ~= "table" then return nil, nil, type(value) end
  if type(value.bytes) == "string" then return nil, "data:;base64," .. value.bytes end
  if type(value.path) == "string" then return value.path end
  return nil, nil, "an object without path and bytes"
end

function M.image(columns, where)
  local value = columns.image
  if type(value) == "table" and value[1] ~= nil then
    if #value > 1 then
      fail(where, "the column 'image' has %d images, and a row has one", #value)
    end
    value = value[1]
  end
  local path, url, why = path_or_url(value)
  if why then fail(where, "the column 'image' is %s, expected a path or {bytes, path}", why) end
  return path, url
end

-- ---- the columns ----
-- Messages as the problem: their question, and the answer of a row without one. Returns the row's
-- system prompt, or nil.
local function read_messages(columns, where, keys)
  local found, why = chat.read(columns.problem)
  if not found then
    local name = keys.prompt_key or "problem"
    fail(where, "the column '%s' is no chat of one question: %s", name, why)
  end
  columns.problem = found.problem
  if columns.solution == nil then columns.solution = found.solution end
  return found.system_prompt
end

-- A value as text. name: of its column.
local function text_of(text, name, value)
  local inner = truth(value)
  if type(inner) == "string" then return inner end
  if inner == nil or inner == cjson.null then return nil end
  if type(inner) == "boolean" then return value_text.of(inner) end
  local written = member_text.find(text, name)
  local is_inside = type(value) == "table" and value.ground_truth ~= nil
  if is_inside then written = member_text.find(written, "ground_truth") end
  return member_text.json(written)
end

-- Sets columns.problem, .solution and .image to the columns that the keys name, as text unless
-- they are messages or an image.
local function rename(columns, text, keys)
  local names = {}
  local renamed = {}
  for _, column in ipairs(REQUIRED) do
    local key = KEYS[column]
    for _, name in ipairs(accepted(key, keys[key])) do
      if renamed[column] == nil then
        renamed[column] = columns[name]
        names[column] = name
      end
    end
  end
  for _, column in ipairs(REQUIRED) do columns[column] = renamed[column] end
  columns.solution = text_of(text, names.solution, renamed.solution)
  -- Messages are read later.
  local problem = renamed.problem
  local is_list = type(problem) == "table" and member_text.find(text, names.problem):find "^%["
  if not is_list then columns.problem = text_of(text, names.problem, problem) end
end

local NO_KEYS = {}
local SHOWN_NAMES = 12

-- Raises that a column is missing. The text is decoded again, because columns are renamed already.
local function fail_missing(text, where, column, keys)
  local names = {}
  for name in pairs(decode(text, where)) do names[#names + 1] = visible.line(name) end
  table.sort(names)
  if #names > SHOWN_NAMES then names[SHOWN_NAMES + 1] = "..." end
  local all = table.concat(names, ", ", 1, math.min(#names, SHOWN_NAMES + 1))
  local key = KEYS[column]
  fail(where, "there is no column '%s' (data.%s); there is: %s", keys[key] or column, key, all)
end

local function check_types(columns, text, where, keys)
  for _, column in ipairs(REQUIRED) do
    local value = columns[column]
    local kind = type(value)
    local is_image = column == "image" and kind == "table"
    if value == nil then fail_missing(text, where, column, keys) end
    if kind ~= "string" and not is_image then
      local name = keys[KEYS[column]] or column
      fail(where, "the column '%s' is %s, expected a string", name, kind)
    end
  end
  M.image(columns, where)
  if type(columns.image) == "string" and columns.image:find "%z" then
    fail(where, "the column 'image' has a zero byte in it")
  end
  if columns.mask ~= nil then
    local form, why = mask_of.form(columns.mask)
    if not form then fail(where, "the column 'mask' is %s", why) end
  end
end

function M.columns(text, where, keys)
  keys = keys or NO_KEYS
  local columns = decode(text, where)
  rename(columns, text, keys)
  local system_prompt
  if type(columns.problem) == "table" then
    system_prompt = read_messages(columns, where, keys)
  end
  check_types(columns, text, where, keys)
  local id = text_of(text, "id", columns.id)
  -- Only a number that a double holds is more than its text.
  local is_exact = type(columns.id) == "number" and ("%.0f"):format(columns.id) == id
  if not is_exact then columns.id = id end
  return columns, id, system_prompt
end

return M
