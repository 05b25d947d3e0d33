-- help.lua - a schema as text: --help for a terminal, and a section of docs/settings.md.
--
-- Each setting takes two lines: key=default, which can be copied, then what it means and accepts.
-- Leaves out: wrapping. A row's help fits on one line.

local foreign_key = require "segzero.config.foreign.reading"
local values = require "segzero.config.values"

local M = {}

-- "a whole number from 1, tokens" without the article.
local function takes(row)
  local text = values.expected(row):gsub("^an? ", ""):gsub(" %(or null%)$", " or null")
  if row.unit then text = text .. ", " .. row.unit end
  return text
end

local function default_text(row)
  if row.default == nil and not row.optional then return "" end
  return values.text(row.default)
end

-- What the user typed: the script, or the command that stands for it.
local function program(schema)
  local found, host = pcall(require, "segzero.host")
  return found and host.command or schema.name
end

local function usage_lines(schema, out)
  local lead = "usage: "
  for _, line in ipairs(schema.usage) do
    local text = ("%ssegzero %s %s"):format(lead, program(schema), line)
    out[#out + 1] = (text:gsub("%s+$", ""))
    lead = "       "
  end
end

local function matches(row, part)
  return not part or row.key:lower():find(part:lower(), 1, true) ~= nil
end

local function row_lines(row, out)
  out[#out + 1] = ("  %s=%s"):format(row.key, default_text(row))
  out[#out + 1] = ("      %s (%s)"):format(row.help, takes(row))
  if row.also then out[#out + 1] = "      also: " .. table.concat(row.also, ", ") end
end

-- part: shows only keys that contain it; nil shows all.
function M.text(schema, part)
  local out = {}
  if not part then
    usage_lines(schema, out)
    out[#out + 1] = schema.about
    out[#out + 1] = "Also: --key value, --key=value, --help PART, config=FILE.yaml (the command " ..
      "line overrides it)."
    for _, line in ipairs(schema.notes) do out[#out + 1] = line end
  end
  local shown = 0
  for _, group in ipairs(schema.groups) do
    local lines = {}
    for _, row in ipairs(group.rows) do
      if matches(row, part) then row_lines(row, lines) end
    end
    if #lines > 0 then
      if #out > 0 then out[#out + 1] = "" end
      out[#out + 1] = group.title
      for _, line in ipairs(lines) do out[#out + 1] = line end
      shown = shown + #lines
    end
  end
  if shown == 0 then
    out[#out + 1] = ("no setting of %s has '%s' in its key"):format(schema.name, part)
  end
  return table.concat(out, "\n")
end

local function cell(text) return (text:gsub("|", "\\|")) end

local function code(text)
  if text == "" then return "" end
  return "`" .. cell(text) .. "`"
end

local function group_table(group, out)
  out[#out + 1] = ("\n### %s\n"):format(group.title)
  out[#out + 1] = "| key | default | takes | meaning |"
  out[#out + 1] = "| --- | --- | --- | --- |"
  for _, row in ipairs(group.rows) do
    local help = row.help
    if row.also then help = ("%s; also `%s`"):format(help, table.concat(row.also, "`, `")) end
    out[#out + 1] = ("| `%s` | %s | %s | %s |"):format(row.key, code(default_text(row)),
      cell(takes(row)), cell(help))
  end
end

-- The keys of other programs, sorted.
local function foreign_table(schema, out)
  local keys = {}
  for key in pairs(schema.foreign) do keys[#keys + 1] = key end
  if #keys == 0 then return end
  table.sort(keys)
  out[#out + 1] = "\n### Keys of other programs\n"
  out[#out + 1] = "Keys of Seg-Zero, VisionReasoner, EasyR1 and veRL that are no settings here."
  out[#out + 1] = "Accepted without effect means a note; a refused value is an error.\n"
  out[#out + 1] = "| key | read as | accepted without effect: why | refused: what to write |"
  out[#out + 1] = "| --- | --- | --- | --- |"
  for _, key in ipairs(keys) do
    local read_as, accepted, refused = foreign_key.describe(schema.foreign[key])
    out[#out + 1] = ("| `%s` | %s | %s | %s |"):format(key, cell(read_as), cell(accepted),
      cell(refused))
  end
end

function M.markdown(schema)
  local out = { ("## %s\n"):format(schema.name), schema.about }
  for _, line in ipairs(schema.notes) do out[#out + 1] = line end
  for _, group in ipairs(schema.groups) do group_table(group, out) end
  foreign_table(schema, out)
  return table.concat(out, "\n") .. "\n"
end

return M
