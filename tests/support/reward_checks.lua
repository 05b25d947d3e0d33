-- reward_checks.lua - what the tests of several rewards do in the same way.
--
--   checks.blames(reward, what, ...)         reward(...) must raise an error that contains `what`
--                                            and names the line that called the reward
--   local below = checks.numbers(seed)       below(n): the next number from 0 to n - 1, always the
--                                            same ones for a seed
--   checks.damage(below, text) -> text       with one byte changed, or another one inserted
--
-- Leaves out: what a reward says (tests/unit/test_rewards.lua, test_vision_reasoner.lua).

local check = require "tests.support.check"

local M = {}

local FILE = "reward_checks.lua"        -- the caller of the reward in blames()

function M.blames(reward, what, ...)
  local arguments = { ... }
  local ok, message = pcall(function()
    -- Not a tail call, which would hide this line.
    local score = reward(arguments[1], arguments[2], arguments[3])
    return score
  end)
  local found = not ok and message:find(what, 1, true) and message:find(FILE, 1, true)
  check.ok(found, ("wanted an error with %q at the caller, got %s"):format(what,
    tostring(message)))
end

function M.numbers(seed)
  return function(n)
    seed = (seed * 16807) % 2147483647
    return seed % n
  end
end

function M.damage(below, text)
  local i = 1 + below(#text)
  return text:sub(1, i - 1) .. string.char(below(256)) .. text:sub(i + below(2))
end

return M
