-- shards.lua - the torch files that the ranks of a run with FSDP left, as one list of whole
-- tensors.
--
--   local found = shards.find(dir)          {world = 8, paths = {[rank] = path}}; nil for none
--   local set = shards.open(dir)            opens the files that are needed and checks them
--   set.world, set.mesh                     8; "ddp 2 x fsdp 4", or "" for plain tensors
--   set.tensors                             {name -> t}, t = {name =, shape = {..}, numel =,
--                                           dtype = "f32" | "bf16": how it is read}
--   set:stream(t, sink)                     calls sink(piece, count) for all elements in row-major
--                                           order: tensors [count] of t.dtype, for the call only
--   set:equal(t, u)                         whether two tensors have the same bits
--   set:close()
--
-- Files: model_world_size_W_rank_R.pt. A DTensor is read if all dimensions of the mesh but one are
-- Replicate: rank by rank along that one, which may divide any dimension of the tensor. Parts have
-- the sizes of torch.chunk: ceil(size / ranks), the last ones less or nothing. With Replicate
-- dimensions only the ranks of their first place are read. A plain tensor is the same on every
-- rank, or a part of dimension 0 where the caller's shape says so (set:settle).
-- At most PIECE elements are in memory, or a rank's part of types that are converted. Errors are
-- one line. Leaves out: Partial, _StridedShard, several dimensions of the mesh that divide one
-- tensor.

local ffi = require "ffi"
local folders = require "segzero.core.folders"
local tensor = require "segzero.core.tensor"
local machine = require "segzero.formats.pickle_machine"
local torchfile = require "segzero.formats.torchfile"
local dtensor = require "segzero.merge.dtensor"

ffi.cdef "int memcmp(const void *a, const void *b, size_t n);"

local M = {}

local fail = machine.fail
local shown = machine.shown

local PIECE = 2 ^ 22                    -- elements
M.PIECE = PIECE
local MOST_RANKS = 65536

-- torch's type -> how it is read
local READ_AS = { float32 = "f32", bfloat16 = "bf16", float16 = "f32", float64 = "f32" }

local Set = {}
Set.__index = Set

-- ---- the folder ----
local function file_name(world, rank)
  return ("model_world_size_%d_rank_%d.pt"):format(world, rank)
end

function M.find(dir)
  local names = folders.list(dir)
  local found
  for _, name in ipairs(names or {}) do
    local world, rank = name:match "^model_world_size_(%d+)_rank_(%d+)%.pt$"
    world, rank = tonumber(world), tonumber(rank)
    if world then
      found = found or { world = world, paths = {} }
      if world ~= found.world then
        error(("%s holds the shards of two runs, with %d and with %d ranks (%s): keep those of one")
          :format(dir, found.world, world, name), 0)
      end
      if rank >= world or world > MOST_RANKS then
        error(("%s/%s: a run of %d ranks has no rank %d"):format(dir, name, world, rank), 0)
      end
      found.paths[rank] = dir .. "/" .. name
    end
  end
  return found
end

local function missing(dir, world, rank, what)
  error(("%s lacks %s%s: every node of a run writes the files of its own ranks; copy those of all "
    .. "nodes into this folder"):format(dir, file_name(world, rank), what or ""), 0)
end

-- Opens the file of a rank: {path =, archive =, list =, by_name =}.
local function open_rank(set, rank)
  if set.ranks[rank] then return set.ranks[rank] end
  local path = set.found.paths[rank]
  if not path then missing(set.dir, set.world, rank) end
  local archive = torchfile.archive(path)
  set.archives[#set.archives + 1] = archive
  local file = { path = path, archive = archive, by_name = {} }
  file.list = dtensor.list(path, archive:pickle())
  for _, e in ipairs(file.list) do
    archive:place(e)
    file.by_name[e.name] = e
  end
  set.ranks[rank] = file
  return file
end

-- ---- the mesh ----
local function product(list)
  local n = 1
  for i = 1, #list do n = n * list[i] end
  return n
end

-- The strides of a row-major array.
local function strides_of(sizes)
  local strides = {}
  local stride = 1
  for i = #sizes, 1, -1 do
    strides[i] = stride
    stride = stride * sizes[i]
  end
  return strides
end

-- Where element i of a row-major array with these sizes is in an array with these strides.
local function place_of(i, sizes, strides)
  local place = 0
  for d = #sizes, 1, -1 do
    place = place + i % sizes[d] * strides[d]
    i = math.floor(i / sizes[d])
  end
  return place
end

-- Adds to a mesh its ranks as a flat list in row-major order, and its sizes.
local function read_mesh(file, name, mesh, world)
  if mesh.list then return mesh end
  local function bad(text, ...)
    fail(file.path, "the device mesh of tensor '%s' " .. text, shown(name), ...)
  end
  -- The stored map of ranks
  local e = { name = "its mesh", tensor = mesh.ranks }
  file.archive:place(e)
  if e.numel > world then bad("has %.0f ranks, the run had %d", e.numel, world) end
  local t = file.archive:tensor(e)
  local map = t:reshape(e.numel):totable()
  t:free()
  local sizes = mesh.sizes or { unpack(mesh.ranks.shape, 1, mesh.ranks.shape.n) }
  local count = product(sizes)
  if #sizes < 1 or #sizes > 8 or count < 1 or count > e.numel then bad "has no valid sizes" end
  -- The ranks in the order of the mesh, each once
  local strides = mesh.strides or strides_of(sizes)
  local list = {}
  local seen = {}
  for i = 0, count - 1 do
    local rank = map[place_of(i, sizes, strides) + 1]
    if not rank or rank < 0 or rank >= world or rank % 1 ~= 0 or seen[rank] then
      bad("names rank %s of %d", tostring(rank), world)
    end
    seen[rank] = true
    list[i + 1] = rank
  end
  mesh.list, mesh.sizes = list, sizes
  return mesh
end

local function mesh_text(mesh)
  local parts = {}
  for i, size in ipairs(mesh.sizes) do
    parts[i] = ("%s %d"):format(shown(mesh.names[i] or "dimension"), size)
  end
  return table.concat(parts, " x ")
end

-- The dimension of the mesh that divides a DTensor; nil if none does.
local function dividing(file, e)
  local mesh = e.mesh
  if #e.placements ~= #mesh.sizes then
    fail(file.path, "tensor '%s' has %d placements on a mesh of %d dimensions", shown(e.name),
      #e.placements, #mesh.sizes)
  end
  local found
  for i, placement in ipairs(e.placements) do
    local kind = placement.kind
    if kind ~= "Shard" and kind ~= "Replicate" then
      fail(file.path, "tensor '%s' is placed as %s on the mesh (%s); Shard and Replicate are read",
        shown(e.name), shown(kind), mesh_text(mesh))
    end
    if kind == "Shard" then
      if found then
        fail(file.path, "tensor '%s' is divided along two dimensions of the mesh (%s), as by "
          .. "tensor parallelism, which is not read", shown(e.name), mesh_text(mesh))
      end
      if placement.dim >= e.shape.n then
        fail(file.path, "tensor '%s' with %d dimensions is divided along dimension %.0f",
          shown(e.name), e.shape.n, placement.dim)
      end
      found = i
    end
  end
  return found
end

-- The ranks that hold the parts of a DTensor, in order.
local function ranks_of(mesh, dim)
  if not dim then return { mesh.list[1] } end
  local stride = 1
  for i = dim + 1, #mesh.sizes do stride = stride * mesh.sizes[i] end
  local ranks = {}
  for i = 0, mesh.sizes[dim] - 1 do ranks[i + 1] = mesh.list[1 + i * stride] end
  return ranks
end

-- ---- tensors ----
local function text_of(shape) return "[" .. table.concat(shape, ", ") .. "]" end

local function same(a, b)
  if #a ~= #b then return false end
  for i = 1, #a do
    if a[i] ~= b[i] then return false end
  end
  return true
end

-- Compares what a rank says of a tensor with what rank 0 says.
local function check_alike(file, e, first)
  local what
  if e.tensor.dtype ~= first.tensor.dtype then
    what = ("is %s, on rank 0 %s"):format(e.tensor.dtype, first.tensor.dtype)
  elseif (e.shape == nil) ~= (first.shape == nil) then
    what = "is a DTensor on one of this rank and rank 0, and a plain tensor on the other"
  elseif e.shape and not same(e.shape, first.shape) then
    what = ("is %s, on rank 0 %s"):format(text_of(e.shape), text_of(first.shape))
  end
  for i, placement in ipairs(what and {} or e.placements or {}) do
    local other = first.placements[i]
    if not other or other.kind ~= placement.kind or other.dim ~= placement.dim then
      what = "is placed in another way than on rank 0"
    end
  end
  if what then
    fail(file.path, "tensor '%s' %s: the files are not of one checkpoint", shown(e.name), what)
  end
end

-- This rank's tensor of that name.
local function part_of(set, rank, first)
  local file = open_rank(set, rank)
  local e = file.by_name[first.name]
  if not e then
    fail(file.path, "there is no tensor '%s', which rank 0 has: the files are not of one "
      .. "checkpoint", shown(first.name))
  end
  if e ~= first then check_alike(file, e, first) end
  return { archive = file.archive, path = file.path, e = e }
end

-- Part i of `ranks` must have the size of its chunk; dim: from 1, nil for a whole tensor.
local function check_part(t, part, i, ranks, dim)
  local have = { unpack(part.e.tensor.shape, 1, part.e.tensor.shape.n) }
  local want = { unpack(t.shape) }
  if dim then
    local whole = want[dim]
    local chunk = math.ceil(whole / ranks)
    want[dim] = math.max(0, math.min(chunk, whole - (i - 1) * chunk))
  end
  if same(have, want) then return end
  fail(part.path, "the part of tensor '%s' %s is %s; part %d of %d has %s", shown(t.name),
    text_of(t.shape), text_of(have), i, ranks, text_of(want))
end

-- How often each part is visited, and how many elements it gives each time.
local function lay_out(t, dim)
  t.runs = 1
  for i = 1, (dim or 1) - 1 do t.runs = t.runs * t.shape[i] end
  for _, part in ipairs(t.parts) do part.run = part.e.numel / math.max(t.runs, 1) end
end

local function distributed(set, file, e)
  local mesh = read_mesh(file, e.name, e.mesh, set.world)
  local mesh_dim = dividing(file, e)
  local t = { name = e.name, shape = { unpack(e.shape, 1, e.shape.n) }, parts = {} }
  local dim
  if mesh_dim then dim = e.placements[mesh_dim].dim + 1 end
  local ranks = ranks_of(mesh, mesh_dim)
  for i, rank in ipairs(ranks) do
    t.parts[i] = part_of(set, rank, e)
    check_part(t, t.parts[i], i, #ranks, dim)
  end
  if set.mesh == "" then set.mesh = mesh_text(mesh) end
  lay_out(t, dim)
  return t
end

local function plain(set, e)
  local shape = { unpack(e.tensor.shape, 1, e.tensor.shape.n) }
  local t = { name = e.name, is_plain = true, shape = shape, parts = { part_of(set, 0, e) } }
  lay_out(t)
  return t
end

local function add(set, file, e)
  local dtype = READ_AS[e.tensor.dtype]
  if not dtype then
    fail(file.path, "tensor '%s' is %s; weights are float32, bfloat16, float16 or float64",
      shown(e.name), e.tensor.dtype)
  end
  local t
  if e.shape then t = distributed(set, file, e) else t = plain(set, e) end
  t.dtype = dtype
  t.numel = product(t.shape)
  set.tensors[t.name] = t
end

-- A plain tensor of a run with several ranks: `shape` is the whole tensor's. The parts along
-- dimension 0 are put together if the shape says so.
function Set:settle(t, shape)
  if not t.is_plain or self.world == 1 or t.is_settled then return end
  t.is_settled = true
  local first = t.parts[1]
  t.parts = {}
  for rank = 0, self.world - 1 do t.parts[rank + 1] = part_of(self, rank, first.e) end
  if shape and not same(shape, t.shape) and #shape > 0 then
    t.shape = shape
    for i, part in ipairs(t.parts) do check_part(t, part, i, self.world, 1) end
    t.numel = product(shape)
    lay_out(t, 1)
    return
  end
  t.copies = t.parts
  t.parts = { first }
  for _, part in ipairs(t.copies) do check_part(t, part, 1, 1) end
  lay_out(t)
end

-- ---- reading ----
-- A tensor of PIECE elements that reads go to; `at`: 1 or 2, for two that are compared.
local function buffer(set, dtype, at)
  local key = dtype .. at
  set.buffers[key] = set.buffers[key] or tensor.empty({ PIECE }, { dtype = dtype })
  return set.buffers[key]
end

-- The elements of a part as get(first, count, at) -> a tensor [count], which the caller frees; and
-- a function that ends it.
local function reader(set, part, dtype)
  local e = part.e
  if e.is_plain then
    return function(first, count, at)
      local piece = buffer(set, dtype, at):narrow(0, count)
      part.archive:read(e, first, count, tensor.data(piece))
      return piece
    end, function() end
  end
  local whole = part.archive:tensor(e)
  local flat = whole:reshape(e.numel)
  return function(first, count) return flat:narrow(first, count) end, function()
    flat:free()
    whole:free()
  end
end

local function same_bits(a, b, bytes)
  return ffi.C.memcmp(tensor.data(a), tensor.data(b), bytes) == 0
end

local function check_copies(set, t, part, piece, first, count)
  for _, copy in ipairs(t.copies or {}) do
    if copy ~= part then
      local get, done = reader(set, copy, t.dtype)
      local other = get(first, count, 2)
      local equal = same_bits(piece, other, count * tensor.WIDTH[t.dtype])
      other:free()
      done()
      if not equal then
        fail(copy.path, "tensor '%s' is stored whole on every rank, and differs from rank 0's",
          shown(t.name))
      end
    end
  end
end

-- Calls f(get, part) for every part, one run after another.
local function each_run(set, t, f)
  local gets = {}
  local ends = {}
  local ok, why = pcall(function()
    for i, part in ipairs(t.parts) do gets[i], ends[i] = reader(set, part, t.dtype) end
    for run = 0, t.runs - 1 do
      for i, part in ipairs(t.parts) do f(gets[i], part, run * part.run, part.run) end
    end
  end)
  for _, done in ipairs(ends) do done() end
  if not ok then error(why, 0) end
end

function Set:stream(t, sink)
  each_run(self, t, function(get, part, first, count)
    while count > 0 do
      local n = math.min(count, PIECE)
      local piece = get(first, n, 1)
      check_copies(self, t, part, piece, first, n)
      sink(piece, n)
      piece:free()
      first = first + n
      count = count - n
    end
  end)
end

local function is_same_place(a, b)
  for i, part in ipairs(a.parts) do
    local other = b.parts[i]
    if part.archive ~= other.archive or part.e.entry ~= other.e.entry
      or part.e.tensor.offset ~= other.e.tensor.offset then
      return false
    end
  end
  return true
end

-- Whether two tensors of equal shape have the same bits.
function Set:equal(a, b)
  if not same(a.shape, b.shape) or a.dtype ~= b.dtype or #a.parts ~= #b.parts then return false end
  if is_same_place(a, b) then return true end
  local equal = true
  local width = tensor.WIDTH[a.dtype]
  for i, part in ipairs(a.parts) do
    local other = b.parts[i]
    if part.e.numel ~= other.e.numel then return false end
    local get, done = reader(self, part, a.dtype)
    local get_other, done_other = reader(self, other, b.dtype)
    for first = 0, part.e.numel - 1, PIECE do
      local n = math.min(PIECE, part.e.numel - first)
      local piece = get(first, n, 1)
      local second = get_other(first, n, 2)
      equal = equal and same_bits(piece, second, n * width)
      piece:free()
      second:free()
    end
    done()
    done_other()
  end
  return equal
end

function Set:close()
  for _, archive in ipairs(self.archives) do archive:close() end
  for _, t in pairs(self.buffers) do t:free() end
  self.archives = {}
  self.buffers = {}
end

local function open(set)
  local file = open_rank(set, 0)
  for _, e in ipairs(file.list) do add(set, file, e) end
  -- A tensor that only another rank has would be lost.
  for rank, other in pairs(set.ranks) do
    for _, e in ipairs(other.list) do
      if not file.by_name[e.name] then
        fail(other.path, "rank %d has a tensor '%s' that rank 0 lacks: the files are not of one "
          .. "checkpoint", rank, shown(e.name))
      end
    end
  end
end

function M.open(dir)
  local found = M.find(dir)
  if not found then error(("%s holds no model_world_size_W_rank_R.pt"):format(dir), 0) end
  local set = setmetatable({ dir = dir, found = found, world = found.world, mesh = "", ranks = {},
    archives = {}, tensors = {}, buffers = {} }, Set)
  local ok, why = pcall(open, set)
  if ok then return set end
  set:close()
  error(why, 0)
end

return M
