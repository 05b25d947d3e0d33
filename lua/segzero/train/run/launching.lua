-- launching.lua - the ranks that a Seg-Zero or EasyR1 command line asks for:
-- trainer.n_gpus_per_node on each of trainer.nnodes machines.
--
--   launching.start(cfg.trainer)
--
-- Where no launcher started this process and the run is to use GPUs of this machine, of which there
-- are as many as it asks for, the program runs itself again with --ranks, and start() does not
-- return. Otherwise the launcher counts, or one process trains; a note says so if that is another
-- number. The number of ranks does not change what is trained.
-- A note also says when there are more threads than processors to run them.
-- Leaves out: starting ranks on other machines.

local core = require "segzero.core.ffi"
local notes = require "segzero.core.notes"
local ranks = require "segzero.core.ranks"

local C = core.C
local M = {}

local started = false           -- a run of this process has begun

local function compare(trainer, wanted)
  local world = ranks.world()
  if world:rank() > 0 or world:size() == wanted then return end
  notes.say(("trainer.n_gpus_per_node=%d and trainer.nnodes=%d are %d ranks, the launcher "
    .. "started %d: these train")
    :format(trainer.n_gpus_per_node, trainer.nnodes, wanted, world:size()))
end

-- Why one process trains alone; nil: there are as many GPUs as the run asks for.
local function reason(trainer)
  local gpus = trainer.n_gpus_per_node
  if trainer.nnodes > 1 then
    return ("trainer.nnodes=%d: this process trains alone; mpirun, srun or torchrun starts the "
      .. "ranks of several machines"):format(trainer.nnodes)
  end
  if not (os.getenv "SEGZERO_DEVICE" or ""):find "^cuda" then
    return ("trainer.n_gpus_per_node=%d: one process trains on the processor; --device cuda uses "
      .. "GPUs, and --ranks N starts N processes"):format(gpus)
  end
  local found = C.sz_device_count(C.SZ_CUDA)
  if found >= gpus then return nil end
  return ("trainer.n_gpus_per_node=%d, and this machine has %d: one process trains on cuda:0")
    :format(gpus, found)
end

-- More threads than this process may have processors.
local function compare_threads()
  local has_host, host = pcall(require, "segzero.host")
  if not has_host or ranks.launched() then return end
  local usable = host.processors().usable
  if C.sz_threads() <= usable then return end
  notes.say(("--threads %d: this process may use fewer processors (%d), so threads wait for each "
    .. "other; --threads %d is faster"):format(C.sz_threads(), usable, usable))
end

function M.start(trainer)
  compare_threads()
  local wanted = trainer.n_gpus_per_node * trainer.nnodes
  local is_first = not started
  started = true
  if wanted == 1 then return end
  if ranks.launched() then return compare(trainer, wanted) end
  local why = reason(trainer)
  if not why then
    local has_host, host = pcall(require, "segzero.host")
    -- What a script has done before would be done again.
    if is_first and has_host then host.start_ranks(trainer.n_gpus_per_node) end
    why = ("trainer.n_gpus_per_node=%d: one process trains here; segzero --ranks %d SCRIPT starts "
      .. "as many"):format(wanted, wanted)
  end
  notes.say(why)
end

return M
