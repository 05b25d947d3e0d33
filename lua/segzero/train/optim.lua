-- optim.lua - AdamW over a list of named parameters, with global-norm clipping.
--
--   local opt = optim.adamw(list, {lr =, betas = {0.9, 0.999}, eps = 1e-8, weight_decay = 0.01, max_grad_norm = 1})
--   local norm, updated = opt:step(lr)      -- lr overrides; a non-finite norm skips the update, clears the gradients, is counted
--       state_dtype = "f32" | "bf16" | "int8"     of the moments; int8: codes in blocks of 256 with a scale (runtime/cpu/optim.c)
--       master_weights = true | false             f32 copies of bf16 parameters; false: updated in place, rounded stochastically
--       grad_dtype = "f32" | "bf16"               of the summed gradients (vectors stay f32)
--   opt.skipped                             -- how often that happened
--   opt:state()                             -- {name -> tensor}, borrowed, for checkpoints (read and written in place)
--   opt:steps() / opt:set_steps(n)
--
-- list is what vl:train() returns: {{name =, tensor =}, ...}.

local ffi = require "ffi"
local core = require "segzero.core.ffi"
local tensor = require "segzero.core.tensor"

local C, check = core.C, core.check

local M = {}

local methods = {}
local mt = { __index = methods }

local PARTS = { [0] = "exp_avg", "exp_avg_sq", "master", "exp_avg_scale", "exp_avg_sq_scale" }
M.state_dtypes = { f32 = C.SZ_F32, bf16 = C.SZ_BF16, int8 = C.SZ_U8 }
M.grad_dtypes = { f32 = C.SZ_F32, bf16 = C.SZ_BF16 }

function M.adamw(list, opts)
  local pointers = ffi.new("sz_tensor *[?]", #list)
  for i, p in ipairs(list) do pointers[i - 1] = p.tensor.ptr end
  local moments, gradients = M.state_dtypes[opts.state_dtype or "f32"], M.grad_dtypes[opts.grad_dtype or "f32"]
  if not moments then error("state_dtype is " .. tostring(opts.state_dtype) .. ", expected f32, bf16 or int8", 2) end
  if not gradients then error("grad_dtype is " .. tostring(opts.grad_dtype) .. ", expected f32 or bf16", 2) end
  for _, p in ipairs(list) do
    if opts.grad_dtype then check(C.sz_tensor_set_grad_dtype(p.tensor.ptr, gradients), 2) end
  end
  local c = ffi.gc(check(C.sz_adamw_new(pointers, #list, moments, opts.master_weights == false and 0 or 1), 2), C.sz_adamw_free)
  local betas = opts.betas or { 0.9, 0.999 }
  return setmetatable({ c = c, list = list, lr = opts.lr, beta1 = betas[1], beta2 = betas[2], eps = opts.eps or 1e-8,
    weight_decay = opts.weight_decay or 0.01, max_grad_norm = opts.max_grad_norm, skipped = 0 }, mt)
end

function methods:step(lr)
  local norm = check(C.sz_adamw_grad_norm(self.c), 2)
  if not (norm < math.huge) then
    self.skipped = self.skipped + 1
    C.sz_adamw_zero_grad(self.c)
    return norm, false
  end
  local scale = 1
  if self.max_grad_norm and norm > self.max_grad_norm then scale = self.max_grad_norm / (norm + 1e-6) end
  check(C.sz_adamw_step(self.c, lr or self.lr, self.beta1, self.beta2, self.eps, self.weight_decay, scale), 2)
  return norm, true
end

function methods:zero_grad() C.sz_adamw_zero_grad(self.c) end
function methods:steps() return tonumber(C.sz_adamw_steps(self.c)) end

-- The moments (and masters, and the codes' scales), borrowed, by parameter name.
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

function methods:set_steps(n) C.sz_adamw_set_steps(self.c, n) end

return M
