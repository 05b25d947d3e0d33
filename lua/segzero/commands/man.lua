-- man.lua - the man page, made from the table of commands: troff text on standard output.
--
--   segzero lua/segzero/commands/man.lua > segzero.1
--   require("segzero.commands.man").text() -> text
--
-- Leaves out: the settings, which SCRIPT --help lists.

local commands = require "segzero.commands"
local host = require "segzero.host"

local M = {}

local HEAD = [=[
.TH SEGZERO 1 "" "segzero %s" "User Commands"
.SH NAME
segzero \- GRPO training of vision-language models that point and segment
.SH SYNOPSIS
.B segzero
.RI [ options ] " COMMAND " [ ARGS " ...]"
.br
.B segzero
.RI [ options ] " " [ SCRIPT " " [ ARGS " ...]]"
.SH DESCRIPTION
segzero trains Qwen2.5-VL and Qwen2-VL by GRPO to answer a question about an image with a box and
points, and SAM2 turns them into a mask. Without a command and without a script it is a Lua prompt,
or runs the script on standard input.
]=]

local TAIL = [[
.SH ENVIRONMENT
.TP
.BR SEGZERO_DEVICE ", " SEGZERO_THREADS
what \-\-device and \-\-threads set
.TP
.B SEGZERO_CPU
takes the CPU kernels of a plainer processor: baseline, avx2, avx2_vnni, avx512, avx512_vnni or amx
.TP
.BR HF_HOME ", " HF_HUB_CACHE ", " HF_ENDPOINT ", " HF_TOKEN ", " HF_HUB_OFFLINE
where models and data sets from the hub are, as for Hugging Face's own tools
.SH FILES
.TP
.I ~/.segzero_history
what was typed at the prompt
.SH EXIT STATUS
0: done. 1: it failed later. 2: a mistake in the command line or its settings: an unknown name, a
wrong value, a file that is missing. 128 + N: stopped by signal N.
.SH SEE ALSO
The guide: docs/guide in the folder that segzero \-\-version calls scripts
]]

-- Text that troff takes as it is: no escapes, and no line that begins with a request.
local function plain(text)
  return (text:gsub("\\", "\\e"):gsub("%-", "\\-"):gsub("^([.'])", "\\&%1"))
end

local function entry(out, name, rest, about)
  out[#out + 1] = (".TP\n\\fB%s\\fR %s"):format(plain(name), plain(rest or "")):gsub(" $", "")
  out[#out + 1] = plain(about)
end

function M.text()
  local out = { (HEAD:format(plain(host.version)):gsub("\n$", "")), ".SH COMMANDS" }
  for _, row in ipairs(commands.list) do entry(out, row.name, row.usage, row.about) end
  out[#out + 1] = ".PP\nEach of them takes \\-\\-help."
  out[#out + 1] = ".SH OPTIONS"
  for _, row in ipairs(commands.options) do entry(out, row.name, row.value, row.about) end
  out[#out + 1] = TAIL:gsub("\n$", "")
  return table.concat(out, "\n") .. "\n"
end

if arg and arg[0] and arg[0]:find "commands/man%.lua$" then io.write(M.text()) end

return M
