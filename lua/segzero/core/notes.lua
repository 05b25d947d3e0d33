-- notes.lua - remarks on files that a run goes on with: one line each on standard error.
--
--   notes.say("models/x/config.json: the key 'y' is not known here and was not used")
--       prints `note: ...`, the first time that this text is given
--
-- Leaves out: errors, and the notes on settings (config/schema.lua).

local visible = require "segzero.core.visible"

local M = {}

local said = {}

function M.say(text)
  if said[text] then return end
  said[text] = true
  io.stderr:write("note: ", visible.text(text), "\n")
end

return M
