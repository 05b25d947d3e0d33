-- optim_state.lua - the optimizer's state as checkpoints have it: one tensor for each whole
-- parameter and kind of state, whatever ranks keep it.
--
--   optim_state.whole(opt) -> {"exp_avg.NAME" -> tensor, or parts.new where ranks have parts}
--   optim_state.load(opt, saved)      takes this rank's parts of such tensors; scales that fit no
--                                     blocks are an error before anything is changed
--   optim_state.is_scale(name)        whether the tensor's shape says which blocks it belongs to
--
-- A rank keeps the state of elements [first, first + count) of its shard's slice of a parameter
-- (train/shards.lua, models/split.lua). Moments and masters are stored at the places of the whole
-- tensor, so they are read back on any number of replicas and shards.
--
-- 8-bit moments have a scale for each 256 elements of the shard's slice. Where these are 256
-- elements of the whole tensor too (whole weights, and slices of rows that are a multiple of 256
-- elements), the scales are stored as [blocks]. Elsewhere they are stored as [row slices, column
-- slices, blocks of a slice]: the same split reads the same bits, another decodes the moments and
-- codes them in its own blocks, rounded to nearest.
-- Leaves out: files (train/run/checkpoint.lua), the update (optim.lua).

local core = require "segzero.core.ffi"
local parts = require "segzero.formats.parts"
local split = require "segzero.models.split"
local tensor = require "segzero.core.tensor"

local C = core.C
local check = core.check

local M = {}

M.KINDS = { [0] = "exp_avg", "exp_avg_sq", "master", "exp_avg_scale", "exp_avg_sq_scale" }

local MASTER = 2
local FIRST_SCALE = 3            -- of the moment that comes three earlier
local BLOCK = 256                -- elements that share a scale

local DTYPES = { [tonumber(C.SZ_F32)] = "f32", [tonumber(C.SZ_BF16)] = "bf16",
  [tonumber(C.SZ_U8)] = "u8" }

local function product(list, from)
  local n = 1
  for i = from, #list do n = n * list[i] end
  return n
end

-- ---- blocks of 8-bit moments ----
-- Shape and slice of the scales of parameter p, whose whole shape is full.
local function scales_of(full, slice)
  local total = product(full, 1)
  if not slice then return { math.ceil(total / BLOCK) } end
  local count = full[slice.dim] / slice.count
  local own = total / count
  local number = slice.first / slice.count
  if slice.dim == 1 and own % BLOCK == 0 then
    return { total / BLOCK }, { dim = 1, first = number * own / BLOCK, count = own / BLOCK }
  end
  local blocks = math.ceil(own / BLOCK)
  if slice.dim == 1 then return { count, 1, blocks }, { dim = 1, first = number, count = 1 } end
  return { 1, count, blocks }, { dim = 2, first = number, count = 1 }
end

-- Rows and columns of slices that saved scales belong to; nil if they do not fit the parameter.
local function grid_of(full, shape)
  local total = product(full, 1)
  if #shape == 1 then
    if shape[1] == math.ceil(total / BLOCK) then return 1, 1 end
    return nil
  end
  if #shape ~= 3 then return nil end
  local rows, columns, blocks = unpack(shape)
  local fits = full[1] % rows == 0 and (columns == 1 or (full[2] or 1) % columns == 0)
    and (rows == 1 or columns == 1) and blocks == math.ceil(total / rows / columns / BLOCK)
  if fits then return rows, columns end
end

-- ---- what a checkpoint has ----
-- Shape, slice and dtype of a kind of state of a parameter; nil if it has none.
local function description(opt, p, which)
  local full = p.full or p.tensor:shape()
  local moments = tonumber(opt.moments)
  if which < MASTER then return full, p.slice, DTYPES[moments] end
  if which == MASTER then
    if not opt.has_masters or p.tensor:dtype() == "f32" then return nil end
    return full, p.slice, "f32"
  end
  if moments ~= tonumber(C.SZ_U8) then return nil end
  local shape, slice = scales_of(full, p.slice)
  return shape, slice, "f32"
end

-- This rank's tensor of a kind of state, borrowed, and its place in the slice; nil if it has none.
local function own_part(opt, i, which)
  local t = C.sz_adamw_state(opt.c, i - 1, which)
  if t == nil then return nil end
  return tensor.borrow(t), tonumber(C.sz_adamw_state_first(opt.c, i - 1, which))
end

-- Which parameters' parts another rank writes, that has the same.
local function dealt(opt)
  local ranks = opt.ranks
  local list = {}
  for i, p in ipairs(opt.list) do
    list[i] = { tensor = p.tensor, copies = p.copies or ranks.shards, copy = p.copy or ranks.shard }
  end
  local replica
  if not opt.shards then replica = { index = ranks.replica, count = ranks.replicas } end
  return split.deal(list, replica)
end

local function is_divided(opt) return opt.shards or opt.ranks and opt.ranks.shards > 1 end

function M.whole(opt)
  if not is_divided(opt) then return opt:state() end
  local elsewhere = dealt(opt)
  local out = {}
  for i, p in ipairs(opt.list) do
    for which = 0, #M.KINDS do
      local shape, slice, dtype = description(opt, p, which)
      if shape then
        local part, first = own_part(opt, i, which)
        out[M.KINDS[which] .. "." .. p.name] = parts.new { shape = shape, slice = slice,
          dtype = dtype, part = part, skip = first, elsewhere = elsewhere[i] }
      end
    end
  end
  return out
end

-- ---- loading ----
function M.is_scale(name) return name:find "^exp_avg_scale%." or name:find "^exp_avg_sq_scale%." end

-- The saved blocks of a parameter's 8-bit moments where they are not this rank's; nil where they
-- are, or the moments are wider.
local function other_blocks(opt, p, which, saved)
  if tonumber(opt.moments) ~= tonumber(C.SZ_U8) then return nil end
  local name = M.KINDS[which + FIRST_SCALE] .. "." .. p.name
  local full = p.full or p.tensor:shape()
  local have = saved[name]:shape()
  local rows, columns = grid_of(full, have)
  if not rows then
    error(("%s has shape [%s], which fits no blocks of [%s]"):format(name,
      table.concat(have, ", "), table.concat(full, ", ")), 0)
  end
  local want = scales_of(full, p.slice)
  if table.concat(want, ",") == table.concat(have, ",") then return nil end
  return { scales = saved[name], rows = rows, columns = columns, full = full }
end

-- Takes the codes of a moment, and makes codes and scales in this rank's blocks of them.
local function recode(opt, i, which, whole, blocks)
  local codes, first = own_part(opt, i, which)
  local scales = own_part(opt, i, which + FIRST_SCALE)
  local place = parts.place(blocks.full, opt.list[i].slice, first)
  local own = tensor.empty(codes:shape(), { dtype = "u8" })
  local own_scales = tensor.empty(scales:shape())
  check(C.sz_part_copy(own.ptr, place, whole.ptr))
  local columns = product(blocks.full, 2)
  check(C.sz_moment_recode(own.ptr, own_scales.ptr, which, place, blocks.scales.ptr,
    blocks.full[1], columns, blocks.rows, blocks.columns))
  codes:copy_(own)
  scales:copy_(own_scales)
  own:free()
  own_scales:free()
end

local function take(opt, i, which, saved)
  local part, first = own_part(opt, i, which)
  if not part then return end
  local p = opt.list[i]
  local _, slice = description(opt, p, which)
  parts.copy(part, saved[M.KINDS[which] .. "." .. p.name], slice, first)
end

function M.load(opt, saved)
  local blocks = {}
  for i, p in ipairs(opt.list) do
    blocks[i] = {}
    for moment = 0, 1 do blocks[i][moment] = other_blocks(opt, p, moment, saved) end
  end
  for i, p in ipairs(opt.list) do
    take(opt, i, MASTER, saved)
    for moment = 0, 1 do
      local other = blocks[i][moment]
      if not other then
        take(opt, i, moment, saved)
        take(opt, i, moment + FIRST_SCALE, saved)
      elseif own_part(opt, i, moment) then
        recode(opt, i, moment, saved[M.KINDS[moment] .. "." .. p.name], other)
      end
    end
  end
end

return M
