-- byte_progress.lua - one line on standard error about bytes that are being written: how many, how
-- fast, how long it still takes.
--
--   local tick = byte_progress.new("merging")
--   tick(done, total)        on a terminal the line is replaced twice a second; elsewhere there is
--                            a line every 30 seconds
--   tick.finish()            ends the terminal's line, also after an error
--   byte_progress.size(7.5e9) -> "7.5 GB"
--
-- The line: "  merging: 3.2 of 16.6 GB, 1.10 GB/s, 0:12 left". Leaves out: downloads
-- (hub/progress.lua).

local console = require "segzero.log.console"
local core = require "segzero.core.ffi"
local live_line = require "segzero.core.live_line"

local M = {}

local ON_TERMINAL = 0.5         -- seconds between lines
local ELSEWHERE = 30

local UNITS = { { 1e12, "TB" }, { 1e9, "GB" }, { 1e6, "MB" }, { 1e3, "kB" } }

local function unit_of(bytes)
  for _, unit in ipairs(UNITS) do
    if bytes >= unit[1] then return unit[1], unit[2] end
  end
  return 1, "bytes"
end

function M.size(bytes)
  local factor, name = unit_of(bytes)
  if factor == 1 then return ("%.0f bytes"):format(bytes) end
  return ("%.1f %s"):format(bytes / factor, name)
end

local function line(what, done, total, seconds)
  local rate = done / math.max(seconds, 1e-3)
  local factor, name = unit_of(total)
  return ("  %s: %.1f of %.1f %s, %s/s, %s left"):format(what, done / factor, total / factor, name,
    M.size(rate), console.duration((total - done) / math.max(rate, 1)))
end

function M.new(what)
  local started = core.C.sz_seconds()
  local last = started
  local live = live_line.is_possible()
  local every = live and ON_TERMINAL or ELSEWHERE
  local tick = { finish = live_line.clear }
  return setmetatable(tick, { __call = function(_, done, total)
    local now = core.C.sz_seconds()
    if now - last < every or done >= total then return end
    last = now
    local text = line(what, done, total, now - started)
    if live then live_line.show(text) else io.stderr:write(text .. "\n") end
  end })
end

return M
