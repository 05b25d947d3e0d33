-- split_files_ranks.lua - one rank of tests/system/test_split_files.lua: training states that are
-- the same on any split, saved and resumed.
--
--   split_files_ranks.lua save FOLDER KIND...     FOLDER/KIND_D_T/global_step_2 and, for f32,
--                                                 FOLDER/model_D_T by model:save, for every D
--                                                 replicas of T shards of this job's ranks
--   split_files_ranks.lua resume FOLDER KIND...   reads KIND_D_T of other splits and saves what it
--                                                 read to KIND_D_T_to_D_T
--   split_files_ranks.lua fail FOLDER             the last shard cannot write
--   split_files_ranks.lua blocked FOLDER          a folder has the name of the file
--   split_files_ranks.lua break FOLDER N          of a second checkpoint the N-th exchange of the
--                                                 last shard fails
--   split_files_ranks.lua full FOLDER             the last shard cannot write the second checkpoint
--   split_files_ranks.lua columns                 exchanges columns for rows; N: rows that came
--
-- The gradient of an element depends on its place in the whole parameter, so that an update gives
-- the same numbers on any split. Prints "ok N", N: checkpoints. Leaves out: training steps.

local ffi = require "ffi"
local files = require "segzero.core.files"
local lora = require "segzero.models.lora"
local mini = require "tests.support.miniature"
local parallel = require "segzero.train.parallel"
local parts = require "segzero.formats.parts"
local ranks = require "segzero.core.ranks"
local sz = require "segzero"
local tensor = require "segzero.core.tensor"
local trainer = require "segzero.train.trainer"

ffi.cdef "int setrlimit(int resource, const uint64_t *limits);"

local M = {}

-- {replicas, shards}
M.SPLITS = { { 1, 1 }, { 2, 1 }, { 1, 2 }, { 2, 2 }, { 1, 4 }, { 4, 1 } }

local SOME = { { 1, 1 }, { 2, 2 }, { 1, 4 } }

-- from: the splits whose checkpoints are resumed.
M.KINDS = {
  f32 = { from = M.SPLITS },
  -- The weights are rounded to nearest from f32 masters.
  bf16 = { from = SOME, dtype = "bf16", "worker.actor.model.dtype=bf16" },
  int8 = { from = M.SPLITS, "worker.actor.optim.state_dtype=int8" },
  whole = { from = {}, "worker.actor.optim.shard_state=false" },
  lora = { from = SOME, "worker.actor.model.lora.rank=3" },
  cuda = { from = { { 1, 1 }, { 1, 2 } }, device = "cuda" },
}

local UPDATES = 2
local FILE_SIZE = 1              -- the limit's number

-- ---- a trainer and its updates ----
local function run_folder(p, folder, name)
  local run = ("%s/%s_%d_%d"):format(folder, name, p.replicas, p.shards)
  p:on_root(function() files.make_dir(run) end)
  return run
end

local function make(folder, kind, shards, name)
  local p = parallel.new(20, { shards = shards })
  local settings = M.KINDS[kind]
  local words = { "worker.actor.max_grad_norm=1e9" }
  for _, word in ipairs(settings) do words[#words + 1] = word end
  local cfg = mini.settings(words)
  local policy = sz.model(folder .. "/model", { dtype = settings.dtype, shards = p.shard_group,
    device = settings.device })
  lora.configure(policy, cfg)
  return trainer.new { config = cfg, policy = policy, parallel = p,
    folder = run_folder(p, folder, name or kind), reward = mini.reward, train = mini.rows(cfg),
    prompt = require("segzero.data.prompt").seg_zero, total_steps = 4 }
end

local function seed_of(name, update)
  local seed = update
  for i = 1, #name do seed = (seed * 31 + name:byte(i)) % 2 ^ 31 end
  return seed
end

-- One replica has the gradient, and of copies whose gradients are added up the first one.
local function add_gradient(t, p, update)
  if t.parallel.replica > 0 or (p.adds and p.copy > 0) then return end
  tensor.manual_seed(seed_of(p.name, update))
  local whole = tensor.randn(p.full)
  local part = tensor.empty(p.tensor:shape())
  parts.copy(part, whole, p.slice)
  local product = p.tensor:to { dtype = "f32" } * part:to { device = p.tensor:device() }
  product:sum():backward()
end

local function update(t)
  for number = 1, UPDATES do
    for _, p in ipairs(t.parameters) do add_gradient(t, p, number) end
    t.optimizer:step(1e-2)
    t.global_step = t.global_step + 1
  end
end

-- The splits of this job's ranks.
local function own_splits(kind)
  local list = {}
  local all = M.SPLITS
  if M.KINDS[kind].device then all = M.KINDS[kind].from end
  for _, one in ipairs(all) do
    if one[1] * one[2] == ranks.world():size() then list[#list + 1] = one end
  end
  return list
end

-- ---- what the ranks do ----
local done = 0

local function save(folder, kind)
  for _, one in ipairs(own_splits(kind)) do
    local t = make(folder, kind, one[2])
    update(t)
    t:save()
    local dir = ("%s/model_%d_%d"):format(folder, one[1], one[2])
    if kind == "f32" and t.parallel.replica == 0 then t.policy:save(dir) end
    done = done + 1
  end
end

local function resume(folder, kind)
  for _, one in ipairs(own_splits(kind)) do
    local t = make(folder, kind, one[2])
    for _, from in ipairs(M.KINDS[kind].from) do
      local source = ("%s_%d_%d"):format(kind, from[1], from[2])
      t.folder = run_folder(t.parallel, folder, source .. "_to")
      t:resume(("%s/%s/global_step_%d"):format(folder, source, UPDATES))
      t:save()
      done = done + 1
    end
  end
end

local function break_at(folder, n)
  local t = make(folder, "f32", ranks.world():size(), "broken_" .. n)
  update(t)
  t:save()
  update(t)
  if t.parallel.shard == t.parallel.shards - 1 then ranks.fail_after(n) end
  t:save()
  ranks.fail_after(-1)
  done = 2
end

-- The last shard may write no more than a byte to a file.
local function limit(p)
  if p.shard < p.shards - 1 then return end
  ffi.C.setrlimit(FILE_SIZE, ffi.new("uint64_t[2]", 1, 1))
end

local function full(folder)
  local t = make(folder, "f32", ranks.world():size(), "full")
  update(t)
  t:save()
  update(t)
  limit(t.parallel)
  local ok, why = pcall(t.save, t)
  io.write(("%s\n"):format(ok and "saved" or tostring(why)))
end

local function shard_of_world(folder)
  local p = parallel.new(60, { shards = ranks.world():size() })
  return p, sz.model(folder .. "/model", { shards = p.shard_group })
end

local function blocked(folder)
  local p, policy = shard_of_world(folder)
  p:on_root(function() files.make_dir(folder .. "/blocked/model.safetensors") end)
  local ok, why = pcall(policy.save, policy, folder .. "/blocked")
  io.write(("%s\n"):format(ok and "saved" or tostring(why)))
end

local function fail(folder)
  local p, policy = shard_of_world(folder)
  limit(p)
  local ok, why = pcall(policy.save, policy, folder .. "/failed")
  io.write(("%s\n"):format(ok and "saved" or tostring(why)))
end

-- Element (row, column) of the matrix whose columns are exchanged.
local function number(row, column) return row * 1000 + column end

-- A part of this rank's columns: elements skip .. skip + n of rows of `run`.
local function exchange(dtype, run, skip, n)
  local world = ranks.world()
  local values = {}
  for i = 1, n do
    local e = skip + i - 1
    values[i] = number(math.floor(e / run), world:rank() * run + e % run)
  end
  local part = tensor.new(values, { dtype = dtype })
  local got = world:columns_to_rows(part, run, skip)

  -- The whole rows of the part are dealt to the ranks in their order.
  local head = -skip % run
  local count = math.max(0, math.floor((n - head) / run))
  local size = world:size()
  local first = math.floor(count * world:rank() / size)
  local own = math.floor(count * (world:rank() + 1) / size) - first
  if not got then
    if own > 0 then error("no rows came, expected " .. own, 0) end
    return
  end
  local rows = got.tensor:totable()
  local start = (skip + head) / run + first
  if #rows ~= own or got.first ~= start then
    error(("%d rows from %d, expected %d from %d"):format(#rows, got.first, own, start), 0)
  end
  for r, row in ipairs(rows) do
    if #row ~= run * size then error(("a row of %d"):format(#row), 0) end
    for c, x in ipairs(row) do
      if x ~= number(got.first + r - 1, c - 1) then
        error(("%s run %d skip %d: row %d, column %d is %g"):format(dtype, run, skip, r, c, x), 0)
      end
    end
  end
  done = done + #rows
  got.tensor:free()
end

local function columns()
  for _, case in ipairs { { 3, 0, 21 }, { 3, 2, 21 }, { 1, 0, 7 }, { 7, 5, 1 }, { 7, 5, 8 },
    { 5, 3, 12 }, { 4, 1, 400 }, { 300, 7, 5000 } } do
    for _, dtype in ipairs { "f32", "i32" } do exchange(dtype, unpack(case)) end
  end
  -- More than a piece of 16 MiB.
  local part = tensor.zeros { 3000, 2000 }
  local got = ranks.world():columns_to_rows(part, 2000, 0)
  if got.tensor:abs():max():item() ~= 0 then error("a large one", 0) end
  done = done + got.tensor:shape()[1]
end

if arg and arg[0] and arg[0]:find "split_files_ranks" then
  local good, reason = pcall(function()
    if arg[1] == "fail" then return fail(arg[2]) end
    if arg[1] == "blocked" then return blocked(arg[2]) end
    if arg[1] == "full" then return full(arg[2]) end
    if arg[1] == "break" then return break_at(arg[2], tonumber(arg[3])) end
    if arg[1] == "columns" then return columns() end
    for i = 3, #arg do
      if arg[1] == "save" then save(arg[2], arg[i]) else resume(arg[2], arg[i]) end
    end
  end)
  if not good then
    io.stderr:write(tostring(reason), "\n")
    ranks.abort(1)
  end
  print(("ok %d"):format(done))
end

return M
