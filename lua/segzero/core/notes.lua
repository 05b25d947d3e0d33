-- notes.lua - remarks on files that a run goes on with: one line each on standard error.
--
--   notes.say("models/x/config.json: the key 'y' is not known here and was not used")
--       prints `note: ...`, the first time that this text is given
--   notes.silence()        no more notes from this process: another rank prints them
--
-- Leaves out: errors, and the notes on settings (config/schema.lua).

local live_line = require "segzero.core.live_line"
local visible = require "segzero.core.visible"

local M = {}

local said = {}
local silent = false

function M.silence() silent = true end

function M.say(text)
  if silent or said[text] then return end
  said[text] = true
  live_line.clear()
  io.stderr:write("note: " .. visible.text(text) .. "\n")
end

return M
