-- results.lua - the folder of an evaluation: its summary, several parts as one, one run against
-- another.
--
--   results.finish(cfg, folder, records, { masks =, seconds = }) -> summary    written and printed
--   results.merge(cfg, given) -> summary               cfg.merge: folders of parts
--   results.compare(cfg) -> difference                 cfg.compare: two folders over the same rows
--
-- A folder has config.json (the settings, and total, first, last, masks), results.jsonl (a record a
-- line, as train/mask_evaluation.lua makes them, with seconds) and summary.json.
-- Leaves out: averages (train/metrics.lua).

local cjson = require "cjson"
local files = require "segzero.core.files"
local metrics = require "segzero.train.metrics"
local model = require "segzero.models.qwen_vl"

local M = {}

local null = cjson.null

-- What parts of one run have in common, and what two runs need in common to be compared row by row.
local SAME_RUN = { "data", "split", "seed", "refshapes_size", "model_path", "sam2_path", "frame",
  "several", "oracle", "masks", "total", "max_new_tokens" }
local SAME_ROWS = { "data", "split", "seed", "refshapes_size", "masks", "total", "first", "last" }

local function fail(message, ...) error(message:format(...), 0) end

local function without_null(value)
  if value == null then return nil end
  return value
end

-- The records as metrics.lua reads them: nil instead of null.
local function counted(records)
  local out = {}
  for i, r in ipairs(records) do
    out[i] = {
      index = r.index,
      intersection = without_null(r.intersection) or 0,
      union = without_null(r.union) or 0,
      box_hit = r.box_hit == true,
      failure_kind = without_null(r.failure_kind),
    }
  end
  return out
end

-- The summary with names instead of places: gIoU = {value =, low =, high =}.
local function as_json(summary)
  local out = {}
  for key, value in pairs(summary) do out[key] = value end
  for _, key in ipairs { "gIoU", "cIoU", "box" } do
    local interval = summary[key]
    out[key] = null
    if interval then out[key] = { value = interval[1], low = interval[2], high = interval[3] } end
  end
  return out
end

function M.finish(cfg, folder, records, options)
  local summary = metrics.summary(counted(records), cfg.protocol,
    { masks = options.masks, resamples = cfg.resamples })
  summary.seconds = options.seconds
  summary.oracle = cfg.oracle
  summary.several = cfg.several
  files.write(folder .. "/summary.json", cjson.encode(as_json(summary)))
  if summary.skipped > 0 then
    print(("%d of %d rows do not count under protocol=%s"):format(summary.skipped, summary.rows,
      cfg.protocol))
  end
  print("results: " .. folder)
  print(metrics.line(summary))
  return summary
end

-- ---- reading ----
local function read_config(dir, what)
  if not files.exists(dir .. "/config.json") then
    fail("%s: %s holds no evaluation (config.json)", what, dir)
  end
  return model.read_json(dir .. "/config.json")
end

-- Calls add(record, path) for each line of a run's results.
local function read_results(dir, what, add)
  local path = dir .. "/results.jsonl"
  local file, why = io.open(path, "r")
  if not file then fail("%s: %s", what, why) end
  local number = 0
  for line in file:lines() do
    number = number + 1
    local ok, record = pcall(cjson.decode, line)
    if not ok or type(record) ~= "table" or type(record.index) ~= "number" then
      fail("%s:%d: not a result", path, number)
    end
    add(record, path)
  end
  file:close()
end

-- The settings of each folder, which must agree in `keys`.
local function read_configs(dirs, what, keys)
  local configs = {}
  for i, dir in ipairs(dirs) do
    configs[i] = read_config(dir, what)
    for _, key in ipairs(keys) do
      local first = configs[1][key]
      local other = configs[i][key]
      if first ~= other then
        fail("%s: %s is %s in %s and %s in %s", what, key, tostring(first), dirs[1],
          tostring(other), dir)
      end
    end
  end
  return configs
end

-- ---- merging parts ----
-- All records in order; an error when a row is missing or there twice.
local function read_parts(dirs, total)
  local records = {}
  local by_index = {}
  for _, dir in ipairs(dirs) do
    read_results(dir, "merge", function(record, path)
      local index = record.index
      if by_index[index] then
        fail("merge: row %d is in %s twice or in two folders", index, path)
      end
      by_index[index] = true
      records[#records + 1] = record
    end)
  end
  for index = 1, total do
    if not by_index[index] then
      fail("merge: the folders hold %d of %d rows; row %d is the first that is missing", #records,
        total, index)
    end
  end
  table.sort(records, function(a, b) return a.index < b.index end)
  return records
end

-- The protocol is the parts', unless the user names another one that reads answers in the same way.
local function choose_protocol(cfg, given, one)
  if not given.protocol then cfg.protocol = one.protocol end
  if given.protocol and one.several ~= cfg.several then
    fail("merge: protocol=%s does not go with how the answers were read", cfg.protocol)
  end
  cfg.several = one.several
  cfg.oracle = one.oracle
end

local function write_merged(folder, config, records)
  files.write(folder .. "/config.json", cjson.encode(config))
  local lines = {}
  for i, record in ipairs(records) do lines[i] = files.json(record) .. "\n" end
  files.write(folder .. "/results.jsonl", table.concat(lines))
end

function M.merge(cfg, given)
  local config = read_configs(cfg.merge, "merge", SAME_RUN)[1]
  local records = read_parts(cfg.merge, config.total)
  choose_protocol(cfg, given, config)
  local seconds = 0
  for _, record in ipairs(records) do seconds = seconds + (tonumber(record.seconds) or 0) end

  config.merged = cfg.merge
  config.part = nil
  config.parts = nil
  config.first = 1
  config.last = config.total
  config.protocol = cfg.protocol
  local folder = files.fresh_folder(cfg.output_path)
  write_merged(folder, config, records)
  return M.finish(cfg, folder, records, { masks = config.masks, seconds = seconds })
end

-- ---- one run against another ----
-- The rows must be the same; the models and the ways to answer may differ.
function M.compare(cfg)
  local dirs = cfg.compare
  if #dirs ~= 2 then fail("compare: two folders are expected, not %d", #dirs) end
  local config = read_configs(dirs, "compare", SAME_ROWS)[1]
  local by_index = { {}, {} }
  for i, dir in ipairs(dirs) do
    read_results(dir, "compare", function(record)
      if by_index[i][record.index] then
        fail("compare: row %d is in %s twice", record.index, dir)
      end
      by_index[i][record.index] = record
    end)
  end
  local lists = { {}, {} }
  for index = config.first, config.last do
    for i, dir in ipairs(dirs) do
      local record = by_index[i][index]
      if not record then fail("compare: %s lacks row %d", dir, index) end
      table.insert(lists[i], record)
    end
  end
  local options = { masks = config.masks, resamples = cfg.resamples, seed = cfg.seed }
  local difference = metrics.difference(lists[1], lists[2], options)
  print(metrics.difference_line(difference))
  return difference
end

return M
