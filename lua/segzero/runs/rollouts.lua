-- rollouts.lua - reads rollouts.jsonl of a run: the answers of all steps, a line for each
-- (train/records.lua, rollout_rows).
--
--   rollouts.each(path, f, options)     f(record, line) for each line, in the order of the file;
--                                       f may return false to end the reading
--   rollouts.groups(path, f, options)   f(group) for each prompt of a step: {step =, row = id,
--                                       records = {...}}
--   rollouts.shorter(line) -> line      without token ids and log-probabilities, most of its bytes
--   options: step = only this one; whole = true keeps token ids and log-probabilities
--   rollouts.steps(path) -> {first =, last =, [step] = number of answers}
--
-- A row that a step draws twice has two groups: the numbers of its answers start again. A damaged
-- line is an error with its place, except for a last line without an end, which a run is writing.
-- Leaves out: following a file that grows (report/reader.lua).

local cjson = require "cjson"

local M = {}

-- Removes a list of numbers. The quotes of a text inside a value are escaped, so its key is found
-- only where it is one.
local function without(line, key)
  local from = line:find(key, 1, true)
  if not from then return line end
  local stop = line:find("]", from, true)
  if not stop then return line end
  return line:sub(1, from + #key - 1) .. line:sub(stop)
end

function M.shorter(line) return without(without(line, '"ids":['), '"logprobs":[') end

-- The step of a line without decoding it; nil if that cannot be said for certain.
local function quick_step(line)
  local number, stop = line:match '"step":(%d+)()'
  if not number or line:find('"step":', stop, true) then return nil end
  return tonumber(number)
end

-- Calls f(line, number, is_whole) until it returns false. The line of a run that is writing may
-- have no end yet.
local function each_line(path, f)
  local file, reason = io.open(path, "rb")
  if not file then error(reason, 0) end
  local number = 0
  for line in file:lines "*L" do
    number = number + 1
    local is_whole = line:sub(-1) == "\n"
    if is_whole then line = line:sub(1, -2) end
    if f(line, number, is_whole) == false then break end
  end
  file:close()
end

-- The record of a line; nil for a cut one.
local function decode(line, path, number, is_whole)
  local ok, record = pcall(cjson.decode, line)
  local is_answer = ok and type(record) == "table" and type(record.step) == "number"
    and type(record.text) == "string" and type(record.reward) == "number"
  if is_answer then return record end
  if not is_whole then return nil end
  error(("%s:%d: not an answer of a run"):format(path, number), 0)
end

function M.each(path, f, options)
  options = options or {}
  each_line(path, function(line, number, is_whole)
    local is_wanted = not options.step or (quick_step(line) or options.step) == options.step
    if not is_wanted then return true end
    if not options.whole then line = M.shorter(line) end
    local record = decode(line, path, number, is_whole)
    if not record or options.step and record.step ~= options.step then return true end
    return f(record, line)
  end)
end

function M.groups(path, f, options)
  local open = {}               -- row -> its group that may still grow
  local list = {}
  local step
  local function flush()
    for _, group in ipairs(list) do f(group) end
    open = {}
    list = {}
  end
  M.each(path, function(record)
    if record.step ~= step then flush() end
    step = record.step
    local row = tostring(record.row)
    local group = open[row]
    if not group or group.seen[record.answer] then
      group = { step = step, row = row, records = {}, seen = {} }
      open[row] = group
      list[#list + 1] = group
    end
    group.seen[record.answer or 0] = true
    table.insert(group.records, record)
  end, options)
  flush()
end

function M.steps(path)
  local steps = {}
  each_line(path, function(line, number, is_whole)
    local step = is_whole and quick_step(line)
    if not step then
      local record = decode(line, path, number, is_whole)
      if not record then return end
      step = record.step
    end
    steps[step] = (steps[step] or 0) + 1
    steps.first = math.min(steps.first or step, step)
    steps.last = math.max(steps.last or step, step)
  end)
  return steps
end

return M
