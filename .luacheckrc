-- luacheck's settings: `make lint` runs it over the whole tree, and CI accepts no warning.

std = "luajit"
codes = true
max_line_length = false         -- `make lint` measures line length for all languages alike
self = false                    -- a method that does not need self is still a method

exclude_files = { "build/", "runs/" }

ignore = {
  "581",                        -- `not (x < y)` differs from `x >= y`: a NaN must fail a check
}

-- A case may use the names of the file around it again.
files["tests"] = { ignore = { "421", "431" } }

-- The REPL's test reads and writes undefined globals on purpose.
files["tests/system/test_repl.lua"] = { ignore = { "111", "113", "421", "431" } }
