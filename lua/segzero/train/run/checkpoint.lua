-- checkpoint.lua - a training state on disk: a loadable Hugging Face model (or PEFT adapter) plus
-- what resuming needs.
--
--   checkpoint.save(folder, step, vl, opt, state, settings) -> path     folder/global_step_<step>/
--   checkpoint.finish(checkpoint.begin(...)) -> path
--       the same in two calls; a background thread writes in between
--   checkpoint.begin_part(temporary, vl, opt, replica, columns) -> job
--       this rank's parts of the files, where each rank has a part of the optimizer's state
--       (train/shards.lua) or of the model (models/split.lua). columns: of models/columns.lua, or
--       nil
--   checkpoint.give_up(final, temporary, reason)   removes what begin() made, and raises
--   checkpoint.latest(folder) -> path | nil           the newest complete checkpoint of this run
--   checkpoint.list(folder) -> {{step =, name =, path =}, ...}     all of them, in order
--   checkpoint.load(path, vl, opt) -> state
--       loads weights and optimizer in place; opt may be nil
--
-- state: see runs/trainer_state.lua. settings: the text of settings.json, or nil. replica: of a
-- split model, {index =, count =}: which of how many replicas this rank belongs to.
--
-- The order of writing, so that DONE is there only when everything else is on the disk:
--   1. global_step_N.tmp is made, with UNFINISHED, which says whose it is;
--   2. the model's companion files are written, and UNFINISHED lists all files to come;
--   3. in the background: the logs are synced; tensors and state are written, each under a
--      temporary name, synced, renamed, its folder synced; the companion files are synced; then
--      manifest.json;
--   4. UNFINISHED is renamed to DONE, and the folder is synced;
--   5. an older checkpoint of the same step is renamed to .old, then .tmp to its final name, and
--      the run folder is synced after each;
--   6. `latest` names it; the .old one is removed.
-- If each rank has a part of the optimizer's state or of the model, begin() on rank 0 makes the
-- files of tensors under temporary names with header and length, and each rank, also that one,
-- writes its parts at their places by begin_part(). begin() then returns a fifth value, a function
-- to be called when all have written: it starts the rest (names and checksums of these files,
-- state, manifest, 4 to 6) and returns the job, which reads no tensor, and the path of a replaced
-- checkpoint or false. The files are the same whatever the ranks.
-- A run may end at any point: a folder without DONE does not count, and .old counts while the new
-- one is not in its place. Only files that a manifest lists are removed (runs/manifest.lua).
-- A resumed run gives the same bits as one that never stopped.
-- Leaves out: which checkpoints are kept (runs/retention.lua).

local safetensors = require "segzero.formats.safetensors"
local files = require "segzero.core.files"
local folders = require "segzero.core.folders"
local core = require "segzero.core.ffi"
local lora = require "segzero.models.lora"
local jobs = require "segzero.core.jobs"
local manifest = require "segzero.runs.manifest"
local optim_state = require "segzero.train.optim_state"
local parts = require "segzero.formats.parts"
local run_folder = require "segzero.runs.run_folder"
local split = require "segzero.models.split"
local trainer_state = require "segzero.runs.trainer_state"
local weights = require "segzero.models.weights"

local M = {}

local LOGS = { "metrics.jsonl", "rollouts.jsonl" }

local function is_complete(path) return files.exists(path .. "/DONE") end

-- The run that owns a folder; "" if it has no mark.
local function run_of(folder) return run_folder.id(folder) or "" end

-- ---- room for the new folder ----
-- A name that is not used: path, path-2, ...
local function free_name(path)
  local name = path
  local n = 1
  while folders.kind(name) do
    n = n + 1
    name = ("%s-%d"):format(path, n)
  end
  return name
end

-- Removes a folder that this run has written; another one stays. Returns false if it stays.
local function remove_own(path, run)
  if not folders.kind(path) then return true end
  local owner = manifest.owner(path)
  if owner and owner ~= run then return false end
  return (manifest.remove(path))
end

-- Makes room at the final name. An .old next to no complete checkpoint comes from a run that ended
-- between two renames: it is put back.
local function make_room(final, run)
  local old = final .. ".old"
  local owner = manifest.owner(final)
  local foreign = owner and owner ~= run
  if not is_complete(final) or foreign then
    if foreign or not remove_own(final, run) then
      error(("%s holds files that this run did not write; move it away"):format(final), 0)
    end
    if is_complete(old) then os.rename(old, final) end
  end
  if not remove_own(old, run) then os.rename(old, free_name(old)) end
end

-- ---- writing ----
-- Removes the files of a failed write, which may have filled the disk.
function M.give_up(final, temporary, reason)
  if temporary then manifest.remove(temporary) end
  error(("the checkpoint %s is not written: %s"):format(final, core.plain(reason)), 0)
end

-- Files that a model writes in addition to those that it came with.
local MODEL_FILES = { "config.json", "chat_template.json", "adapter_config.json",
  "adapter_model.safetensors", "model.safetensors", "model.safetensors.index.json" }

-- The files that vl:save may write at once: if the program is killed then, they are removed later.
local function names_of(vl)
  local names = {}
  for _, name in ipairs(MODEL_FILES) do names[#names + 1] = name end
  for _, name in ipairs(vl.dir and folders.list(vl.dir) or {}) do names[#names + 1] = name end
  return names
end

local OPTIMIZER = "optimizer.safetensors"

-- Adds the model's files and the optimizer's. Of files that several ranks write it adds that they
-- are made; with how.part it adds this rank's parts of them, and nothing else.
local function add_files(writing, temporary, vl, opt, replica, how)
  if vl.shards then
    vl:save(temporary, { later = writing, replica = replica, part = how.part,
      columns = how.columns })
  elseif not how.part then
    vl:save(temporary, { later = writing })
  end
  if not opt then return end
  local path = temporary .. "/" .. OPTIMIZER
  safetensors.save(path, opt:whole_state(), { format = "pt" }, writing, how)
end

function M.begin_part(temporary, vl, opt, replica, columns)
  local writing = jobs.writing()
  add_files(writing, temporary, vl, opt, replica, { part = true, columns = columns })
  if columns then columns:check() end
  return writing:start()
end

-- Adds weights and optimizer. Returns whether other ranks write them too.
local function add_tensors(writing, temporary, run, step, vl, opt, replica)
  local names = names_of(vl)
  names[#names + 1] = OPTIMIZER
  manifest.begin(temporary, run, step, names)
  add_files(writing, temporary, vl, opt, replica, {})
  if #writing.shared == 0 then return false end
  for _, list in ipairs { writing.parts, writing.shared } do
    for _, one in ipairs(list) do names[#names + 1] = one.path:match "[^/]*$" end
  end
  manifest.begin(temporary, run, step, names)
  writing:make_shared()
  return true
end

-- Adds the files that follow, in the order of writing.
local function add_rest(writing, temporary, run, step, state, settings)
  writing:finish_shared()
  trainer_state.write(writing, temporary, state)
  if settings then writing:text(temporary .. "/settings.json", settings) end
  manifest.add(writing, temporary, run, step)
end

-- Starts writing. Returns what finish() takes: the final path, the job, the temporary path, and the
-- path of a replaced checkpoint or false. Tensors are written from their own memory: nothing may
-- change them until finish() returns.
function M.begin(folder, step, vl, opt, state, settings, replica)
  local final = ("%s/global_step_%d"):format(folder, step)
  local old = final .. ".old"
  local temporary = final .. ".tmp"
  local run = run_of(folder)
  local writing = jobs.writing()

  -- Room, then everything that is written at once.
  local ok, reason = pcall(function()
    make_room(final, run)
    if not remove_own(temporary, run) then temporary = free_name(temporary) end
  end)
  if not ok then M.give_up(final, nil, reason) end
  for _, name in ipairs(LOGS) do
    if files.exists(folder .. "/" .. name) then writing:sync(folder .. "/" .. name, {}) end
  end
  state.global_step = step
  if opt then state.optimizer_steps = opt:steps() end
  local shared
  ok, shared = pcall(add_tensors, writing, temporary, run, step, vl, opt, replica)
  if not ok then M.give_up(final, temporary, shared) end

  -- The rest is the background thread's.
  local function rest()
    ok, reason = pcall(add_rest, writing, temporary, run, step, state, settings)
    if not ok then M.give_up(final, temporary, reason) end
    local replaces = is_complete(final)
    if replaces then writing:rename(final, old) end
    writing:rename(temporary, final)
    writing:text(folder .. "/latest", ("global_step_%d\n"):format(step))
    return writing:start(), replaces and old
  end
  if shared then return final, writing:start_first(), temporary, false, rest end
  local job, replaced = rest()
  return final, job, temporary, replaced
end

-- Waits for what begin() started.
function M.finish(final, job, temporary, old)
  local ok, message = job:wait()
  job:free()
  if not ok then M.give_up(final, temporary, message) end
  if old then manifest.remove(old) end
  return final
end

function M.save(...) return M.finish(M.begin(...)) end

-- ---- finding ----
-- The step in a folder's name, or nil.
local function step_of(name)
  local number, suffix = name:match "^global_step_(%d+)(.*)$"
  local step = tonumber(number)
  if (suffix == "" or suffix == ".old") and step <= 2 ^ 53 then return step end
end

-- Looks at the folders and not at the file `latest`: a run may end before that file is updated. A
-- checkpoint that was copied from another run is not this run's.
function M.list(folder)
  local run = run_folder.id(folder)
  local list = {}
  local seen = {}
  for _, name in ipairs(folders.list(folder) or {}) do    -- a step's own folder before its .old
    local step = step_of(name)
    local path = folder .. "/" .. name
    if step and not seen[step] and is_complete(path) then
      local owner = manifest.owner(path)
      if not run or not owner or owner == run or owner == "" then
        seen[step] = true
        list[#list + 1] = { step = step, name = name, path = path }
      end
    end
  end
  table.sort(list, function(a, b) return a.step < b.step end)
  return list
end

function M.latest(folder)
  local list = M.list(folder)
  return list[#list] and list[#list].path
end

-- ---- loading ----
-- Runs f on loaded tensors and frees them.
local function with(tensors, f)
  local ok, reason = pcall(f, tensors)
  for _, t in pairs(tensors) do t:free() end
  if not ok then error(reason, 0) end
end

local function shape_text(t) return table.concat(t:shape(), ", ") end

-- The weights that a checkpoint has: tensors, or of a split model parts of them.
local function parameters_of(vl)
  if vl.shards then
    if vl.lora then return lora.described(vl) end
    return split.described(weights.listed(vl))
  end
  if vl.lora then return lora.parameters(vl) end
  return vl:parameters()
end

-- Checks that every tensor of `into` has a saved one of its name and shape; if same_dtype, of its
-- dtype too. is_free(name): the shape may be another one.
local function compare(path, into, saved, same_dtype, is_free)
  for name, t in pairs(into) do
    local other = saved[name]
    if not other then error(("checkpoint %s: missing %s"):format(path, name), 0) end
    if shape_text(other) ~= shape_text(t) and not (is_free and is_free(name)) then
      local message = "checkpoint %s: %s has shape [%s], expected [%s]"
      error(message:format(path, name, shape_text(other), shape_text(t)), 0)
    end
    if same_dtype and other:dtype() ~= t:dtype() then
      error(("checkpoint %s: %s is %s, expected %s: worker.actor.optim.state_dtype was different")
        :format(path, name, other:dtype(), t:dtype()), 0)
    end
  end
end

local function copy(into, saved)
  for name, t in pairs(into) do
    if parts.is_part(t) then
      parts.copy(t.part, saved[name], t.slice)
    else
      t:copy_(saved[name])
    end
  end
end

-- A checkpoint of adapters belongs to a model with the same adapters.
local function check_adapters(path, vl)
  local has_adapters = files.exists(path .. "/adapter_config.json")
  if has_adapters ~= (vl.lora ~= nil) then
    local content = "no adapters"
    local rank = 0
    if has_adapters then
      content = "adapters alone"
      rank = lora.read_config(path).r
    end
    local message = "checkpoint %s has %s: it was written with worker.actor.model.lora.rank=%s"
    error(message:format(path, content, rank), 0)
  end
  if vl.lora then lora.same_settings(vl, path) end
end

local function check_unused(path, vl, parameters, saved)
  if not vl.lora then return end
  for name in pairs(saved) do
    if not parameters[name] then
      error(("checkpoint %s: %s would not be used: lora.target_modules or lora.exclude_modules " ..
        "were different"):format(path, name), 0)
    end
  end
end

-- Loads the optimizer's state, if there is an optimizer, and then calls then_copy. The checksums
-- come last among the checks, because they read every byte.
local function load_optimizer(path, opt, then_copy)
  if not opt then
    manifest.check(path)
    return then_copy()
  end
  local file = path .. "/optimizer.safetensors"
  with(safetensors.load(file), function(saved)
    compare(file, opt:whole_state(), saved, true, optim_state.is_scale)
    manifest.check(path)
    opt:set_state(saved)
    then_copy()
  end)
end

function M.load(path, vl, opt)
  if not is_complete(path) then
    error(("%s is not a complete checkpoint (no file DONE)"):format(path), 2)
  end
  local state = trainer_state.read(path, opt ~= nil)
  check_adapters(path, vl)
  local parameters = parameters_of(vl)
  local saved_weights
  if vl.lora then
    saved_weights = lora.read(path)
  else
    saved_weights = safetensors.load_folder(path)
  end
  -- Everything is checked before anything is changed.
  with(saved_weights, function(saved)
    compare(path, parameters, saved)
    check_unused(path, vl, parameters, saved)
    load_optimizer(path, opt, function() copy(parameters, saved) end)
  end)
  if opt then opt:set_steps(state.optimizer_steps) end
  return state
end

return M
