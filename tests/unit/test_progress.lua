-- test_progress.lua - how far a step is: a line of the log now and then, or on a terminal a line
-- that is replaced and goes when the work is done.

local check = require "tests.support.check"
local pty = require "tests.support.pty"
local live_line = require "segzero.core.live_line"
local progress = require "segzero.log.progress"
local time = require "posix.time"

local function sleep(seconds)
  time.nanosleep { tv_sec = 0, tv_nsec = seconds * 1e9 }
end

-- A stand-in for a trainer, and the lines of its log.
local function trainer(is_root)
  local lines = {}
  return {
    global_step = 6,
    log = { text = function(_, _, _, text) lines[#lines + 1] = text end },
    parallel = { is_root = function() return is_root end },
  }, lines
end

-- Runs f as if this were a terminal or not. Returns the texts of the live line, "" where it went.
local function seen(is_terminal, f)
  local saved = { is_possible = live_line.is_possible, show = live_line.show,
    clear = live_line.clear }
  local texts = {}
  live_line.is_possible = function() return is_terminal end
  live_line.show = function(text) texts[#texts + 1] = text end
  live_line.clear = function() texts[#texts + 1] = "" end
  local ok, why = pcall(f)
  live_line.is_possible = saved.is_possible
  live_line.show = saved.show
  live_line.clear = saved.clear
  if not ok then error(why, 0) end
  return texts
end

local function half_a_second_of(t)
  return function()
    local tick = progress.of_step(t, 4, "prompts answered")
    tick(1)
    sleep(0.6)
    tick(2)
    tick(3)
    tick(4)
  end
end

check.case("on a terminal the line is replaced, and goes", function()
  local t, lines = trainer(true)
  local texts = seen(true, half_a_second_of(t))
  check.equal(#texts, 2, "shown once in half a second")
  check.ok(texts[1]:find "^  step 7: 2/4 prompts answered, 0:0[01] left$", texts[1])
  check.equal(texts[2], "", "and removed")
  check.equal(lines, {}, "the log has none of it")
end)

check.case("elsewhere, on other ranks and without a log nothing is shown so soon", function()
  local t, lines = trainer(true)
  check.equal(seen(false, half_a_second_of(t)), {}, "no terminal")
  check.equal(lines, {}, "a line every 30 seconds")
  check.equal(seen(true, half_a_second_of((trainer(false)))), {}, "another rank")
  check.equal(seen(true, half_a_second_of {}), {}, "the memory plan")
end)

check.case("another line takes its place on a terminal", function()
  local host = require "segzero.host"
  local script = [[
    local live_line = require "segzero.core.live_line"
    if live_line.is_possible() then live_line.show "half" end
    require("segzero.log.console").say "whole"
    require("segzero.core.notes").say "a note"]]
  local session = pty.start({ host.executable, "-e", script }, { env = { TERM = "xterm" } })
  if not session then return check.skip "pseudo-terminals" end
  check.ok(session:expect "half\27[K\27[?7h\r\27[Kwhole\r\nnote: a note\r\n", "what appears")
  check.equal(session:finish(), 0, "the exit status")
end)

check.finish()
