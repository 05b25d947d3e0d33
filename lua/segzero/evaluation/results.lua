-- results.lua - the folders that evaluations write: summary.json, merging parts, comparing two
-- runs.
--
--   results.finish(cfg, folder, records, masks, seconds, say) -> summary
--       writes summary.json; says the summary's line
--   results.merge(cfg, given, say) -> summary     cfg.merge: folders of parts 0 to n - 1 of one
--                                                 evaluation -> a new folder
--   results.report(cfg, records, masks) -> summary     of report.lua
--   results.read_parts(list, what) -> records, config, seconds     of folders that are the parts of
--                                                 one evaluation; what: the setting, for errors
--   results.check_truth(cfg, task)                refuses gt_json_path for another task
--   results.choose_truth(cfg, config)             takes gt_json_path of the parts' config
--   results.compare(cfg, say) -> difference       cfg.compare: two folders over the same rows
--
-- A folder has config.json (the settings, total, first, last, masks), results.jsonl (a record a
-- line, judge.lua) and summary.json. say(text) prints a line. given: the settings that the user
-- gave. Folders that do not belong together are an error that names the setting and both values.
-- Leaves out: the averages (metrics.lua).

local cjson = require "cjson"
local files = require "segzero.core.files"
local folders = require "segzero.core.folders"
local metrics = require "segzero.evaluation.metrics"
local mistake = require "segzero.core.mistake"
local report = require "segzero.evaluation.report"
local rewarding = require "segzero.evaluation.rewarding"
local value_or = require("segzero.evaluation.fields").value_or

local M = {}

-- Settings that parts of one evaluation share.
local SAME_RUN = {
  "data", "split", "seed", "refshapes_size", "prompt_key", "answer_key", "image_key", "model_path",
  "adapter", "dtype", "sam2_path", "sam2_dtype", "frame", "resize", "solution_frame",
  "answer_frame", "max_pixels", "min_pixels", "several", "oracle", "masks", "total",
  "max_new_tokens", "repetition_penalty", "ignore_regions", "task", "prompt", "reward",
}

-- Settings that make two runs evaluate the same rows; the models and the ways to answer may differ.
local SAME_ROWS = { "data", "split", "seed", "refshapes_size", "masks", "total", "first", "last",
  "ignore_regions" }

-- ---- the summary ----
-- What the data's ignore regions are; nil if it has none.
local function ignore_of(cfg)
  if cfg.has_ignored then return cfg.ignore_regions end
  return nil
end

function M.report(cfg, records, masks)
  return report.of(records, { masks = masks, several = cfg.several, task = cfg.task,
    protocol = cfg.protocol, resamples = cfg.resamples, ignore = ignore_of(cfg),
    gt_json_path = cfg.gt_json_path })
end

function M.finish(cfg, folder, records, masks, seconds, say)
  local summary = M.report(cfg, records, masks)
  summary.seconds = seconds
  summary.oracle = cfg.oracle
  files.write(folder .. "/summary.json", report.json(summary))
  say("results: " .. folder)
  for _, line in ipairs(report.lines(summary)) do say(line) end
  return summary
end

-- ---- reading a folder ----
local function read_config(folder, what)
  local text = files.read(folder .. "/config.json")
  if not text then
    mistake.raise(("%s: %s holds no evaluation (config.json)"):format(what, folder))
  end
  local ok, config = pcall(cjson.decode, text)
  if not ok or type(config) ~= "table" then
    error(("%s: %s/config.json is not JSON"):format(what, folder), 0)
  end
  return config
end

local function parse_record(text, path, number)
  local ok, record = pcall(cjson.decode, text)
  if ok and type(record) == "table" and type(record.index) == "number" then return record end
  error(("%s:%d: not a result"):format(path, number), 0)
end

-- Calls add(record, path) for each line of results.jsonl.
local function read_records(folder, what, add)
  local path = folder .. "/results.jsonl"
  local file, reason = io.open(path, "r")
  if not file then error(what .. ": " .. reason, 0) end
  local number = 0
  for text in file:lines() do
    number = number + 1
    add(parse_record(text, path, number), path)
  end
  file:close()
end

local function check_same(what, keys, configs, list, i)
  for _, key in ipairs(keys) do
    local a = configs[1][key]
    local b = configs[i][key]
    if a ~= b then
      error(("%s: %s is %s in %s and %s in %s"):format(what, key, tostring(a), list[1],
        tostring(b), list[i]), 0)
    end
  end
end

-- ---- merging parts ----
-- All records of the parts in the order of their rows, the first part's settings, and the seconds
-- of all rows.
function M.read_parts(list, what)
  local configs = {}
  local by_index = {}
  local records = {}
  local seconds = 0
  for i, folder in ipairs(list) do
    configs[i] = read_config(folder, what)
    check_same(what, SAME_RUN, configs, list, i)
    read_records(folder, what, function(record, path)
      if by_index[record.index] then
        error(("%s: row %d is in %s twice or in two folders"):format(what, record.index, path), 0)
      end
      by_index[record.index] = record
      records[#records + 1] = record
      seconds = seconds + (tonumber(record.seconds) or 0)
    end)
  end
  for i = 1, configs[1].total do
    if not by_index[i] then
      error(("%s: the folders hold %d of %d rows; row %d is the first that is missing")
        :format(what, #records, configs[1].total, i), 0)
    end
  end
  table.sort(records, function(a, b) return a.index < b.index end)
  return records, configs[1], seconds
end

-- Only detection compares with the boxes of gt_json_path.
function M.check_truth(cfg, task)
  if not cfg.gt_json_path or task == "detection" then return end
  error(("gt_json_path is for task=detection, and this is %s: leave it out"):format(task), 0)
end

-- The boxes that detections are compared with: those of cfg, else those that the parts named.
function M.choose_truth(cfg, config)
  M.check_truth(cfg, config.task)
  if config.task ~= "detection" or cfg.gt_json_path then return end
  cfg.gt_json_path = value_or(config.gt_json_path, nil)
end

function M.merge(cfg, given, say)
  local records, config, seconds = M.read_parts(cfg.merge, "merge")
  if given.protocol and config.several ~= cfg.several then
    error(("merge: protocol=%s does not fit how the answers were read"):format(cfg.protocol), 0)
  end
  if not given.protocol then cfg.protocol = config.protocol end
  for _, key in ipairs { "several", "oracle", "task", "ignore_regions", "has_ignored" } do
    cfg[key] = config[key]
  end
  M.choose_truth(cfg, config)

  local folder = folders.claim(cfg.output_path, "config.json", "{}\n", "output_path").path
  config.merged = cfg.merge
  for _, key in ipairs { "part", "parts", "idx" } do config[key] = nil end
  config.first = 1
  config.last = config.total
  config.protocol = cfg.protocol
  config.gt_json_path = cfg.gt_json_path
  files.write(folder .. "/config.json", files.indented_json(config))
  local lines = {}
  for i, record in ipairs(records) do lines[i] = files.json(record) .. "\n" end
  files.write(folder .. "/results.jsonl", table.concat(lines))
  return M.finish(cfg, folder, records, config.masks, seconds, say)
end

-- ---- comparing two runs ----
local function read_by_index(folder)
  local by_index = {}
  read_records(folder, "compare", function(record)
    if by_index[record.index] then
      error(("compare: row %d is in %s twice"):format(record.index, folder), 0)
    end
    by_index[record.index] = record
  end)
  return by_index
end

function M.compare(cfg, say)
  local both = cfg.compare
  if #both ~= 2 then error(("compare: expected two folders, got %d"):format(#both), 0) end
  local configs = {}
  local by_index = {}
  for i, folder in ipairs(both) do
    configs[i] = read_config(folder, "compare")
    check_same("compare", SAME_ROWS, configs, both, i)
    by_index[i] = read_by_index(folder)
  end

  local lists = { {}, {} }
  for index = configs[1].first, configs[1].last do
    for i, folder in ipairs(both) do
      local record = by_index[i][index]
      if not record then error(("compare: %s lacks row %d"):format(folder, index), 0) end
      table.insert(lists[i], record)
    end
  end
  local options = { masks = configs[1].masks, resamples = cfg.resamples, seed = cfg.seed }
  local rewards
  if configs[1].reward == configs[2].reward then
    rewards = rewarding.difference_line(lists[1], lists[2], options)
  end
  for i, list in ipairs(lists) do lists[i] = report.for_metrics(list) end
  local difference = metrics.difference(lists[1], lists[2], options)
  if rewards then say(rewards) end
  say(metrics.difference_line(difference))
  return difference
end

return M
