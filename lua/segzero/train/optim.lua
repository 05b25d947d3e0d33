-- optim.lua - AdamW over a list of named parameters, with clipping of the gradients' global norm.
--
--   local opt = optim.adamw(list, options, p)
--                                list: {{name =, tensor =}, ...}, as vl:train() returns
--                                p: the ranks that train the same model (parallel.lua), or nil.
--                                With shards, entries may have what shards.lua says
--     lr, betas = {0.9, 0.999}, eps = 1e-8, weight_decay = 0.01, max_grad_norm = nil
--     state_dtype = "f32" | "bf16" | "int8"     of the moments; int8: codes in blocks of 256 with a
--                                               scale
--     master_weights = true | false             f32 copies of bf16 parameters; false: updated in
--                                               place, rounded stochastically
--     grad_dtype = "f32" | "bf16"               of the summed gradients; vectors stay f32
--     offload_moments = true, offload_masters = true
--                                               they are in host memory between updates, and copied
--                                               while others are updated; on the CPU no difference
--     shard_state = true | false                with several ranks: each has the state of a part of
--                                               every parameter (shards.lua), or each has all of it
--   local norm, updated, norms = opt:step(lr, part_of)
--                                          lr: of this step; without it, options.lr. If the norm is
--                                          not finite, the update is skipped: updated is false, the
--                                          gradients are cleared, opt.skipped counts it.
--                                          norms: {part -> norm} of the gradients by parts of the
--                                          model; part_of(entry of list) -> text. Without part_of
--                                          there are none
--   opt:bad_updates() -> n, window         how many of the last `window` updates were skipped
--   opt:weight_norm()                      the norm of all parameters together; collective if the
--                                          model is split over ranks
--   opt:state() -> {name -> tensor}        borrowed; checkpoints read them. This rank's, as [n], if
--                                          there are parts
--   opt:whole_state() -> {name -> tensor or parts.new}    the state of whole parameters
--   opt:set_state(saved)                   takes it from {name -> tensor}, whole as well
--   opt:steps(), opt:set_steps(n)          optimizer steps so far
--
-- With several ranks step() is collective: it sums the gradients over them, and all make the same
-- update. Leaves out: other optimizers, parameter groups.

local ffi = require "ffi"
local core = require "segzero.core.ffi"
local options = require "segzero.core.options"
local optim_state = require "segzero.train.optim_state"
local shards = require "segzero.train.shards"
local stop = require "segzero.core.stop"
local tensor = require "segzero.core.tensor"

local C = core.C
local check = core.check

local M = {}

local methods = {}
local mt = { __index = methods }

local PARTS = optim_state.KINDS
M.state_dtypes = { f32 = C.SZ_F32, bf16 = C.SZ_BF16, int8 = C.SZ_U8 }
M.grad_dtypes = { f32 = C.SZ_F32, bf16 = C.SZ_BF16 }

local DEFAULT_BETAS = { 0.9, 0.999 }
local WINDOW = 10               -- updates that bad_updates() counts over

-- The C code of a dtype's name; f32 when there is none.
local function code_of(codes, name, option, expected, level)
  local code = codes[name or "f32"]
  if code then return code end
  error(("%s is %s, expected %s"):format(option, tostring(name), expected), level + 1)
end

local OPTIONS = options.set {
  "lr", "betas", "eps", "weight_decay", "max_grad_norm", "state_dtype", "grad_dtype",
  "master_weights", "shard_state", "offload_moments", "offload_masters",
}

local function check_list(list, level)
  local is_list = type(list) == "table"
  for _, p in ipairs(is_list and list or {}) do
    is_list = is_list and type(p) == "table" and tensor.is_tensor(p.tensor)
  end
  if is_list then return end
  error("adamw: a list of {name =, tensor =} is expected, such as vl:train() returns", level + 1)
end

local function offloaded(opts)
  local kinds = 0
  if opts.offload_moments then kinds = kinds + C.SZ_OFFLOAD_MOMENTS end
  if opts.offload_masters then kinds = kinds + C.SZ_OFFLOAD_MASTERS end
  return kinds
end

function M.adamw(list, opts, p)
  opts = options.check("adamw", opts, OPTIONS, 2)
  local moments = code_of(M.state_dtypes, opts.state_dtype, "state_dtype", "f32, bf16 or int8", 2)
  local gradients = code_of(M.grad_dtypes, opts.grad_dtype, "grad_dtype", "f32 or bf16", 2)
  check_list(list, 2)
  local pointers = ffi.new("sz_tensor *[?]", #list)
  for i, one in ipairs(list) do
    pointers[i - 1] = one.tensor.ptr
    if opts.grad_dtype then check(C.sz_tensor_set_grad_dtype(one.tensor.ptr, gradients), 2) end
  end
  local masters = opts.master_weights == false and 0 or 1
  local ranks = p and p.size > 1 and p or nil
  local parts
  local divides = ranks and ranks.replicas > 1 and opts.shard_state ~= false
  if divides then parts = shards.new(list, ranks) end
  local handle = check(C.sz_adamw_new_parts(pointers, #list, moments, masters,
    parts and parts.first, parts and parts.count, offloaded(opts)), 2)
  local betas = opts.betas or DEFAULT_BETAS
  return setmetatable({
    c = ffi.gc(handle, C.sz_adamw_free), list = list, lr = opts.lr, beta1 = betas[1],
    beta2 = betas[2], ranks = ranks, shards = parts, moments = moments, has_masters = masters == 1,
    eps = opts.eps or 1e-8, weight_decay = opts.weight_decay or 0.01,
    max_grad_norm = opts.max_grad_norm, skipped = 0, recent = {},
    counts = ranks and shards.counts(list, ranks),
  }, mt)
end

-- The last updates, newest first: whether each was skipped.
local function remember(self, was_skipped)
  table.insert(self.recent, 1, was_skipped)
  self.recent[WINDOW + 1] = nil
end

function methods:bad_updates()
  local n = 0
  for _, was_skipped in ipairs(self.recent) do if was_skipped then n = n + 1 end end
  return n, WINDOW
end

-- The weights of a model that is split over ranks count once each.
function methods:weight_norm()
  local p = self.ranks
  if not p or p.shards == 1 then return check(C.sz_adamw_weight_norm(self.c), 2) end
  local squares = p:agreed(function()
    if p.replica > 0 then return 0 end
    return check(C.sz_adamw_weight_squares(self.c, self.counts))
  end)
  local total = 0
  for _, part in ipairs(squares) do total = total + part end
  return math.sqrt(total)
end

-- The squares that the last norm was made of, summed for each part of the model.
local function squares_by_part(self, part_of)
  local sums = {}
  if not part_of then return sums end
  local squares = C.sz_adamw_squares(self.c)
  for i, one in ipairs(self.list) do
    if not self.counts or self.counts[i - 1] == 1 then
      local part = part_of(one)
      sums[part] = (sums[part] or 0) + squares[i - 1]
    end
  end
  return sums
end

local function roots(sums)
  local norms = {}
  for part, sum in pairs(sums) do norms[part] = math.sqrt(sum) end
  return norms
end

-- The norm of the gradients, which are summed over the ranks first, and the norms of the model's
-- parts. Each weight counts once: on the rank that has its part, or on the first replica, and for
-- the first copy of a slice.
local function gradient_norms(self, part_of)
  local p = self.ranks
  if not p then
    local norm = check(C.sz_adamw_grad_norm(self.c), 3)
    return norm, roots(squares_by_part(self, part_of))
  end
  if self.shards then
    self.shards:sum_gradients()
  else
    shards.sum_gradients(self.list, p)
  end
  local total = 0
  local sums = {}
  for _, own in ipairs(p:agreed(function()
    if not self.shards and p.replica > 0 then return { total = 0, parts = {} } end
    local squares = check(C.sz_adamw_grad_squares(self.c, self.counts))
    return { total = squares, parts = squares_by_part(self, part_of) }
  end)) do
    total = total + own.total
    for part, sum in pairs(own.parts) do sums[part] = (sums[part] or 0) + sum end
  end
  return math.sqrt(total), roots(sums)
end

-- Ranks make their parts of it, and then all have the same weights.
local function update(self, ...)
  local arguments = { ... }
  local function on_this() check(C.sz_adamw_step(self.c, unpack(arguments))) end
  if not self.ranks then return on_this() end
  self.ranks:agreed(on_this)
  if self.shards then self.shards:gather() end
end

function methods:step(lr, part_of)
  local norm, norms = gradient_norms(self, part_of)
  local is_finite = norm == norm and norm < math.huge
  remember(self, not is_finite)
  if not is_finite then
    self.skipped = self.skipped + 1
    C.sz_adamw_zero_grad(self.c)
    return norm, false, norms
  end
  -- A stop must not come between two parameters.
  stop.hold()
  local scale = 1
  if self.max_grad_norm and norm > self.max_grad_norm then
    scale = self.max_grad_norm / (norm + 1e-6)
  end
  update(self, lr or self.lr, self.beta1, self.beta2, self.eps, self.weight_decay, scale)
  stop.release()
  return norm, true, norms
end

function methods:zero_grad() C.sz_adamw_zero_grad(self.c) end

function methods:steps() return tonumber(C.sz_adamw_steps(self.c)) end

function methods:set_steps(n) C.sz_adamw_set_steps(self.c, n) end

-- Moments, masters and the scales of codes, as "exp_avg.NAME" and so on.
function methods:state()
  local out = {}
  for i, p in ipairs(self.list) do
    for which = 0, #PARTS do
      local t = C.sz_adamw_state(self.c, i - 1, which)
      if t ~= nil then out[PARTS[which] .. "." .. p.name] = tensor.borrow(t) end
    end
  end
  return out
end

function methods:whole_state() return optim_state.whole(self) end

function methods:set_state(saved) optim_state.load(self, saved) end

return M
