-- command.lua - `segzero report`: one HTML page about one run or several.
--
--   segzero report runs/refshapes_grpo                 writes runs/refshapes_grpo/report.html
--   segzero report runs/a runs/b                       writes runs/report.html: all in one page
--   segzero report runs/a runs/b --output compare.html
--   segzero report --help
--
-- The path of the page goes to standard output, notes about damaged lines to standard error. Exit
-- status: 0 done, 1 it could not be written, 2 wrong words. Leaves out: serving the page.

local folders = require "segzero.core.folders"
local host = require "segzero.host"
local mistake = require "segzero.core.mistake"
local page = require "segzero.report.page"
local run_report = require "segzero.report.run_report"
local visible = require "segzero.core.visible"

local M = {}

local HELP = [[
usage: segzero report RUN [RUN ...] [--output FILE]
  RUN             the folder of a training run, such as runs/refshapes_grpo
  --output FILE   where the page goes (default: report.html in the run's folder; for several runs,
                  next to the first one's folder)
Writes one HTML file that needs no network: curves, held-out figures, the best, worst and most
disputed answers of each step, settings. A run writes the same page by itself while it goes
(trainer.report=true). docs/guide/report.md says more.
]]

local MOST_RUNS = 12            -- as many colours as one can tell apart, and a page that opens fast

local function wrong(message, ...)
  host.fail("report", message:format(...) .. "; segzero report --help shows how", 2)
end

local function read(args)
  local found = { runs = {} }
  local i = 1
  while i <= #args do
    local word = args[i]
    local value = word:match "^%-%-output=(.*)$"
    if word == "--help" or word == "-h" then
      found.help = true
    elseif word == "--output" then
      i = i + 1
      value = args[i] or ""
    elseif word:sub(1, 1) == "-" and not value then
      wrong("unknown option '%s'; --output FILE says where the page goes", visible.line(word))
    elseif not value then
      table.insert(found.runs, word)
    end
    if value == "" then wrong "--output needs a file" end
    found.output = value or found.output
    i = i + 1
  end
  return found
end

local function output_of(o)
  if o.output then return o.output end
  local first = o.runs[1]:gsub("(.)/+$", "%1")
  if #o.runs == 1 then return first .. "/report.html" end
  return folders.parent(first) .. "/report.html"
end

local function write(o)
  local path = output_of(o)
  page.check(path)
  local texts = {}
  for i, folder in ipairs(o.runs) do
    local report = run_report.open(folder, {})
    report:read(true)
    texts[i] = report:json(math.huge)
    for _, text in ipairs(report:complaints()) do
      io.stderr:write("segzero report: " .. visible.line(text, 500) .. "\n")
    end
  end
  page.write(path, texts)
  return path
end

function M.main(args)
  local o = read(args)
  if o.help then
    io.write(HELP)
    return
  end
  if #o.runs == 0 then wrong "no run is given" end
  if #o.runs > MOST_RUNS then wrong("%d runs are given; a page takes %d", #o.runs, MOST_RUNS) end
  local ok, path = host.call(write, o)
  if not ok then host.fail("report", path, mistake.status(path)) end
  print(path)
end

return M
