-- help.lua - `:help NAME`: finds what the documentation says about a name.
--
--   help.about("vl:generate") -> text, or nil and what to try
--
-- Looked for, in this order: a command of segzero; a name with a value (a function's comment above
-- its definition, a module's header, a model's or a tensor's method); a setting; an op; a page of
-- the guide; a word of the glossary; lines of the guide that have the word.
-- Leaves out: running anything.

local host = require "segzero.host"
local nearest = require "segzero.core.nearest"
local paths = require "segzero.repl.paths"

local M = {}

local MOST_LINES = 60           -- of a page
local MOST_FOUND = 12           -- lines of a search

local function lines_of(path)
  local file = io.open(path)
  if not file then return nil end
  local list = {}
  for line in file:lines() do list[#list + 1] = line end
  file:close()
  return list
end

local function uncommented(line) return (line:gsub("^%s*%-%- ?", "")) end

-- ---- names with a value ----
-- The comment block that ends above a line.
local function comment_above(list, line)
  local first = line
  while list[first - 1] and list[first - 1]:find "^%s*%-%-" do first = first - 1 end
  local out = {}
  for i = first, line - 1 do out[#out + 1] = uncommented(list[i]) end
  return out
end

-- The comment that a file opens with.
local function header_of(list)
  local out = {}
  for _, line in ipairs(list) do
    if not line:find "^%-%-" then break end
    out[#out + 1] = uncommented(line)
  end
  return out
end

-- The lines of a header that show how a name is used, with those below that go on.
local function usage_of(header, name)
  local out = {}
  local word = "%f[%w_]" .. name:gsub("%p", "%%%0") .. "%f[^%w_]"
  local going = false
  for _, line in ipairs(header) do
    local blanks = #line:match "^ *"
    if line:find(word) and blanks >= 2 then
      going = blanks
      out[#out + 1] = line
    elseif going and blanks > going then
      out[#out + 1] = line
    else
      going = false
    end
  end
  return out
end

local function short_path(path)
  local inside = path:sub(1, #host.root + 1) == host.root .. "/"
  return inside and path:sub(#host.root + 2) or path
end

local WRAPPERS = { "core/options%.lua$", "core/ffi%.lua$", "tensor/handle%.lua$",
  "core/registry%.lua$" }

local function is_wrapper(f)
  local source = debug.getinfo(f, "S").source
  for _, pattern in ipairs(WRAPPERS) do
    if source:find(pattern) then return true end
  end
  return false
end

-- Wrappers that check arguments hide the function itself: it is one of their upvalues.
local function unwrapped(f, depth)
  if not is_wrapper(f) then return f end
  local deeper = {}
  local i = 1
  while true do
    local name, value = debug.getupvalue(f, i)
    if not name then break end
    if type(value) == "function" then
      if not is_wrapper(value) and debug.getinfo(value, "S").what ~= "C" then return value end
      deeper[#deeper + 1] = value
    end
    i = i + 1
  end
  for _, inner in ipairs(depth > 0 and deeper or {}) do
    local found = unwrapped(inner, depth - 1)
    if not is_wrapper(found) then return found end
  end
  return f
end

local function about_function(f, name)
  local info = debug.getinfo(unwrapped(f, 3), "S")
  local path = info.source:match "^@(.*)$"
  local list = path and lines_of(path)
  if not list then return nil end
  local header = header_of(list)
  local out = { ("%s:%d"):format(short_path(path), info.linedefined) }
  for _, line in ipairs(usage_of(header, name)) do out[#out + 1] = line end
  local comment = comment_above(list, info.linedefined)
  if #comment > 0 and #out > 1 then out[#out + 1] = "" end
  for _, line in ipairs(comment) do out[#out + 1] = line end
  local definition = list[info.linedefined]
  if definition then out[#out + 1] = "  " .. definition:gsub("^%s+", "") end
  if #out <= 2 then
    for _, line in ipairs(header) do out[#out + 1] = line end
  end
  local options = require("segzero.commands.words").filter(
    require("segzero.repl.completion").options(name), "")
  if #options > 0 then out[#out + 1] = "  options: " .. table.concat(options, ", ") end
  return table.concat(out, "\n")
end

-- The file of a module, by the table that it returned.
local function about_module(value)
  for name, module in pairs(package.loaded) do
    if module == value and type(name) == "string" then
      local path = package.searchpath(name, package.path)
      local list = path and lines_of(path)
      if list and #header_of(list) > 0 then
        return short_path(path) .. "\n" .. table.concat(header_of(list), "\n")
      end
    end
  end
end

-- An object's methods say where it comes from.
local function about_object(value)
  local names = {}
  local some
  for name, member in pairs(paths.members(value)) do
    if type(member) == "function" and name:find "^%a" then
      names[#names + 1] = name
      some = some or member
    end
  end
  if not some then return nil end
  table.sort(names)
  return ("%s\nmethods: %s\n:help NAME:method says more"):format(tostring(value),
    table.concat(names, ", "))
end

local function about_value(name)
  local value, _, last = paths.value(name)
  if value == nil then return nil end
  if type(value) == "function" then return about_function(value, last) end
  if type(value) == "table" then return about_module(value) or about_object(value) end
  if type(value) == "cdata" then return about_object(value) end
  return nil
end

-- ---- settings, ops, pages ----
local function about_command(name)
  local row = require("segzero.commands").by_name[name]
  return row and ("segzero %s %s\n%s\n(segzero help %s says more)"):format(row.name, row.usage,
    row.about, row.name)
end

local SCRIPTS = { "recipes/refcocog_grpo.lua", "recipes/evaluate.lua", "examples/infer.lua" }

local function about_setting(name)
  local words = require "segzero.commands.words"
  for _, script in ipairs(SCRIPTS) do
    local schema = words.schema(script)
    local row = schema and schema:find(name)
    if row then return script .. "\n" .. schema:help(row.key) end
  end
end

local function about_op(name)
  local bare = name:match "([%w_]+)$"
  local out = {}
  for _, line in ipairs(lines_of(host.root .. "/docs/ops.md") or {}) do
    if bare and line:find("[`:.]" .. bare .. "[`(]") then out[#out + 1] = line end
  end
  return #out > 0 and "docs/ops.md\n" .. table.concat(out, "\n") or nil
end

local function page_names()
  local folders = require "segzero.core.folders"
  local names = {}
  for _, file in ipairs(folders.list(host.root .. "/docs/guide") or {}) do
    names[#names + 1] = file:match "^(.*)%.md$"
  end
  return names
end

local function about_page(name)
  local path = "docs/guide/" .. name .. ".md"
  if name:find "/" then return nil end
  local list = lines_of(host.root .. "/" .. path)
  if not list then return nil end
  local out = { path }
  for i = 1, math.min(#list, MOST_LINES) do out[#out + 1] = list[i] end
  if #list > MOST_LINES then out[#out + 1] = ("... %d more lines"):format(#list - MOST_LINES) end
  return table.concat(out, "\n")
end

local function about_word(name)
  local out = {}
  for _, line in ipairs(lines_of(host.root .. "/docs/glossary.md") or {}) do
    local first = line:match "^| *([^|]-) *|"
    if first and first:lower():find(name:lower(), 1, true) then out[#out + 1] = line end
  end
  return #out > 0 and "docs/glossary.md\n" .. table.concat(out, "\n") or nil
end

local function found_in_guide(name)
  local out = {}
  for _, page in ipairs(page_names()) do
    for number, line in ipairs(lines_of(host.root .. "/docs/guide/" .. page .. ".md") or {}) do
      if #out < MOST_FOUND and line:lower():find(name:lower(), 1, true) then
        out[#out + 1] = ("%s:%d: %s"):format(page, number, line:gsub("^%s+", ""))
      end
    end
  end
  return #out > 0 and "docs/guide\n" .. table.concat(out, "\n") or nil
end

local SEARCHES = { about_command, about_value, about_setting, about_op, about_page, about_word,
  found_in_guide }

function M.about(name)
  for _, search in ipairs(SEARCHES) do
    local ok, text = pcall(search, name)
    if ok and text then return text end
  end
  local known = page_names()
  for key in pairs(paths.members(rawget(_G, "sz") or {})) do known[#known + 1] = "sz." .. key end
  return nil, ("nothing is known about '%s'%s"):format(name, nearest.question(name, known))
end

return M
