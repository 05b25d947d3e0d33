-- check.lua - checks all rows of a data set before anything is trained or evaluated on it.
--
--   local set = check.rows(set, {
--     name = "data.train_files",     the setting that names the set, for messages
--     on_bad_row = "error",          "error": bad rows are an error that lists them
--                                    "skip": they are left out, and listed
--                                    "count": they stay and are listed; lines that cannot be read
--                                    are an error
--     key = "data.on_bad_row",       the setting that holds on_bad_row
--     reward =, prompt =, masks =, empty_masks =, solution_frame =,      see row_check.lua
--     skip_long = true,              prompts that are too long are left out in any case
--     first = 1, last = 100,         only these rows; nil: all
--     depends = text,                all that the outcome depends on apart from files and the
--                                    options above: it is then kept from run to run (outcome.lua)
--     say = f(text) })
--   -> the set, or what is left of it; whether the outcome was kept from an earlier run
--
-- Only a set with meta(i) is checked (data/jsonl/source.lua): others would have to make every row.
-- Images are judged by their headers, masks by their pixels (file_facts.lua keeps what was found).
-- A check that lasts over a second says how far it is. What a set notes of itself (set.notes) is
-- said. Leaves out: how rows are checked (row_check.lua), the summary's form (faults.lua).

local core = require "segzero.core.ffi"
local faults_of = require "segzero.data.checks.faults"
local frame = require "segzero.data.frame"
local file_facts = require "segzero.data.checks.file_facts"
local outcome = require "segzero.data.checks.outcome"
local row_check = require "segzero.data.checks.row_check"
local subset = require "segzero.data.checks.subset"

local M = {}

local now = core.C.sz_seconds

local FIRST_NEWS = 1            -- seconds until the first line of progress
local NEXT_NEWS = 10

-- ---- walking the rows ----
local function new_progress(name, total, say)
  local due = now() + FIRST_NEWS
  return function(i)
    if now() < due then return end
    due = now() + NEXT_NEWS
    say(("checking %s: row %d of %d"):format(name, i, total))
  end
end

local function stop_if_interrupted()
  if core.C.sz_interrupt_pending() == 0 then return end
  core.C.sz_interrupt_set(0)
  error("interrupted", 0)
end

-- Adds an error of set:meta(i), "file:line: what", to the faults.
local function add_line_fault(faults, set, i, message)
  if core.is_interrupt(message) then error(message, 0) end
  local where = set:where(i)
  local text = core.plain(message)
  if text:sub(1, #where + 2) == where .. ": " then text = text:sub(#where + 3) end
  faults:add("line", where, text)
end

local function walk(set, options, faults, kept)
  local total = math.min(set:count(), options.last or math.huge)
  local facts = file_facts.open(set.folder or ".")
  if kept then facts.on_file = function(...) kept:file(...) end end
  local checker = row_check.new { faults = faults, facts = facts, reward = options.reward,
    prompt = options.prompt, masks = options.masks, empty_masks = options.empty_masks,
    solution_frame = options.solution_frame,
    where = function(i) return set:where(i) end }
  local progress = new_progress(set.name, total, options.say)
  for i = options.first or 1, total do
    stop_if_interrupted()
    faults:row(i)
    local ok, meta = pcall(set.meta, set, i)
    if ok then checker:row(i, meta) else add_line_fault(faults, set, i, meta) end
    progress(i)
  end
  facts:save()
end

-- ---- what follows ----
local function left_out(set, faults, options)
  local rest = subset.new(set, function(i) return faults:bad(i) end)
  if rest:count() == 0 then error(("%s: no row is left"):format(options.name), 0) end
  return rest
end

local function name_of(set, options) return ("%s=%s"):format(options.name, set.name) end

-- Leaves out the rows whose only fault is a long prompt. Returns the other faults, and those rows.
local function split_long(faults, options)
  if not options.skip_long then return faults, faults_of.new() end
  return faults:without { "prompt" }, faults:only { "prompt" }
end

-- Says or raises what is wrong. Returns the faults whose rows are left out.
local function decide(set, faults, options)
  local name = name_of(set, options)
  local total = set:count()
  local policy = options.on_bad_row
  if policy == "skip" then
    options.say(faults:text(name, total, "left out: " .. options.key .. "=skip"))
    return faults
  end
  local fatal = faults
  if policy == "count" then fatal = faults:only { "line" } end
  if fatal:count() > 0 then
    local cure = options.key .. "=skip leaves them out"
    if fatal:count() == 1 then cure = options.key .. "=skip leaves it out" end
    error(fatal:text(name, total, cure), 0)
  end
  options.say(faults:text(name, total, "what cannot be read counts as failed; " .. options.key
    .. "=skip leaves these rows out"))
  return faults_of.new()
end

local function silent() end

-- ---- the outcome of an earlier run ----
-- What the options add to the text that the outcome depends on.
local function key_of(options)
  local parts = { options.depends, options.reward or "", tostring(options.masks),
    tostring(options.empty_masks), options.solution_frame or "",
    tostring(options.first), tostring(options.last) }
  for i, part in ipairs(parts) do
    if type(part) == "table" then parts[i] = frame.text(part) end
  end
  return table.concat(parts, "\n")
end

-- The faults of all rows, and whether they are those of an earlier run.
local function find_faults(set, options)
  local kept = options.depends and outcome.open(set, key_of(options))
  local found = kept and kept:read()
  if found then return faults_of.from(found), true end
  local faults = faults_of.new()
  local ok, why = pcall(walk, set, options, faults, kept)
  if not ok then
    if kept then kept:drop() end
    error(why, 0)
  end
  if options.prompt then faults:note("prompt", options.prompt:cure()) end
  if kept then kept:write(faults:stored()) end
  return faults, false
end

function M.rows(set, options)
  if not set.meta then return set end
  options.say = options.say or silent
  for _, note in ipairs(set.notes or {}) do options.say(note) end
  local faults, was_kept = find_faults(set, options)
  local others, long = split_long(faults, options)
  if long:count() > 0 then
    options.say(long:text(name_of(set, options), set:count(),
      "left out: data.filter_overlong_prompts=true"))
  end
  local gone = faults_of.new()
  if others:count() > 0 then gone = decide(set, others, options) end
  if gone:count() + long:count() == 0 then return set, was_kept end
  local bad = function(_, i) return gone:bad(i) or long:bad(i) end
  return left_out(set, { bad = bad }, options), was_kept
end

return M
