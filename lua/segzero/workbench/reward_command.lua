-- reward_command.lua - `segzero reward`: checks a reward on built-in rows or on yours, or scores
-- the answers of a run again.
--
--   segzero reward my_reward.lua
--   segzero reward my_reward.lua data=my_folder --against seg_strict
--   segzero reward my_reward.lua --replay runs/refshapes_grpo
--   segzero reward my_reward.lua --watch
--   segzero reward --help
--
-- The settings are in config/reward.lua. Exit status: 0 done, 1 the reward failed on an answer or
-- cannot be loaded, 2 wrong words. Leaves out: changing a run (worker.reward.reload does).

local command = require "segzero.config.command"
local console = require "segzero.log.console"
local files = require "segzero.core.files"
local host = require "segzero.host"
local judging = require "segzero.workbench.judging"
local loading = require "segzero.reward.loading"
local schema = require("segzero.config.reward").schema

local M = {}

-- The reward of this name. Errors of the loader name a run's setting, which nobody gave here.
local function load(name, kwargs, seconds)
  local ok, reward = pcall(loading.load, name, kwargs, seconds)
  if ok then return reward end
  if type(reward) == "string" then
    reward = reward:gsub("^worker%.reward%.compute_score[:=] ?", "")
  end
  error(reward, 0)
end

-- ---- built-in rows, or the user's ----
local GENERATED = { refshapes = true, refshapes_multi = true }
local GENERATED_SIZE = 112
local GENERATED_ROWS = 128

local function open_set(cfg)
  local options = { prompt_key = cfg.prompt_key, answer_key = cfg.answer_key,
    image_key = cfg.image_key, image_dir = cfg.image_dir, label = "data", split = "train" }
  if GENERATED[cfg.data] then
    options = { split = "heldout", size = GENERATED_SIZE, seed = 42,
      rows = math.max(GENERATED_ROWS, cfg.rows) }
  end
  return require("segzero.data.sources").open(cfg.data, options)
end

local function segmenter_of(cfg)
  local paths = require "segzero.config.paths"
  local path = cfg.sam2_path
  if not path then
    if not GENERATED[cfg.data] then return nil end
    path = ""
  end
  path = paths.sam2(path, { model = "", data = cfg.data })
  paths.check_sam2("sam2_path", path)
  return judging.segmenter(path)
end

-- Whether the first row's solution is a list of objects.
local function reads_lists(set)
  local row = set:row(1)
  local is_list = require("segzero.data.truth").is_list(row.solution)
  row.image:free()
  return is_list
end

local function other_reward(cfg, name, set)
  local other = cfg.against
  if other == "none" then return nil end
  if other == "auto" then
    other = "seg_strict"
    if reads_lists(set) then other = "vision_reasoner" end
    if other == name then return nil end
  end
  return load(other, nil, cfg.timeout), other
end

local function try(cfg, name)
  local trying = require "segzero.workbench.trying"
  local reward = load(name, cfg.kwargs, cfg.timeout)
  local set = open_set(cfg)
  local against, other = other_reward(cfg, name, set)
  local result = trying.run(reward, { set = set, rows = cfg.rows, seed = cfg.seed,
    segmenter = segmenter_of(cfg), timeout = cfg.timeout, against = against })
  return trying.lines(result, { name = name, set_name = set.name, against = other,
    worst = cfg.worst })
end

-- ---- a run's answers ----
local function replay(cfg, name)
  local rescoring = require "segzero.workbench.rescoring"
  local folder = cfg.replay:gsub("(.)/+$", "%1")
  local kwargs = cfg.kwargs
  -- The run's own reward has the run's arguments.
  local of_run = rescoring.settings(folder).worker.reward
  local is_same = of_run.compute_score == name and type(of_run.reward_function_kwargs) == "table"
  if is_same and not next(kwargs) then kwargs = of_run.reward_function_kwargs end
  local reward = load(name, kwargs, cfg.timeout)
  local result = rescoring.run(folder, reward, { step = cfg.step, timeout = cfg.timeout,
    sam2_path = cfg.sam2_path, say = console.say })
  if cfg.output then files.write(cfg.output, rescoring.json_lines(result)) end
  return rescoring.lines(result, { name = name, folder = folder, worst = cfg.worst })
end

-- ---- once, or at each save ----
local function once(cfg, name)
  local run = cfg.replay and replay or try
  local lines, failed = run(cfg, name)
  for _, line in ipairs(lines) do console.say(line) end
  return failed
end

local function watch(cfg, name)
  local watching = require "segzero.workbench.watching"
  local path = loading.file(name)
  if not path then error("watch needs a FILE.lua, not " .. name, 0) end
  watching.each_save(path, function()
    local ok, why = host.call(once, cfg, name)
    if not ok then
      watching.stop_if_interrupted(why)
      console.say(tostring(why))
    end
    console.say(("-- waiting for %s to be saved (Ctrl-C ends)"):format(path))
  end)
end

local function execute(cfg, words)
  if cfg.watch then return watch(cfg, words[1]) end
  if once(cfg, words[1]) then os.exit(1) end
end

function M.main(args)
  command.main { name = "reward", schema = schema, args = args, execute = execute,
    words = { least = 1, most = 1, what = "a reward" } }
end

return M
