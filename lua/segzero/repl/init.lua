-- init.lua - the interactive prompt of ./segzero.
--
--   > 1 + 2                     an expression: its values are printed, `_` keeps the first
--   3
--   > for i = 1, 2 do           unfinished: Enter begins a new line, and the whole entry is edited
--   ...>   print(i)
--   ...> end
--   > local x = 5               an outermost local stays for the next entries (locals.lua)
--   > :help vl:generate         the prompt's own commands (commands.lua)
--
--   repl.run(options)           until the end of the input
--   repl.show(value) -> text    show.lua
--
-- On a terminal entries are read by our own editor (editor.lua), so nothing needs to be installed;
-- elsewhere line by line. The history is in ~/.segzero_history. Typed code is never JIT-compiled:
-- debug hooks do not fire in compiled loops, so Ctrl-C could not stop `while true do end`.
-- Functions from files are compiled as usual. The text of vl:generate appears while it is generated
-- (for one answer, unless on_text is a function or false). After Ctrl-C the answers so far are in
-- `so_far`.
-- Leaves out: a history for each project.

local commands = require "segzero.repl.commands"
local history = require "segzero.repl.history"
local host = require "segzero.host"
local locals = require "segzero.repl.locals"
local nearest = require "segzero.core.nearest"
local show = require "segzero.repl.show"
local visible = require "segzero.core.visible"

local M = {}

local concat = table.concat

local PROMPT = "> "
local PROMPT_MORE = "...> "
local SIGINT = 2
local TRACE_LINES = 6           -- frames shown of an error

M.show = show.text

-- ---- errors ----
local function is_interrupt(message) return message:match "^[^\n]*":find "interrupted!?$" ~= nil end

-- "attempt to call method 'generat'": the nearest method of that name in the entry.
local function suggestion(message, entry)
  local kind, name = message:match "attempt to (%a+) [%a ]*'([%a_][%w_]*)'"
  if not kind or not entry then return "" end
  local paths = require "segzero.repl.paths"
  local path = entry:match("([%a_][%w_.]*)[.:]" .. name .. "%f[^%w_]")
  local value = path and paths.value(path)
  if value == nil then return "" end
  local known = {}
  for member in pairs(paths.members(value)) do
    if type(member) == "string" then known[#known + 1] = member end
  end
  return nearest.question(name, known)
end

-- The message and the innermost frames, without those of error(), of the strict table, and of the
-- REPL below the typed chunk. An error in the typed line itself needs no frames.
local function short_error(text, entry)
  if is_interrupt(tostring(text)) then return "interrupted!" end
  local message, trace = tostring(text):match("^(.-)\nstack traceback:\n(.*)$")
  if not message then return tostring(text) .. suggestion(tostring(text), entry) end
  local frames = {}
  for line in trace:gmatch("[^\n]+") do
    if line:find("[C]: in function 'call'", 1, true) then break end
    local noise = line:find("segzero/core/strict.lua:", 1, true)
      or #frames == 0 and (line:find("[C]: in function 'error'", 1, true)
        or line:find("[C]: in function 'assert'", 1, true))
    if not noise then frames[#frames + 1] = line end
  end
  message = message .. suggestion(message, entry)
  if #frames <= 1 then return message end
  local more = ""
  if #frames > TRACE_LINES then more = "\n\t..." end
  return message .. "\n" .. concat(frames, "\n", 1, math.min(#frames, TRACE_LINES)) .. more
end

-- ---- reading entries ----
-- A reader is a function(prompt) that returns a line or a whole entry, nil at the end of input, or
-- false if Ctrl-C dropped it.

local function plain_reader(prompt)
  io.write(prompt)
  io.flush()
  local line = io.read("*l")
  if host.interrupted() then
    io.write("\n")
    return false
  end
  return line
end

-- Compiles the text typed so far. Returns a chunk; nil if it is unfinished; or nil and a message.
local function compile(text)
  local chunk = loadstring("return " .. text, "=stdin")
  if chunk then return chunk end
  local err
  chunk, err = loadstring(text, "=stdin")
  if chunk then return chunk end
  -- An unfinished string cannot continue on the next line.
  local hopeless = err:find("unfinished string", 1, true) and text:sub(-1) ~= "\\"
  if err:find("'<eof>'", 1, true) and not hopeless then return nil, nil end
  return nil, err
end

-- Whether Enter runs the text: it is whole, wrong, or a command of the prompt.
local function is_whole(text)
  if text:find "^%s*:%a" or not text:find "%S" then return true end
  local chunk, err = compile((text:gsub("^%s*=", "return ")))
  return chunk ~= nil or err ~= nil
end

local function terminal_reader(past)
  local terminal = require "segzero.repl.terminal"
  if not terminal.usable() then return nil end
  local completion = require "segzero.repl.completion"
  return require("segzero.repl.editor").new {
    terminal = terminal, history = past, is_whole = is_whole,
    complete = function(text, cursor)
      local ok, list, replaced = pcall(completion.candidates, text, cursor)
      if ok then return list, replaced end
      return {}, 0
    end,
    write = function(text)
      io.write(text)
      io.flush()
    end,
  }
end

-- ---- running entries ----
local methods = {}
local session_mt = { __index = methods }

-- Says once why a local is there in the next entry, or why it is not.
function methods:say_locals(kept, left)
  if #left > 0 then
    local line = "%s ends with this entry: a kept one would replace %s"
    local whose = "what has that name already"
    self.out(line:format(concat(left, ", "), whose))
  end
  if #kept == 0 or self.has_said then return end
  self.has_said = true
  self.out(("(%s stays for the next entries: at the prompt an outermost local is kept as a global)")
    :format(concat(kept, ", ")))
end

-- The last values as `_`, and on the screen.
function methods:print_results(results)
  rawset(_G, "_", results[2])
  local shown = {}
  for i = 2, results.n do
    -- A user's __tostring may fail or never return, so it has the same protection.
    local ok, text = host.call(M.show, results[i])
    shown[i - 1] = ok and text or "(cannot be shown: " .. short_error(text) .. ")"
  end
  self.out(concat(shown, "\t"))
  if self.pictures and results.n == 2 then
    local image = package.loaded["segzero.formats.image"]
    local shows = image and image.is_image(results[2]) and self.pictures:is_inline()
    if shows then host.call(self.pictures.show, self.pictures, results[2]) end
  end
end

-- SIGTERM during a training run ends the prompt too.
local function must_end()
  local signal = host.stop_signal()
  return signal ~= 0 and signal ~= SIGINT
end

-- Runs a chunk and prints its values, or the error. Returns whether it went well.
function methods:run_chunk(chunk, entry)
  jit.off(chunk, true)
  local results = { n = 0 }
  local function keep(...)
    results.n = select("#", ...)
    for i = 1, results.n do results[i] = (select(i, ...)) end
  end
  self.answers = nil
  keep(host.call(chunk))
  if must_end() then error(results[2], 0) end
  if results[1] then
    if results.n >= 2 then self:print_results(results) end
    return true
  end
  self.out(short_error(results[2], entry))
  if not self.answers then return false end
  rawset(_G, "so_far", self.answers)
  self.out(("so_far: the %d answers up to here"):format(#self.answers))
  return false
end

-- Runs the text of an entry.
function methods:run(text)
  local kept, names, left = locals.kept(text, function(name) return self.taken[name] end)
  local chunk, err = compile(kept)
  if not chunk then
    self.out(err or select(2, loadstring(kept, "=stdin")))
    return
  end
  if self:run_chunk(chunk, text) then self:say_locals(names, left) end
end

-- ---- the loop ----
-- Words that are commands without their colon, too, alone or as a call.
local BARE_WORDS = { help = ":help", quit = ":quit", exit = ":quit" }

-- Reads one entry: a line and as many more as it needs. Returns its text, nil at the end of input,
-- or false if there is nothing to run.
function methods:read_entry()
  local text = self.read(PROMPT)
  if not text then return text end
  local word = text:match "^%s*(%a+)%s*%(?%s*%)?%s*$"
  if BARE_WORDS[word] and rawget(_G, word) == nil then text = BARE_WORDS[word] end
  text = text:gsub("^%s*=", "return ")          -- Lua 5.1's way to print a value
  while not is_whole(text) do
    local more = self.read(PROMPT_MORE)
    if more == nil then
      self.out(select(2, loadstring(text, "=stdin")))
      return nil
    elseif more == false then
      return false
    end
    text = text .. "\n" .. more
  end
  return text:find "%S" ~= nil and text
end

local function load_library(self)
  if rawget(_G, "sz") ~= nil then return end
  local ok, sz = host.call(require, "segzero")
  if ok then
    rawset(_G, "sz", sz)
    if rawget(_G, "lab") == nil then rawset(_G, "lab", sz.lab) end
  else
    self.out("sz does not load: " .. tostring(sz):match "[^\n]*")
  end
end

-- Names that a kept local must not replace: all globals there are before the first entry.
local function taken_names()
  local taken = {}
  for name in next, _G do taken[name] = true end
  return taken
end

-- Answers appear while they are generated; those of a call that was stopped are kept.
local function watch_generation(self, write)
  local found, generation = host.call(require, "segzero.inference.generation_config")
  if not found then return function() end end
  generation.echo = function(_, piece) write(piece) end
  generation.on_stopped = function(answers) self.answers = answers end
  return function()
    generation.echo = nil
    generation.on_stopped = nil
  end
end

local function watch_images(self, write)
  local sz = rawget(_G, "sz")
  local image = type(sz) == "table" and sz.image
  if not image then return end
  local kind = require("segzero.repl.terminal").images
  self.pictures = require("segzero.repl.pictures").new { kind = kind, write = write }
  image.on_show = function(img) self.pictures:show(img) end
end

-- Runs the loop until the end of input. opts, for tests: read, a reader; print, a function(text);
-- write, the same without a newline, for the text of answers; quiet, no banner.
function M.run(opts)
  opts = opts or {}
  local past = history.open(not opts.read and history.path() or nil)
  local self = setmetatable({ history = past }, session_mt)
  self.out = opts.print or function(text) io.write(visible.text(text), "\n") end
  self.read = opts.read or terminal_reader(past) or plain_reader
  local write = opts.write or function(text)
    io.write(visible.text(text))
    io.flush()
  end
  rawset(_G, "_", nil)
  if not opts.quiet then
    local banner = "segzero %s, %s. Type help, or Ctrl-D to leave."
    self.out(banner:format(host.version, jit.version))
  end
  load_library(self)
  local unwatch = watch_generation(self, write)
  if not opts.read then
    watch_images(self, function(text)
      io.write(text)
      io.flush()
    end)
  end
  self.taken = taken_names()
  local note = require("segzero.repl.reload").note
  note()
  local session = { out = self.out, history = past, run = function(text) self:run(text) end }

  while true do
    local text = self:read_entry()
    if text == nil then break end
    if text then
      local ok, is_command, result = host.call(commands.run, text, session)
      if must_end() then error(is_command, 0) end
      if not ok then self.out(short_error(is_command)) end
      if result == "quit" then break end
      if ok and not is_command then self:run(text) end
      note()
    end
    host.interrupted()      -- pressed while the answer was printed: nothing left to stop
  end
  unwatch()
end

return M
