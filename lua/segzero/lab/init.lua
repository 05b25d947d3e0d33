-- lab - the prompt lab, for the REPL and for scripts: sz.lab. Each result prints itself.
--
--   lab.use "runs/refshapes_grpo"                   the model to ask: a folder, a run, a hub name,
--                                                   or an open one; without it the embedded one
--   lab.compare{ prompts = {"seg_zero", "Find {question}. ..."}, rows = set:sample(10), n = 4,
--                reward = "seg_strict" }            a table with intervals, and a sheet of images
--   lab.sweep{ temperature = {0.5, 1}, top_p = {0.9, 1}, rows =, n =, reward =, prompt = }
--   local a = lab.ask("photo.png", "the red circle")     a.text, a.found, a:save "answer.png"
--   lab.logprobs(a)                                 token by token: which one was unsure
--   lab.attention(a, 31)                            which image patches move a token
--   lab.worst("runs/refshapes_grpo", 40, 5)         the worst answers of a step, with the reasons
--   lab.rescore("runs/refshapes_grpo", "my_reward.lua")  the stored answers scored again
--
-- Options of compare and sweep: rows (a data set, ten RefShapes rows without it), n (1), reward (a
-- name, a FILE.lua or a function: seg_strict, or vision_reasoner for lists), model, temperature (1
-- if n > 1, else 0), top_p, top_k, repetition_penalty, max_new_tokens (512), seed (0),
-- system_prompt, resize (as data.resize), sheet (a path, or false for no images). An option that a
-- function does not know is an error at the caller's line.
-- Leaves out: training.

local core = require "segzero.core.ffi"
local options = require "segzero.core.options"

local M = {}

-- Raises f's errors at the line that called the public function.
local function blaming(f, ...)
  local results = { pcall(f, ...) }
  if results[1] then return unpack(results, 2, table.maxn(results)) end
  local why = results[2]
  if type(why) ~= "string" or core.is_interrupt(why) then error(why, 0) end
  if why:find("\nstack traceback:", 1, true) then error(why, 0) end
  error(core.plain(why), 3)
end

local function session() return require "segzero.lab.session" end

-- ---- models ----
function M.use(model, sam)
  return (blaming(session().use, model, sam))
end

-- ---- comparing ----
local SAMPLING = { "temperature", "top_p", "top_k", "repetition_penalty", "max_new_tokens" }
local COMMON = { "rows", "n", "reward", "model", "seed", "system_prompt", "resize", "sheet",
  unpack(SAMPLING) }
local COMPARE = options.set { "prompts", unpack(COMMON) }
local SWEEP = options.set { "prompt", unpack(COMMON) }

function M.compare(opts)
  opts = options.check("lab.compare", opts, COMPARE, 2)
  return (blaming(require("segzero.lab.variants").compare, opts))
end

function M.sweep(opts)
  opts = options.check("lab.sweep", opts, SWEEP, 2)
  return (blaming(require("segzero.lab.variants").sweep, opts))
end

-- ---- one answer ----
local ASK = options.set { "prompt", "model", "seed", "system_prompt", "resize", unpack(SAMPLING) }

function M.ask(image, text, opts)
  opts = options.check("lab.ask", opts, ASK, 2)
  return (blaming(require("segzero.lab.single").ask, image, text, opts))
end

local LOGPROBS = options.set { "top", "least" }

function M.logprobs(answer, opts)
  opts = options.check("lab.logprobs", opts, LOGPROBS, 2)
  return (blaming(require("segzero.lab.tokens").logprobs, answer, opts))
end

local ATTENTION = options.set { "sheet" }

function M.attention(answer, token, opts)
  opts = options.check("lab.attention", opts, ATTENTION, 2)
  return (blaming(require("segzero.lab.influence").of, answer, token, opts))
end

-- ---- runs ----
local WORST = options.set { "sheet", "reward" }

function M.worst(run, step, count, opts)
  opts = options.check("lab.worst", opts, WORST, 2)
  return (blaming(require("segzero.lab.stored").worst, run, step, count, opts))
end

function M.best(run, step, count, opts)
  opts = options.check("lab.best", opts, WORST, 2)
  return (blaming(require("segzero.lab.stored").best, run, step, count, opts))
end

local RESCORE = options.set { "step", "sam2_path", "timeout", "worst" }

function M.rescore(run, reward, opts)
  opts = options.check("lab.rescore", opts, RESCORE, 2)
  return (blaming(require("segzero.lab.stored").rescore, run, reward, opts))
end

return M
