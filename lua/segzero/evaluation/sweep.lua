-- sweep.lua - evaluates several checkpoints on the same rows: one table, a plot, and what changed
-- between each two.
--
--   sweep.members(model_path, checkpoints)
--       -> {{name =, path =, step = number | nil, words = {"model_path=...", ...}}, ...}
--       nil if model_path is a single model. model_path: "A,B,C"; checkpoints = "all" stands for
--       every checkpoint of a run folder. words: the settings that open it. An adapter's model is
--       the one that it names
--   sweep.run(cfg, members, options) -> {members = {{name =, path =, summary =, folder =}, ...},
--                                         pairs = {{from =, to =, gIoU =, cIoU =, box =}, ...}}
--       members[i].settings: the settings of its evaluation; options: of run.evaluate
--
-- Under cfg.output_path: a folder for each member (run.lua), sweep.json, the table as Markdown and
-- sweep.png. A pair is compared row by row (metrics.difference), so its interval is that of the
-- change. Leaves out: parts.

local cjson = require "cjson"
local checkpoint = require "segzero.train.run.checkpoint"
local files = require "segzero.core.files"
local folders = require "segzero.core.folders"
local metrics = require "segzero.evaluation.metrics"
local parallel = require "segzero.train.parallel"
local paths = require "segzero.config.paths"
local plot = require "segzero.tools.plot"
local report = require "segzero.evaluation.report"
local run = require "segzero.evaluation.run"

local M = {}

local MEASURES = { "gIoU", "cIoU", "box" }

-- ---- members ----
-- The settings that open a checkpoint.
local function words_of(path)
  local adapter = path .. "/adapter_config.json"
  if files.exists(path .. "/config.json") or not files.exists(adapter) then
    return { "model_path=" .. path }
  end
  local base = files.read_json_object(adapter).base_model_name_or_path
  if type(base) ~= "string" then
    error(("model_path: %s names no model (base_model_name_or_path)"):format(adapter), 0)
  end
  return { "model_path=" .. base, "adapter=" .. path }
end

local function add_member(members, path, label)
  members[#members + 1] = { path = path, label = label, words = words_of(path),
    step = tonumber(path:match "global_step_(%d+)$") }
end

-- The members of a path: all checkpoints of a run, or itself.
local function expand(members, path, checkpoints)
  local list = {}
  if checkpoints == "all" then list = checkpoint.list(path) end
  for _, one in ipairs(list) do add_member(members, one.path, one.name) end
  if #list == 0 then add_member(members, paths.policy(path), path:match "[^/]*$") end
end

-- Names for the table: the last part of the path, with a number where two are the same.
local function name_members(members)
  local times = {}
  for _, member in ipairs(members) do
    local name = member.label:gsub("%s", "_")
    times[name] = (times[name] or 0) + 1
    member.name = name
    if times[name] > 1 then member.name = ("%s-%d"):format(name, times[name]) end
  end
end

function M.members(model_path, checkpoints)
  local has_list = model_path:find(",", 1, true) and not files.exists(model_path)
  if not has_list and checkpoints ~= "all" then return nil end
  local members = {}
  for part in model_path:gmatch "[^,]+" do
    local path = part:match "^%s*(.-)/*%s*$"
    if path ~= "" then expand(members, path, checkpoints) end
  end
  if #members == 0 then error("model_path names no model", 0) end
  name_members(members)
  return members
end

-- ---- the results ----
local function by_name(v)
  if not v then return cjson.null end
  return { before = v[1], after = v[2], difference = v[3], low = v[4], high = v[5] }
end

-- What changed between each two members.
local function compare(members, options)
  local pairs_of = {}
  for i = 1, #members do
    for j = i + 1, #members do
      local d = metrics.difference(members[i].rows, members[j].rows, options)
      d.from = members[i].name
      d.to = members[j].name
      pairs_of[#pairs_of + 1] = d
    end
  end
  return pairs_of
end

local function cell(v)
  if not v then return "none" end
  return ("%.3f [%.3f, %.3f]"):format(v[1], v[2], v[3])
end

local function table_row(member)
  local s = member.summary
  local think = "none"
  if s.think then think = ("%.0f"):format(s.think.value) end
  return { member.name, cell(s.gIoU), cell(s.cIoU), cell(s.box), tostring(s.failed),
    tostring(s.errors), think }
end

local HEAD = { "checkpoint", "gIoU", "cIoU", "box", "failed", "errors", "think" }

-- Rows of equal columns, as Markdown.
local function table_lines(members)
  local rows = { HEAD }
  for _, member in ipairs(members) do rows[#rows + 1] = table_row(member) end
  local widths = {}
  for _, row in ipairs(rows) do
    for k, text in ipairs(row) do widths[k] = math.max(widths[k] or 3, #text) end
  end
  local lines = {}
  for i, row in ipairs(rows) do
    local cells = {}
    for k, text in ipairs(row) do cells[k] = text .. (" "):rep(widths[k] - #text) end
    lines[#lines + 1] = "| " .. table.concat(cells, " | ") .. " |"
    if i == 1 then
      for k, width in ipairs(widths) do cells[k] = ("-"):rep(width) end
      lines[#lines + 1] = "| " .. table.concat(cells, " | ") .. " |"
    end
  end
  return lines
end

-- Where the members stand on the plot: their steps, if all have one and they rise.
local function places(members)
  local at = {}
  local labels = {}
  for i, member in ipairs(members) do
    at[i] = member.step
    labels[i] = member.name
    if member.step then labels[i] = tostring(member.step) end
  end
  for i = 1, #members do
    local is_placed = at[i] and (i == 1 or at[i - 1] and at[i] > at[i - 1])
    if not is_placed then return labels, nil end
  end
  return labels, at
end

local function draw(members, title, path)
  local series = {}
  for _, name in ipairs(MEASURES) do
    local values = {}
    local has_any = false
    for i, member in ipairs(members) do
      values[i] = member.summary[name] or false
      has_any = has_any or member.summary[name] ~= nil
    end
    if has_any then series[#series + 1] = { name = name, values = values } end
  end
  local labels, at = places(members)
  local img = plot.chart { title = title, x = labels, at = at, series = series }
  img:save(path)
  img:free()
end

local function json_of(result)
  local out = { members = {}, pairs = {} }
  for i, member in ipairs(result.members) do
    out.members[i] = { name = member.name, path = member.path, step = member.step,
      folder = member.folder, summary = cjson.decode(report.json(member.summary)) }
  end
  for i, d in ipairs(result.pairs) do
    out.pairs[i] = { from = d.from, to = d.to, rows = d.rows }
    for _, name in ipairs(MEASURES) do out.pairs[i][name] = by_name(d[name]) end
  end
  return files.indented_json(out)
end

-- ---- the run ----
-- The folder for the results; ranks other than the first only know its path.
local function shared_folder(cfg)
  local p = parallel.new()
  return p:on_root(function()
    return folders.claim(cfg.output_path, "sweep.json", "{}\n", "output_path").path
  end), p:is_root()
end

function M.run(cfg, members, options)
  local say = options.say
  local folder, is_root = shared_folder(cfg)
  local kept = {}
  for i, member in ipairs(members) do
    say(("checkpoint %d of %d: %s"):format(i, #members, member.path))
    member.settings.output_path = folder .. "/" .. member.name
    local records
    member.summary, member.folder, records = run.evaluate(member.settings, { kept = kept, say = say,
      box_iou = options.box_iou })
    member.rows = is_root and report.for_metrics(records)
    member.settings = nil
    member.words = nil
  end
  if not is_root then return end

  local has_masks = members[1].summary.gIoU ~= nil
  local result = { members = members,
    pairs = compare(members, { masks = has_masks, resamples = cfg.resamples }) }
  local lines = table_lines(members)
  files.write(folder .. "/sweep.md", table.concat(lines, "\n") .. "\n")
  draw(members, ("%d rows of %s"):format(members[1].summary.rows, cfg.data), folder .. "/sweep.png")
  files.write(folder .. "/sweep.json", json_of(result))

  say(("sweep: %s/sweep.md, sweep.json, sweep.png"):format(folder))
  for _, line in ipairs(lines) do say(line) end
  for _, d in ipairs(result.pairs) do
    if d.from == members[1].name then
      say(("%s -> %s: %s"):format(d.from, d.to, metrics.difference_line(d)))
    end
  end
  return result
end

return M
