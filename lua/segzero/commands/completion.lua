-- completion.lua - `segzero completion bash` and `segzero completion zsh`: what a shell offers
-- after the Tab key.
--
--   completion.main {"bash"}                  prints the shell's script
--   completion.main {"words", ...}            prints the words that can take the last one's place,
--                                             a line each; the shells' scripts call this
--   completion.words {"train", "trainer.lo"}  -> {"trainer.logger="}
--
-- The scripts are short and know no command: the words come from the tables, so they cannot be out
-- of date. Words that end in "=", "/" or "." go on without a space.
-- Leaves out: fish.

local commands = require "segzero.commands"
local mistake = require "segzero.core.mistake"
local visible = require "segzero.core.visible"
local words = require "segzero.commands.words"

local M = {}

local BASH = [=[
# bash completion for segzero; `segzero completion bash` prints it
_segzero() {
    local line current typed word
    line=${COMP_LINE:0:COMP_POINT}
    current=${line##*[ ]}
    read -ra typed <<<"${line%"$current"}"
    COMPREPLY=()
    while IFS= read -r word; do
        COMPREPLY+=("$word")
    done < <("${typed[0]}" completion words "${typed[@]:1}" "$current" 2>/dev/null)
    # bash replaces only what follows the last = or :
    local before=${COMP_WORDS[COMP_CWORD]}
    [[ $before == = || $before == : ]] && before=
    local kept=${current%"$before"}
    COMPREPLY=("${COMPREPLY[@]#"$kept"}")
    if [[ ${#COMPREPLY[@]} == 1 && ${COMPREPLY[0]} != *[=/.] ]]; then
        COMPREPLY[0]+=' '
    fi
}
complete -o nospace -F _segzero segzero ./segzero
]=]

local ZSH = [=[
#compdef segzero
# zsh completion for segzero; `segzero completion zsh` prints it
_segzero() {
    local -a found open closed
    local word
    found=(${(f)"$(${words[1]} completion words ${words[2,CURRENT-1]} "$PREFIX" 2>/dev/null)"})
    for word in $found; do
        if [[ $word == *[=/.] ]]; then open+=$word; else closed+=$word; fi
    done
    (( $#open )) && compadd -Q -S '' -- $open
    (( $#closed )) && compadd -Q -- $closed
}
if [[ $funcstack[1] == _segzero ]]; then _segzero "$@"; else compdef _segzero segzero ./segzero; fi
]=]

local SCRIPTS = { bash = BASH, zsh = ZSH }

-- ---- words ----
local VALUES = { ["--device"] = { "cpu", "cuda" }, ["--threads"] = {}, ["--ranks"] = {},
  ["-e"] = {} }

local function first_words(prefix)
  local out = commands.names()
  if prefix:sub(1, 1) == "-" then
    for _, option in ipairs(commands.options) do out[#out + 1] = option.name end
    return words.filter(out, prefix)
  end
  for _, script in ipairs(require("segzero.tools.scripts").list()) do
    out[#out + 1] = script.path
  end
  for _, path in ipairs(words.files(prefix, ".lua")) do out[#out + 1] = path end
  return words.filter(out, prefix)
end

-- Settings of a script, and their values after key= or --key.
local function of_settings(schema, before, prefix)
  local key, value = prefix:match "^([%w_.-]+)=(.*)$"
  local lead = prefix:match "^[%w_.-]+=" or ""
  local option = before and before:match "^%-%-([%w_.]+)$"
  local row = option and schema:find(option)
  if not key and row and row.type ~= "boolean" then
    key = option
    value = prefix
  end
  if not key then return words.settings(schema, prefix) end
  local out = words.values(schema, key, value)
  for i, word in ipairs(out) do out[i] = lead .. word end
  return out
end

local takers = {}

function takers.settings(row, args, prefix)
  local schema = words.schema(row.script)
  return schema and of_settings(schema, args[#args], prefix) or {}
end

function takers.plan(row, args, prefix)
  if #args == 0 and not prefix:find "=" then
    local out = { "recipes/refcocog_grpo.lua", "recipes/mask_grpo.lua" }
    for _, word in ipairs(of_settings(words.schema(row.default), nil, prefix)) do
      out[#out + 1] = word
    end
    return words.filter(out, prefix)
  end
  local schema = words.schema(args[1] or row.default) or words.schema(row.default)
  return of_settings(schema, args[#args], prefix)
end

function takers.runs(_, _, prefix) return words.runs(prefix) end

function takers.names(_, args, prefix)
  local kind = "models"
  for _, word in ipairs(args) do
    if word == "--dataset" then kind = "datasets" end
  end
  return words.filter(words.cached(kind), prefix)
end

function takers.rewards(_, _, prefix) return words.rewards(prefix) end
function takers.files(_, _, prefix) return words.files(prefix, ".lua") end
function takers.commands(_, _, prefix) return words.filter(commands.names(), prefix) end
function takers.shells(_, _, prefix) return words.filter({ "bash", "zsh" }, prefix) end

local function of_command(row, args, prefix)
  local out = {}
  local is_flag = prefix:sub(1, 1) == "-"
  if is_flag then
    for _, flag in ipairs(row.flags or {}) do out[#out + 1] = flag end
    out[#out + 1] = "--help"
  end
  if row.schema and (#args > 0 or is_flag) then
    local schema = require(row.schema).schema
    for _, word in ipairs(of_settings(schema, args[#args], prefix)) do out[#out + 1] = word end
    return words.filter(out, prefix)
  end
  local taker = takers[row.takes or ""]
  if taker and (not is_flag or row.takes == "settings") then
    for _, word in ipairs(taker(row, args, prefix)) do out[#out + 1] = word end
  end
  return words.filter(out, prefix)
end

function M.words(typed)
  local prefix = typed[#typed] or ""
  -- The program's own options come first.
  local i = 1
  while i < #typed and typed[i]:sub(1, 1) == "-" do
    if VALUES[typed[i]] then
      if i + 1 == #typed then return words.filter(VALUES[typed[i]], prefix) end
      i = i + 1
    end
    i = i + 1
  end
  if i >= #typed then return first_words(prefix) end

  local name = typed[i]
  local args = {}
  for j = i + 1, #typed - 1 do args[#args + 1] = typed[j] end
  local row = commands.by_name[name]
  if row then return of_command(row, args, prefix) end
  local schema = words.schema(name)
  return schema and of_settings(schema, args[#args], prefix) or words.files(prefix)
end

function M.main(args)
  if args[1] == "words" then
    for _, word in ipairs(M.words { select(2, unpack(args)) }) do print(word) end
    return
  end
  local script = SCRIPTS[args[1] or ""]
  if not script or args[2] then
    local got = visible.line(table.concat(args, " "))
    mistake.raise(("completion: which shell, bash or zsh? got '%s'"):format(got))
  end
  io.write(script)
end

return M
