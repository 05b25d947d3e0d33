-- columns.lua - which column of a table is the problem, the solution, the image, the mask, the id.
--
--   local roles = columns.roles(file, { prompt_key =, answer_key =, image_key = })
--   columns.accepted(key, name) -> {name, ...}     what a setting's value stands for
--   columns.truth(value, kind)      the answer in a value of its column, and its kind; kind: the
--                                   column's, or nil
--   roles.problem, roles.solution, roles.mask, roles.ignore_mask, roles.id
--                                   names; nil where there is none
--   roles.is_chat                   whether the problem is a list of messages (data/chat.lua)
--   roles.image                     a name
--   roles.image_form                "bytes": the file's bytes, or a path; "struct": {bytes, path}
--   roles.others                    {name, ...}, all that may be a row's columns
--   roles.notes                     {text, ...}: columns that are not read, or not as they are
--
-- file: an open Parquet or Arrow file. The defaults are Seg-Zero's and EasyR1's names: problem,
-- solution, image or images; ReasonSeg's text; veRL's prompt and reward_model, ms-swift's messages,
-- LLaVA's conversations; else the only column that holds images. A key of the user's must exist.
-- Leaves out: values (source.lua).

local time_text = require "segzero.data.tables.time_text"
local visible = require "segzero.core.visible"

local M = {}

local MOST_SHOWN = 40           -- bytes of a zone's name in a note

-- The names that each default stands for.
local DEFAULTS = {
  prompt_key = { "problem", "text", "prompt", "messages", "conversations" },
  answer_key = { "solution", "answer", "reward_model" },
  image_key = { "image", "images" },
}

local function names_of(file)
  local list = {}
  for i, column in ipairs(file.columns) do list[i] = column.name end
  return (table.concat(list, ", "):gsub("%c", "?"))
end

function M.accepted(key, name)
  local defaults = DEFAULTS[key]
  if name == nil or name == defaults[1] then return defaults end
  -- The default of another program: its own name first.
  for _, default in ipairs(defaults) do
    if name == default then return { name, unpack(defaults) } end
  end
  return { name }
end

-- The ground truth in a value of the answer's column: veRL's reward_model holds it.
function M.truth(value, kind)
  local field = kind and kind.fields and kind.fields.ground_truth
  local is_inside = type(value) == "table" and (field or value.ground_truth ~= nil)
  if is_inside then return value.ground_truth, field end
  return value, kind
end

-- A column by its key. Returns nil if none of the default's names exists.
local function find(file, key, name)
  if name and file:kind(name) then return name end
  local accepted = M.accepted(key, name)
  for _, one in ipairs(accepted) do
    if file:kind(one) then return one end
  end
  if name and #accepted == 1 then
    error(("%s: there is no column '%s' (data.%s); there is: %s"):format(file.path, name, key,
      names_of(file)), 0)
  end
  return nil
end

-- "bytes" or "struct" for a column that may hold images; nil for another.
local function form_of(kind)
  if kind.form == "list" then kind = kind.element end
  if kind.form == "bytes" then return "bytes" end
  local bytes = kind.form == "struct" and kind.fields.bytes
  return bytes and bytes.form == "bytes" and "struct" or nil
end

local function find_image(file, name)
  local found = find(file, "image_key", name)
  if found then return found end
  for _, column in ipairs(file.columns) do
    if form_of(file:kind(column.name)) == "struct" then
      if found then
        error(("%s: '%s' and '%s' hold images: choose one with data.image_key"):format(file.path,
          found, column.name), 0)
      end
      found = column.name
    end
  end
  return found
end

local function need(file, key, name, what)
  if name then return name end
  error(("%s: there is no column for the %s: name it with data.%s; there is: %s"):format(file.path,
    what, key, names_of(file)), 0)
end

-- A list of lists, as of pixels, would be a Lua value for each of them.
local function is_heavy(kind)
  if kind.form == "list" and kind.element.form == "list" then return true end
  return form_of(kind) == "struct"
end

function M.is_pixels(kind)
  local row = kind.form == "list" and kind.element
  return row and row.form == "list" and row.element.form == "bool"
end

-- VisionReasoner's sets of detection and counting have no solution, but boxes or a number.
local function states_truth(file) return file:kind "bbox" ~= nil or file:kind "count" ~= nil end

local function note_zones(file, roles)
  for _, role in ipairs { "problem", "solution", "id" } do
    local kind = roles[role] and file:kind(roles[role])
    local zone = kind and kind.time and kind.time.zone
    if time_text.is_named(zone) then
      roles.notes[#roles.notes + 1] = ("%s: the column '%s' has times of the zone %s, whose "
        .. "offsets are not known here: they are written in UTC"):format(file.path, roles[role],
        visible.line(zone, MOST_SHOWN))
    end
  end
end

function M.roles(file, options)
  local roles = { others = {}, notes = {} }
  roles.problem = need(file, "prompt_key", find(file, "prompt_key", options.prompt_key), "problem")
  roles.image = need(file, "image_key", find_image(file, options.image_key), "image")
  roles.solution = find(file, "answer_key", options.answer_key)
  if file:kind "mask" then roles.mask = "mask" end
  if file:kind "ignore_mask" then roles.ignore_mask = "ignore_mask" end
  if file:kind "id" then roles.id = "id" end
  roles.is_chat = file:kind(roles.problem).form == "list"
  -- An answer may follow the question in the messages.
  if not roles.mask and not states_truth(file) and not roles.is_chat then
    need(file, "answer_key", roles.solution, "solution")
  end

  roles.image_form = form_of(file:kind(roles.image))
  if not roles.image_form then
    error(("%s: the column '%s' (data.image_key) holds no images, but a %s"):format(file.path,
      roles.image, file:kind(roles.image).form), 0)
  end

  -- The rest.
  for _, column in ipairs(file.columns) do
    local name = column.name
    if name ~= roles.image and name ~= roles.mask and name ~= roles.ignore_mask then
      if name ~= "bbox" and is_heavy(file:kind(name)) then
        roles.notes[#roles.notes + 1] = ("%s: the column '%s' is not read; a row has one image, "
          .. "'%s'"):format(file.path, name, roles.image)
      else
        roles.others[#roles.others + 1] = name
      end
    end
  end
  note_zones(file, roles)
  return roles
end

return M
