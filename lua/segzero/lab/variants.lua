-- variants.lua - from the options of lab.compare and lab.sweep to the variants that comparing.lua
-- asks.
--
--   variants.compare(options), variants.sweep(options) -> result of comparing.lua
--   variants.reward(value, several) -> f, name
--   variants.generation(options) -> what inference/generate.lua takes
--   variants.frames(policy, resize)
--
-- Errors are one line without a position; lab/init.lua adds the caller's line. Leaves out: asking.

local comparing = require "segzero.lab.comparing"
local coordinates = require "segzero.data.coordinates"
local frame = require "segzero.data.frame"
local generation_config = require "segzero.inference.generation_config"
local loading = require "segzero.reward.loading"
local prompt_text = require "segzero.data.prompt_text"
local session = require "segzero.lab.session"

local M = {}

local SYSTEM_PROMPT = "You are a helpful assistant."
local MAX_NEW_TOKENS = 512
M.SYSTEM_PROMPT = SYSTEM_PROMPT

-- ---- options ----
function M.reward(value, several)
  if type(value) == "function" then return value, "a function" end
  local name = value
  if name == nil then
    name = "seg_strict"
    if several then name = "vision_reasoner" end
  end
  if type(name) ~= "string" then
    local message = "reward: a name, a FILE.lua or a function is expected, got %s"
    error(message:format(tostring(name)), 0)
  end
  local ok, f = pcall(loading.load, name)
  if ok then return f, name end
  error((tostring(f):gsub("^worker%.reward%.compute_score[:=]", "reward:")), 0)
end

function M.generation(o)
  generation_config.check(o)
  local n = o.n or 1
  local temperature = o.temperature
  if temperature == nil then temperature = n > 1 and 1 or 0 end
  return { n = n, temperature = temperature, top_p = o.top_p, top_k = o.top_k,
    repetition_penalty = o.repetition_penalty, seed = o.seed or 0,
    max_new_tokens = o.max_new_tokens or MAX_NEW_TOKENS }
end

function M.frames(policy, resize)
  return coordinates.for_policy(frame.settings { resize = resize }, policy)
end

local function check_rows(set)
  local is_set = type(set) == "table" and type(set.count) == "function"
    and type(set.row) == "function"
  if is_set then return set end
  error(("rows is %s, expected a data set such as sz.data.open(...):sample(10)"):format(
    tostring(set)), 0)
end

local function run(variants, what, several, o)
  local policy = session.model(o.model)
  local reward, name = M.reward(o.reward, several)
  local set = o.rows or session.rows(policy)
  return comparing.run(variants, { what = what, policy = policy, set = check_rows(set),
    reward = reward, reward_name = name, segmenter = session.segmenter(policy),
    frames = M.frames(policy, o.resize), system_prompt = o.system_prompt or SYSTEM_PROMPT,
    seed = o.seed or 0, sheet = o.sheet })
end

-- ---- prompts ----
-- Names of a table of prompts: its keys, or what the prompt says, which may be too much alike.
local function named(prompts)
  if type(prompts) ~= "table" or next(prompts) == nil then
    error("prompts is a list such as {'seg_zero', 'Find {question}.'}, or names with prompts", 0)
  end
  local keys = {}
  for key in pairs(prompts) do keys[#keys + 1] = key end
  table.sort(keys, function(a, b)
    if type(a) == type(b) then return a < b end
    return type(a) == "number"
  end)
  local list = {}
  for i, key in ipairs(keys) do
    local prompt = prompt_text.read(prompts[key], "prompts")
    local name = ("%d %s"):format(i, prompt.name)
    if type(key) == "string" then name = key end
    list[i] = { name = name, ask = prompt.ask, several = prompt.several }
  end
  return list
end

function M.compare(o)
  local variants = named(o.prompts)
  local several = false
  for _, variant in ipairs(variants) do
    variant.generation = M.generation(o)
    several = several or variant.several
  end
  return run(variants, "prompt", several, o)
end

-- ---- sweeps ----
local SWEPT = { "temperature", "top_p", "top_k", "repetition_penalty", "max_new_tokens" }

-- Every combination of the values that are lists, as lists of {key, value}.
local function combinations(o)
  local all = { {} }
  for _, key in ipairs(SWEPT) do
    if type(o[key]) == "table" then
      if #o[key] == 0 then error(key .. " is an empty list", 0) end
      local longer = {}
      for _, one in ipairs(all) do
        for _, value in ipairs(o[key]) do
          local copy = { unpack(one) }
          copy[#copy + 1] = { key, value }
          longer[#longer + 1] = copy
        end
      end
      all = longer
    end
  end
  if #all[1] == 0 then
    error("lab.sweep needs values to try, such as temperature = {0.5, 1}; also "
      .. table.concat(SWEPT, ", ", 2), 0)
  end
  return all
end

-- Greedy answers are the same whatever top_p and top_k are.
local function check_is_sampled(o, generation)
  if generation.temperature > 0 or type(o.temperature) == "table" then return end
  for _, key in ipairs { "top_p", "top_k" } do
    if type(o[key]) == "table" then
      error(key .. " changes nothing at temperature 0; set a temperature, or n above 1", 0)
    end
  end
end

function M.sweep(o)
  local prompt = prompt_text.read(o.prompt or "seg_zero", "prompt")
  local variants = {}
  for i, values in ipairs(combinations(o)) do
    local own = setmetatable({}, { __index = o })
    for _, pair in ipairs(values) do own[pair[1]] = pair[2] end
    local generation = M.generation(own)
    check_is_sampled(o, generation)
    local words = {}
    for k, pair in ipairs(values) do words[k] = ("%s %g"):format(pair[1], pair[2]) end
    variants[i] = { name = table.concat(words, ", "), ask = prompt.ask, generation = generation }
  end
  return run(variants, "sampling", prompt.several, o)
end

return M
