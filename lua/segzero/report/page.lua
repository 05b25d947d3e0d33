-- page.lua - the HTML file of a report: web/page.html with style, scripts and data in it.
--
--   page.write(path, {json, ...}, state)      run_report's texts, one for each run. state:
--                                             "running" or "ended"; nil: not known
--   page.check(path)                          refuses a file that is no report, before any work
--
-- The data are JSON in a script element that browsers do not run. Every "<" in them is written as
-- \u003c, so no text of a model or a data set can end the element. The scripts put texts into the
-- page as text, never as HTML. A content security policy forbids loading anything else.
-- The file is written under a name of this process and then renamed (core/files.lua), so a reader
-- sees an old or a new report, and two writers do not disturb each other.
-- A file that segzero did not write is never overwritten. Leaves out: what is shown (web/).

local core = require "segzero.core.ffi"
local files = require "segzero.core.files"
local folders = require "segzero.core.folders"

local M = {}

local MARK = "<!doctype html><!-- written by segzero report -->"
local SCRIPTS = { "series.js", "charts.js", "answers.js", "settings.js", "main.js" }

local function web(name)
  local path = core.root .. "/lua/segzero/report/web/" .. name
  local text, reason = files.read(path)
  if not text then error(reason, 0) end
  return text
end

-- Replaces a marker by a text, which may hold '%'.
local function fill(template, marker, text)
  local first, last = template:find(marker, 1, true)
  return template:sub(1, first - 1) .. text .. template:sub(last + 1)
end

local template

local function template_of_page()
  if template then return template end
  local scripts = {}
  for i, name in ipairs(SCRIPTS) do scripts[i] = web(name) end
  local text = fill(web "page.html", "/*STYLE*/", web "style.css")
  template = fill(text, "/*SCRIPTS*/", table.concat(scripts, "\n"))
  return template
end

function M.html(runs, state)
  local data = ('{"made":"%s","state":"%s","runs":[%s]}'):format(os.date "%Y-%m-%d %H:%M:%S",
    state or "unknown", table.concat(runs, ",\n"))
  data = data:gsub("<", "\\u003c")
  return MARK .. "\n" .. fill(template_of_page(), "/*DATA*/", data)
end

local function is_ours(path)
  local file = io.open(path, "rb")
  if not file then return false end
  local front = file:read(#MARK)
  file:close()
  return front == MARK
end

function M.check(path)
  if folders.kind(path) == nil or is_ours(path) then return end
  error(("%s exists and is not a report of segzero; name another file with --output"):format(path),
    0)
end

function M.write(path, runs, state)
  M.check(path)
  local own = ("%s.%d"):format(path, require("posix.unistd").getpid())
  files.write(own, M.html(runs, state))
  local ok, reason = os.rename(own, path)
  if ok then return end
  folders.remove_file(own)
  error(("cannot write %s: %s"):format(path, reason), 0)
end

return M
