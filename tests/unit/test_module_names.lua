-- test_module_names.lua - former names of modules (core/aliases.lua) load the modules of today.
-- Leaves out: names that never had another name.

local check = require "tests.support.check"
local aliases = require "segzero.core.aliases"

check.case("every former name loads the module that has the new name", function()
  local count = 0
  for old, new in pairs(aliases.new_name) do
    local module = require("segzero." .. old)
    check.ok(module == require("segzero." .. new), old .. " is " .. new)
    count = count + 1
  end
  check.ok(count > 50, "names: " .. count)
end)

check.case("scripts' own names", function()
  check.ok(type(require("segzero.tokenizer").new) == "function")
  check.ok(type(require("segzero.models.processor").new) == "function")
  check.ok(type(require("segzero.checkpoint").save) == "function")
end)

check.finish()
