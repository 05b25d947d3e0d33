-- rank_runs.lua - miniature training runs on several ranks of this machine, for the tests of ranks.
--
--   local runs = require "tests.support.rank_runs"
--   if not runs.available() then ...            Open MPI is not there; says so as a skipped test
--   local place = runs.begin(opts)              a folder with a model (opts: of mini.write) and a
--                                               reward
--   local argv = runs.command(2, { script, argument })
--   local text, status = runs.run(2, { script, argument }, env)
--   local words = runs.words("name", { "key=value" })
--       the recipe's, for a run in place/name: 4 prompts x 2 answers, a checkpoint each step; these
--       settings last
--   runs.records("name", "metrics") -> list           the lines of metrics.jsonl or rollouts.jsonl
--   runs.expect_same_run("name", "other")             metrics but for the last digits, the order of
--                                                     the answers, the tokens of step 1; a third
--                                                     argument: {metric = another tolerance}
--   runs.train(2, "name", { "key=value" }, env) -> text     a checked run
--   if not runs.device_available() then ...     the emulated device is not there; says so
--   local env = runs.device_env(2)              for runs on that many emulated devices
--
-- One thread a rank. mini.remove() removes everything. Left out: several machines.

local cjson = require "cjson"
local check = require "tests.support.check"
local mini = require "tests.support.miniature"
local process = require "tests.support.process"
local host = require "segzero.host"
local files = require "segzero.core.files"

local M = { TIMEOUT = 120 }

function M.available()
  local _, status = process.run({ "mpirun", "--version" }, { timeout = 20 })
  local library = host.library:gsub("libsegzero%.so$", "libsegzero_mpi.so")
  if status == 0 and files.exists(library) then return true end
  check.skip "Open MPI (openmpi-bin, libopenmpi-dev) when make ran"
  return false
end

-- ---- ranks on emulated devices ----
local EMULATED = host.library:gsub("libsegzero%.so$", "libsegzero_cuda_emulated.so")

function M.device_available()
  if files.exists(EMULATED) then return true end
  check.skip "the emulated CUDA library (make cuda-emulated)"
  return false
end

-- Messages between devices are files in M.links.
function M.device_env(devices)
  M.links = M.place .. "/links"
  require("posix.sys.stat").mkdir(M.links)
  return { SEGZERO_CUDA_LIBRARY = EMULATED, SEGZERO_EMULATE_DEVICES = tostring(devices),
    SEGZERO_EMULATE_LINKS = M.links }
end

function M.begin(opts)
  M.place = mini.folder()
  M.model = mini.write(M.place .. "/model", opts)
  files.write(M.place .. "/reward.lua", mini.reward_source)
  return M.place
end

function M.command(count, words)
  local all = { host.executable, "--ranks", tostring(count), "--threads", "1" }
  for _, word in ipairs(words) do all[#all + 1] = word end
  return all
end

-- The text is what came to stdout, then what came to stderr: mpirun may pass on a piece of one in
-- the middle of a line of the other.
function M.run(count, words, env)
  local errors = M.place .. "/stderr"
  local argv = { "bash", "-c", 'exec "$@" 2>"$0"', errors }
  for _, word in ipairs(M.command(count, words)) do argv[#argv + 1] = word end
  local text, status = process.run(argv, { timeout = M.TIMEOUT, env = env })
  return text .. "\n" .. files.read(errors), status
end

function M.words(name, extra)
  local words = { "recipes/refcocog_grpo.lua", "worker.actor.model.model_path=" .. M.model }
  for _, a in ipairs(mini.arguments) do words[#words + 1] = a end
  for _, a in ipairs { "worker.reward.sam2_path=none", "data.rollout_batch_size=4",
    "worker.actor.global_batch_size=4", "worker.rollout.n=2", "trainer.save_freq=1",
    "worker.reward.compute_score=" .. M.place .. "/reward.lua",
    "trainer.save_checkpoint_path=" .. M.place .. "/" .. name } do words[#words + 1] = a end
  for _, a in ipairs(extra or {}) do words[#words + 1] = a end
  return words
end

function M.records(name, log)
  local list = {}
  for line in io.lines(("%s/%s/%s.jsonl"):format(M.place, name, log)) do
    list[#list + 1] = cjson.decode(line)
  end
  return list
end

local COMPARED = { "step", "reward", "length", "loss", "kl", "entropy", "grad_norm",
  "grad_norm/vision", "grad_norm/language", "tokens", "held_out_reward", "draws", "filtered",
  "reward_kl" }

-- The sums have another order, so the last digits of f32 differ. The first update spreads that to
-- the weights, and random weights this wide (std 0.3) enlarge it: 2e-5 was seen at step 3.
local FIRST = 1e-5
local LATER = 1e-4

-- What a difference is measured against. The norms of parts belong to one gradient, so theirs is
-- measured against the whole: 1.4e-4 of the tower's norm was seen where that is 4.8e-5 of the
-- whole.
local function scale_of(record, key)
  if key:find "^grad_norm/" then return math.max(1, record.grad_norm) end
  return math.max(1, math.abs(record[key]))
end

function M.expect_same_run(name, like, noise)
  local got, want = M.records(name, "metrics"), M.records(like, "metrics")
  check.equal(#got, #want, "lines of metrics.jsonl")
  for i, record in ipairs(want) do
    for _, key in ipairs(COMPARED) do
      if record[key] then
        local tolerance = FIRST
        if record.step > 1 then tolerance = LATER end
        if noise and noise[key] then tolerance = noise[key] end
        check.near(got[i][key], record[key], tolerance * scale_of(record, key),
          ("%s of %s, line %d"):format(key, name, i))
      end
    end
  end
  local a, b = M.records(name, "rollouts"), M.records(like, "rollouts")
  check.equal(#a, #b, "answers")
  for i, answer in ipairs(b) do
    check.equal({ a[i].step, a[i].row, a[i].answer }, { answer.step, answer.row, answer.answer },
      "the order of the answers")
    -- After the first step the weights differ in the last bits, and so may a token.
    if answer.step == 1 then check.equal(a[i].ids, answer.ids, "sampled tokens of step 1") end
  end
end

function M.train(count, name, extra, env)
  local text, status = M.run(count, M.words(name, extra), env)
  check.equal(status, 0, name .. ": " .. text:sub(-600))
  return text
end

return M
