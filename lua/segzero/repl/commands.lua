-- commands.lua - the prompt's own commands, which begin with a colon.
--
--   commands.run(":time 1 + 1", session) -> true if it was a command
--   commands.names() -> {":help", ...}
--
-- session: {out = f(text), run = f(text of an entry), history =}. Leaves out: Lua itself.

local nearest = require "segzero.core.nearest"

local M = {}

local OVERVIEW = [[
Type Lua. An expression prints its value; `_` is the last value. Enter runs a whole entry and else
begins a new line; Alt-Enter always does. Tab completes names, methods, settings, files, models.
  sz                      the segzero library (require "segzero")
  vl = sz.qwen_vl(dir)    a model; vl:process(messages), vl:generate(inp, {temperature=1, n=8}),
                          vl:logprobs(inp, ids)
  img = sz.image.load(p)  an image; img:show(), img:resize(w, h, "bicubic"), img:totensor()
  reward = require "rewards.seg_strict"
  lab.compare{prompts = {...}, rows = set:sample(10), n = 4, reward = "seg_strict"}
                          prompts compared; also lab.ask, lab.logprobs, lab.sweep, lab.worst
  plan = require("segzero.tools.plan").main {"recipes/refcocog_grpo.lua"}
                          the memory that a run needs (also: ./segzero plan RECIPE ...)
  dofile "mine.lua"       run a file
  :help NAME              what is known about a function, module, setting, op or page of the guide
  :reload [MODULE]        reads your changed files again; names that hold them see the new ones
  :time CODE              how long it takes
  :history [TEXT]         what was typed
  :quit                   leaves
Ctrl-C stops what runs and keeps the answers so far (in `so_far`), or drops the entry; Ctrl-D on an
empty entry leaves. Up and Down go through entries, Ctrl-R searches them.]]

M.OVERVIEW = OVERVIEW

local actions = {}

function actions.help(rest, session)
  if rest == "" then return session.out(OVERVIEW) end
  local text, why = require("segzero.repl.help").about(rest)
  session.out(text or why)
end

function actions.time(rest, session)
  if rest == "" then return session.out ":time needs code, as in :time vl:generate(inp)" end
  local posix_time = require "posix.time"
  local function now()
    local t = posix_time.clock_gettime(posix_time.CLOCK_MONOTONIC)
    return t.tv_sec + t.tv_nsec * 1e-9
  end
  local started = now()
  session.run(rest)
  session.out(("%.3f s"):format(now() - started))
end

function actions.reload(rest, session)
  local done, why = require("segzero.repl.reload").run(rest)
  if not done then return session.out(why) end
  if #done == 0 then return session.out "nothing has changed" end
  session.out("read again: " .. table.concat(done, ", "))
end

function actions.history(rest, session)
  for i, entry in ipairs(session.history.entries) do
    if entry:find(rest, 1, true) then session.out(("%4d  %s"):format(i, entry)) end
  end
end

function actions.quit() return "quit" end

function M.names()
  local names = {}
  for name in pairs(actions) do names[#names + 1] = ":" .. name end
  table.sort(names)
  return names
end

-- Returns whether the entry was a command, and "quit" if the prompt is to end.
function M.run(text, session)
  local name, rest = text:match "^%s*:(%a+)%s*(.-)%s*$"
  if not name then return false end
  if not actions[name] then
    session.out(("there is no command :%s%s"):format(name, nearest.question(":" .. name,
      M.names())))
    return true
  end
  return true, actions[name](rest, session)
end

return M
