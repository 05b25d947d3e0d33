-- results.lua - the folders that evaluations write: summary.json, merging parts, comparing two
-- runs.
--
--   results.finish(cfg, folder, records, masks, seconds, say) -> summary
--       writes summary.json; says the summary's line
--   results.merge(cfg, given, say) -> summary     cfg.merge: folders of parts 0 to n - 1 of one
--                                                 evaluation -> a new folder
--   results.compare(cfg, say) -> difference       cfg.compare: two folders over the same rows
--
-- A folder has config.json (the settings, total, first, last, masks), results.jsonl (a record a
-- line, judge.lua) and summary.json. say(text) prints a line. given: the settings that the user
-- gave. Folders that do not belong together are an error that names the setting and both values.
-- Leaves out: the averages (metrics.lua).

local cjson = require "cjson"
local files = require "segzero.core.files"
local metrics = require "segzero.evaluation.metrics"
local objects = require "segzero.evaluation.objects"

local M = {}

local null = cjson.null

-- Settings that parts of one evaluation share.
local SAME_RUN = {
  "data", "split", "seed", "refshapes_size", "model_path", "sam2_path", "frame", "resize",
  "solution_frame", "answer_frame", "max_pixels", "min_pixels", "several", "oracle", "masks", "total",
  "max_new_tokens",
}

-- Settings that make two runs evaluate the same rows; the models and the ways to answer may differ.
local SAME_ROWS = { "data", "split", "seed", "refshapes_size", "masks", "total", "first", "last" }

-- ---- the summary ----
local function value_or(v, default)
  if v == null then return default end
  return v
end

-- The records in the form that metrics.lua reads.
local function for_metrics(records)
  local list = {}
  for i, record in ipairs(records) do
    list[i] = {
      index = record.index,
      intersection = value_or(record.intersection, 0),
      union = value_or(record.union, 0),
      box_hit = record.box_hit == true,
      rightly_empty = record.iou == 1 and record.union == 0,
      failure_kind = value_or(record.failure_kind, nil),
    }
  end
  return list
end

-- {value, low, high} with names, for JSON.
local function named_interval(v)
  if not v then return null end
  return { value = v[1], low = v[2], high = v[3] }
end

local function for_json(summary)
  local out = {}
  for name, v in pairs(summary) do out[name] = v end
  for _, name in ipairs { "gIoU", "cIoU", "box" } do out[name] = named_interval(summary[name]) end
  return out
end

function M.finish(cfg, folder, records, masks, seconds, say)
  local options = { masks = masks, resamples = cfg.resamples }
  local summary = metrics.summary(for_metrics(records), cfg.protocol, options)
  summary.seconds = seconds
  summary.oracle = cfg.oracle
  summary.several = cfg.several
  if cfg.several then summary.objects = objects.summary(records) end
  files.write(folder .. "/summary.json", cjson.encode(for_json(summary)))
  if summary.skipped > 0 then
    local line = "protocol=%s skips %d of %d rows"
    say(line:format(cfg.protocol, summary.skipped, summary.rows))
  end
  say("results: " .. folder)
  say(metrics.line(summary))
  if summary.objects then say(objects.line(summary.objects)) end
  return summary
end

-- ---- reading a folder ----
local function read_config(folder, what)
  local text = files.read(folder .. "/config.json")
  if not text then error(("%s: %s holds no evaluation (config.json)"):format(what, folder), 0) end
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

local function check_same(what, keys, configs, folders, i)
  for _, key in ipairs(keys) do
    local a = configs[1][key]
    local b = configs[i][key]
    if a ~= b then
      error(("%s: %s is %s in %s and %s in %s"):format(what, key, tostring(a), folders[1],
        tostring(b), folders[i]), 0)
    end
  end
end

-- ---- merging parts ----
-- All records of the parts in the order of their rows, the first part's settings, and the seconds
-- of all rows.
local function read_parts(folders)
  local configs = {}
  local by_index = {}
  local records = {}
  local seconds = 0
  for i, folder in ipairs(folders) do
    configs[i] = read_config(folder, "merge")
    check_same("merge", SAME_RUN, configs, folders, i)
    read_records(folder, "merge", function(record, path)
      if by_index[record.index] then
        error(("merge: row %d is in %s twice or in two folders"):format(record.index, path), 0)
      end
      by_index[record.index] = record
      records[#records + 1] = record
      seconds = seconds + (tonumber(record.seconds) or 0)
    end)
  end
  for i = 1, configs[1].total do
    if not by_index[i] then
      error(("merge: the folders hold %d of %d rows; row %d is the first that is missing")
        :format(#records, configs[1].total, i), 0)
    end
  end
  table.sort(records, function(a, b) return a.index < b.index end)
  return records, configs[1], seconds
end

function M.merge(cfg, given, say)
  local records, config, seconds = read_parts(cfg.merge)
  if given.protocol and config.several ~= cfg.several then
    error(("merge: protocol=%s does not fit how the answers were read"):format(cfg.protocol), 0)
  end
  if not given.protocol then cfg.protocol = config.protocol end
  cfg.several = config.several
  cfg.oracle = config.oracle

  local folder = files.fresh_folder(cfg.output_path)
  config.merged = cfg.merge
  config.part = nil
  config.parts = nil
  config.first = 1
  config.last = config.total
  config.protocol = cfg.protocol
  files.write(folder .. "/config.json", cjson.encode(config))
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
  local folders = cfg.compare
  if #folders ~= 2 then error(("compare: expected two folders, got %d"):format(#folders), 0) end
  local configs = {}
  local by_index = {}
  for i, folder in ipairs(folders) do
    configs[i] = read_config(folder, "compare")
    check_same("compare", SAME_ROWS, configs, folders, i)
    by_index[i] = read_by_index(folder)
  end

  local lists = { {}, {} }
  for index = configs[1].first, configs[1].last do
    for i, folder in ipairs(folders) do
      local record = by_index[i][index]
      if not record then error(("compare: %s lacks row %d"):format(folder, index), 0) end
      table.insert(lists[i], record)
    end
  end
  local options = { masks = configs[1].masks, resamples = cfg.resamples, seed = cfg.seed }
  local difference = metrics.difference(lists[1], lists[2], options)
  say(metrics.difference_line(difference))
  return difference
end

return M
