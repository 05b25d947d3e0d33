-- repl.lua - the interactive prompt of ./segzero.
--
--   > 1 + 2                     an expression: its values are printed, `_` keeps the first
--   3
--   > for i = 1, 2 do           unfinished: goes on at the second prompt
--   ...>   print(i)
--   ...> end
--
-- Each entry is a main chunk of its own, so a `local` ends with it. Lines are read with readline,
-- else libedit, else io.read; the history is in ~/.segzero_history. Typed code is never
-- JIT-compiled: debug hooks do not fire in compiled loops, so Ctrl-C could not stop `while true do
-- end`. Functions from files are compiled as usual.
-- The text of vl:generate appears while it is generated (for one answer, unless on_text is a
-- function or false).
-- Left out: completion, editing a multi-line entry, a history for each project.

local host = require "segzero.host"
local visible = require "segzero.core.visible"

local concat = table.concat
local sort = table.sort
local format = string.format

local M = {}

local PROMPT = "> "
local PROMPT_MORE = "...> "
local HISTORY_LINES = 1000
local POLLIN = 1
local TABLE_ENTRIES = 40        -- shown of a table; the rest is only counted
local WIDTH = 96                -- columns of a printed table
local SIGINT = 2
local TRACE_LINES = 6           -- frames shown of an error

local HELP = [[
Type Lua. An expression prints its value; `_` is the last value. Unfinished input continues at the
...> prompt.
  sz                      the segzero library (require "segzero")
  vl = sz.qwen_vl(dir)    a model; vl:process(messages), vl:generate(inp, {temperature=1, n=8}),
                          vl:logprobs(inp, ids)
  img = sz.image.load(p)  an image; img:resize(w, h, "bicubic"), img:totensor()
  reward = require "rewards.seg_strict"
  lab.compare{prompts = {...}, rows = set:sample(10), n = 4, reward = "seg_strict"}
                          prompts compared; also lab.ask, lab.logprobs, lab.sweep, lab.worst
  plan = require("segzero.tools.plan").main {"recipes/refcocog_grpo.lua"}
                          the memory that a run needs (also: ./segzero plan RECIPE ...)
  dofile "mine.lua"       run a file
  help                    this text
Ctrl-C stops what runs or drops the line; Ctrl-D on an empty line leaves.]]

-- ---- printing -----------------------------------------------------------------------------------

local function is_name(s)
  return s:match("^[%a_][%w_]*$") ~= nil
end

-- Sorts numbers before names, so that mixed keys have a stable order.
local function key_less(a, b)
  local ta = type(a)
  local tb = type(b)
  if ta ~= tb then return ta < tb end
  if ta == "number" or ta == "string" then return a < b end
  return tostring(a) < tostring(b)
end

local function show_inner(v)
  if type(v) == "string" then
    return (format("%q", v):gsub("\\\n", "\\n"))
  elseif type(v) == "table" and not (getmetatable(v) or {}).__tostring then
    if next(v) == nil then return "{}" end
    return "{...}"
  end
  return tostring(v)
end

-- A value as text: a string unchanged, a table one level deep, any other value by tostring().
function M.show(v)
  if type(v) ~= "table" or (getmetatable(v) or {}).__tostring then
    return tostring(v)
  end
  local parts = {}
  local array = #v
  for i = 1, math.min(array, TABLE_ENTRIES) do
    parts[i] = show_inner(v[i])
  end
  local count = array
  local keys = {}
  for k in pairs(v) do
    if not (type(k) == "number" and k >= 1 and k <= array and k % 1 == 0) then
      keys[#keys + 1] = k
    end
  end
  sort(keys, key_less)
  for _, k in ipairs(keys) do
    count = count + 1
    if #parts < TABLE_ENTRIES then
      local name = "[" .. show_inner(k) .. "]"
      if type(k) == "string" and is_name(k) then name = k end
      parts[#parts + 1] = name .. " = " .. show_inner(v[k])
    end
  end
  if count > #parts then
    parts[#parts + 1] = format("... %d more", count - #parts)
  end
  local lines = {}
  local line = ""
  for i, part in ipairs(parts) do
    if i < #parts then part = part .. ", " end
    if line ~= "" and #line + #part > WIDTH then
      lines[#lines + 1] = line:sub(1, -2)       -- without the space after the comma
      line = ""
    end
    line = line .. part
  end
  if #lines == 0 then return "{" .. line .. "}" end
  return "{\n  " .. concat(lines, "\n  ") .. "\n  " .. line .. "\n}"
end

-- The message and the innermost frames, without those of error(), of the strict table, and of the
-- REPL below the typed chunk. An error in the typed line itself needs no frames.
local function short_error(text)
  local message, trace = tostring(text):match("^(.-)\nstack traceback:\n(.*)$")
  if not message then return tostring(text) end
  local frames = {}
  for line in trace:gmatch("[^\n]+") do
    if line:find("[C]: in function 'call'", 1, true) then break end
    local noise = line:find("segzero/core/strict.lua:", 1, true)
      or #frames == 0 and (line:find("[C]: in function 'error'", 1, true)
        or line:find("[C]: in function 'assert'", 1, true))
    if not noise then frames[#frames + 1] = line end
  end
  -- the terminal has just shown ^C
  if message:find("interrupted!", 1, true) then message = "\n" .. message end
  if #frames <= 1 then return message end
  local more = ""
  if #frames > TRACE_LINES then more = "\n\t..." end
  return message .. "\n" .. concat(frames, "\n", 1, math.min(#frames, TRACE_LINES)) .. more
end

-- ---- reading lines ------------------------------------------------------------------------------
-- A reader is a function(prompt) that returns a line, nil at the end of input, or false if Ctrl-C
-- dropped the line.

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

local CDEF = [[
  typedef void sz_line_fn(char *);
  struct sz_pollfd { int fd; short events, revents; };
  int   sz_poll(struct sz_pollfd *, unsigned long, int) __asm__("poll");
  void  sz_line_free(void *) __asm__("free");
  void  rl_callback_handler_install(const char *prompt, sz_line_fn *handler);
  void  rl_callback_read_char(void);
  void  rl_callback_handler_remove(void);
  void  rl_callback_sigcleanup(void);
  void  rl_free_line_state(void);
  void  add_history(const char *);
  void  using_history(void);
  void  stifle_history(int);
  int   read_history(const char *);
  int   write_history(const char *);
  int   append_history(int, const char *);
  extern int rl_catch_signals;
]]

-- Calls lib[name](...) if the library has it (libedit lacks some of readline's functions).
local function try(lib, name, ...)
  return pcall(function(...) return lib[name](...) end, ...)
end

-- Loads readline, or libedit. Returns nil if neither is installed, or without FFI.
local function load_library()
  local has_ffi, ffi = pcall(require, "ffi")
  if not has_ffi then return nil end
  ffi.cdef(CDEF)
  for _, name in ipairs { "libreadline.so.8", "libedit.so.2" } do
    local loaded, lib = pcall(ffi.load, name)
    if loaded then return lib, ffi end
  end
end

-- Adds a line to the history, and to its file if there is one.
local function remember(lib, line, history)
  lib.add_history(line)
  if not history then return end
  local has_append, failed = try(lib, "append_history", 1, history)
  if not has_append or failed ~= 0 then lib.write_history(history) end
end

-- Drops the line that is being typed and gives the terminal back.
local function drop_line(lib)
  io.write("^C\n")
  io.flush()            -- first: giving the terminal back moves the cursor to the first column
  try(lib, "rl_free_line_state")
  try(lib, "rl_callback_sigcleanup")
  lib.rl_callback_handler_remove()
end

-- Uses readline's callback interface with our own poll(), so that Ctrl-C returns here; readline()
-- itself would keep waiting after the signal. Returns nil if there is no such library.
local function line_reader(history)
  local lib, ffi = load_library()
  if not lib then return nil end
  local C = ffi.C

  local complete, line
  local handler = ffi.cast("sz_line_fn *", function(text)
    complete = true
    line = nil
    if text ~= nil then
      line = ffi.string(text)
      C.sz_line_free(text)
    end
    lib.rl_callback_handler_remove()    -- gives the terminal back before the line is run
  end)
  pcall(function() lib.rl_catch_signals = 0 end)
  lib.using_history()
  try(lib, "stifle_history", HISTORY_LINES)
  if history then lib.read_history(history) end

  local fds = ffi.new("struct sz_pollfd[1]")
  local last
  local function read(prompt)
    io.flush()
    complete = false
    lib.rl_callback_handler_install(prompt, handler)
    while not complete do
      fds[0].fd = 0
      fds[0].events = POLLIN
      fds[0].revents = 0
      local ready = C.sz_poll(fds, 1, -1)
      if host.interrupted() then
        drop_line(lib)
        return false
      elseif ready > 0 then
        lib.rl_callback_read_char()
      end
    end
    if line == nil then
      io.write("\n")
    elseif line:find("%S") and line ~= last then
      last = line
      remember(lib, line, history)
    end
    return line
  end
  -- Compiled code must not call a C function that calls back into Lua.
  jit.off(read, true)
  return read
end

local function history_file()
  local home = os.getenv("HOME")
  if not home or home == "" then return nil end
  local path = home .. "/.segzero_history"
  local f = io.open(path, "a")      -- readline appends only to a file that exists
  if not f then return nil end
  f:close()
  return path
end

-- ---- the loop -----------------------------------------------------------------------------------

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

-- Reads one entry: a line and as many more as it needs. Returns a chunk, nil at the end of input,
-- or false if there is nothing to run.
local function read_chunk(read, out)
  local text = read(PROMPT)
  if not text then return text end
  text = text:gsub("^%s*=", "return ")          -- Lua 5.1's way to print a value
  if text:match("^%s*help%s*%(?%s*%)?%s*$") and rawget(_G, "help") == nil then
    out(HELP)
    return false
  end
  if not text:find("%S") then return false end
  while true do
    local chunk, err = compile(text)
    if chunk then return chunk end
    if err then
      out(err)
      return false
    end
    local more = read(PROMPT_MORE)
    if more == nil then
      out(select(2, loadstring(text, "=stdin")))
      return nil
    elseif more == false then
      return false
    end
    text = text .. "\n" .. more
  end
end

local function run_chunk(chunk, out)
  jit.off(chunk, true)
  local results = {n = 0}
  local function keep(...)
    results.n = select("#", ...)
    for i = 1, results.n do results[i] = (select(i, ...)) end
  end
  keep(host.call(chunk))
  -- SIGTERM during a training run ends the prompt too.
  local signal = host.stop_signal()
  if signal ~= 0 and signal ~= SIGINT then error(results[2], 0) end
  if not results[1] then
    out(short_error(results[2]))
    return
  end
  if results.n < 2 then return end
  rawset(_G, "_", results[2])
  local shown = {}
  for i = 2, results.n do
    -- A user's __tostring may fail or never return, so it has the same protection.
    local ok, text = host.call(M.show, results[i])
    shown[i - 1] = ok and text or "(cannot be shown: " .. short_error(text) .. ")"
  end
  out(concat(shown, "\t"))
end

-- Runs the loop until the end of input. opts, for tests: read, a reader; print, a function(text);
-- write, the same without a newline, for the text of answers; quiet, no banner.
function M.run(opts)
  opts = opts or {}
  local out = opts.print or function(text) io.write(visible.text(text), "\n") end
  local read = opts.read or line_reader(history_file()) or plain_reader
  rawset(_G, "_", nil)
  if not opts.quiet then
    out("segzero " .. host.version .. ", " .. jit.version .. ". Type help, or Ctrl-D to leave.")
  end
  if rawget(_G, "sz") == nil then
    local ok, sz = host.call(require, "segzero")
    if ok then
      rawset(_G, "sz", sz)
      if rawget(_G, "lab") == nil then rawset(_G, "lab", sz.lab) end
    else
      out("sz does not load: " .. tostring(sz):match("[^\n]*"))
    end
  end
  local has_generation, generation = host.call(require, "segzero.inference.generation_config")
  local write = opts.write or function(text)
    io.write(visible.text(text))
    io.flush()
  end
  if has_generation then generation.echo = function(_, piece) write(piece) end end
  while true do
    local chunk = read_chunk(read, out)
    if chunk == nil then break end
    if chunk then run_chunk(chunk, out) end
    host.interrupted()      -- pressed while the answer was printed: nothing left to stop
  end
  if has_generation then generation.echo = nil end
end

return M
