-- command.lua - a command of segzero with settings and a few words, such as
--
--   segzero reward my_reward.lua --against seg_strict rows=4
--
--   command.main {
--     name = "reward", schema = schema.new {...}, args = words of the command line,
--     words = { least = 1, most = 1, what = "a reward" },
--     execute = function(cfg, words, given) ... end,
--     on_ranks = true,               several ranks can share the work; at first not
--   }
--
-- Words are what is neither key=value nor an option or its value. A mistake in them is printed as
-- "reward: message" with the status 2, an error in the work with the status 1, unless it is a
-- mistake that shows up late (core/mistake.lua). --help [PART] prints the schema's help.
-- Leaves out: scripts with settings (cli.lua).

local arguments = require "segzero.config.arguments"
local host = require "segzero.host"
local mistake = require "segzero.core.mistake"
local ranks = require "segzero.core.ranks"
local visible = require "segzero.core.visible"

local M = {}

-- How many words of args the setting at place i takes; nil if it is none.
local function setting_length(schema, args, i)
  local word = args[i]
  if word:match "^%-?%-?[%w_][%w_.]*=" then return 1 end
  local key = word:match "^%-%-([%w_.]+)$"
  if not key then
    if word:sub(1, 1) == "-" then return 1 end
    return nil
  end
  local row = schema:find(key)
  if row and row.type == "boolean" then return 1 end
  return 2
end

-- The settings among the arguments, and the words.
function M.split(schema, args)
  local settings = {}
  local words = {}
  local i = 1
  while i <= #args do
    local length = setting_length(schema, args, i)
    if length then
      for k = i, math.min(i + length - 1, #args) do settings[#settings + 1] = args[k] end
    else
      words[#words + 1] = args[i]
    end
    i = i + (length or 1)
  end
  return settings, words
end

local function check_words(o, words)
  local what = o.words.what
  if #words < o.words.least then
    error(("no %s is given; segzero %s --help shows how"):format(what:gsub("^an? ", ""), o.name), 0)
  end
  if #words <= o.words.most then return end
  local message = "'%s' is one word too many: the command takes %s, and settings are key=value or "
    .. "--key value"
  error(message:format(visible.line(words[o.words.most + 1]), what), 0)
end

-- With several ranks the first one alone prints.
local function join_ranks(o)
  local stray = o.on_ranks and ranks.stray()
  if stray then error(stray, 0) end
  if not ranks.launched() or ranks.world():size() == 1 then return end
  if ranks.world():rank() > 0 then
    local parallel = require "segzero.train.parallel"
    if o.on_ranks then parallel.quiet() else parallel.mute() end
  end
  if not o.on_ranks then error("it works on one rank: leave out --ranks, mpirun and srun", 0) end
end

local function read(o)
  join_ranks(o)
  local settings, words = M.split(o.schema, o.args)
  local cfg, given = o.schema:read(settings)
  o.schema:check(cfg)
  check_words(o, words)
  return cfg, words, given
end

function M.main(o)
  local help, part = arguments.wants_help(o.args)
  if help then
    io.write(o.schema:help(part), "\n")
    return
  end
  local ok, cfg, words, given = host.call(read, o)
  if not ok then host.fail(o.name, cfg, 2) end
  local done, why = host.call(o.execute, cfg, words, given)
  if not done then host.fail(o.name, why, mistake.status(why)) end
end

return M
