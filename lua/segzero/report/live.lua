-- live.lua - the logger that keeps runs/NAME/report.html up to date while a run goes
-- (trainer.report=true).
--
-- It reads what the logger jsonl has written, as `segzero report` does, so a resumed run shows the
-- steps before it as well. It writes after the first step, then at most every 30 seconds, and never
-- more often than 1 % of the time allows, and at the end. Images are made for at most 0.1 seconds
-- each time (1 second at the end).
-- A report that cannot be written causes one message and does not end the run.
-- Leaves out: a run without a folder or without the logger jsonl, which has nothing to read.

local console = require "segzero.log.console"
local coordinates = require "segzero.data.coordinates"
local core = require "segzero.core.ffi"
local frame = require "segzero.data.frame"
local page = require "segzero.report.page"
local run_report = require "segzero.report.run_report"
local thumbnails = require "segzero.report.thumbnails"

local M = {}

local methods = {}
local mt = { __index = methods }

local EVERY = 30                -- seconds between two versions
local SHARE = 0.01              -- of the time, at most, for writing
local IMAGE_SECONDS = 0.1
local LAST_IMAGE_SECONDS = 1

local now = core.C.sz_seconds

-- The run's own data set and policy, so nothing is opened a second time.
local function source_of(run)
  local source = { set = run.train }
  pcall(function()
    source.processor = run.policy:processor()
    local frames = frame.settings(run.config.data, "data.")
    source.frames = coordinates.for_policy(frames, run.policy)
  end)
  return thumbnails.new(source)
end

function M.open(run) return setmetatable({ run = run, due = 0 }, mt) end

local function write(self, seconds, state)
  local run = self.run
  self.report = self.report or run_report.open(run.folder, { total_steps = run.total_steps,
    source = run.train and source_of(run) })
  self.report:read(true)
  page.write(run.folder .. "/report.html", { self.report:json(seconds) }, state)
end

local function update(self, seconds, state)
  if not self.run.folder then return end
  local began = now()
  local ok, reason = pcall(write, self, seconds, state)
  if not ok and core.is_interrupt(reason) then error(reason, 0) end
  if not ok and not self.told then
    self.told = true
    console.say("  report.html is not written: " .. core.plain(reason))
  end
  local ended = now()
  self.due = ended + math.max(EVERY, (ended - began) / SHARE)
end

function methods:scalars()
  if now() >= self.due then update(self, IMAGE_SECONDS, "running") end
end

function methods:close() update(self, LAST_IMAGE_SECONDS, "ended") end

return M
