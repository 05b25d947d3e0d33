-- dtensor.lua - reads the pickle of a rank's torch file: its tensors, and how DTensors are divided
-- over the ranks. Nothing that the file names is run.
--
--   local list = dtensor.list(path, text)          text: data.pkl; path: for messages
--     -> {{name =, tensor = what pickle.lua gives for a tensor: this rank's part,
--          shape = {n =, ...} of the whole tensor, mesh =,
--          placements = {{kind =, dim =}, ...}}, ...}
--        a plain tensor has no shape, mesh and placements
--     mesh: {names = {"ddp", "fsdp"}, ranks = a tensor as above, sizes = {2, 2} or nil,
--            strides = or nil}; tensors of one file share it
--     placements: one for each dimension of the mesh, with kind "Shard" (dim from 0), "Replicate",
--            "Partial" or "_StridedShard"
--
-- The names are those of torch 2.2 to 2.15. A mesh is pickled in two ways: up to torch 2.9 as a
-- tensor of ranks in the mesh's shape; later as a flat map of ranks with a layout (sizes and
-- strides). Leaves out: reading the mesh's ranks (checkpoint.lua), ShardedTensor.

local machine = require "segzero.formats.pickle_machine"
local pickle = require "segzero.formats.pickle"

local M = {}

local fail = machine.fail
local kind = machine.kind
local shown = machine.shown

-- ---- names ----
local CLASSES = {}
local function class(full, name) CLASSES[full] = { kind = "class", name = name } end

local IN_SPEC = { "DTensorSpec", "TensorMeta", "ShardOrderEntry" }
local PLACEMENTS = { "Shard", "Replicate", "Partial", "_Partial", "_StridedShard" }
for _, root in ipairs { "torch.distributed.tensor", "torch.distributed._tensor" } do
  for _, file in ipairs { "", ".api", "._api" } do class(root .. file .. ".DTensor", "DTensor") end
  for _, file in ipairs { "._dtensor_spec", ".placement_types" } do
    for _, name in ipairs(IN_SPEC) do class(root .. file .. "." .. name, name) end
  end
  for _, name in ipairs(PLACEMENTS) do
    class(root .. ".placement_types." .. name, (name:gsub("^_Partial", "Partial")))
  end
  class(root .. ".device_mesh.DeviceMesh", "DeviceMesh")
end
class("torch.distributed.device_mesh.DeviceMesh", "DeviceMesh")
class("torch.distributed._mesh_layout._MeshLayout", "layout")
class("torch.distributed._mesh_layout._FlatLayout", "layout")
class("torch.Tensor", "Tensor")
class("torch.nn.parameter.Parameter", "Tensor")

local function is_class(v, name) return kind(v) == "class" and v.name == name end

local function callable(name, call)
  CLASSES[name] = { kind = "callable", name = name, call = call }
end

-- (function, class, arguments, state): a tensor with attributes, or a subclass of Tensor
callable("torch._tensor._rebuild_from_type_v2", function(p, args)
  local f = args[1]
  local inner = args[3]
  if kind(f) ~= "callable" or kind(args[2]) ~= "class" or kind(inner) ~= "tuple" then
    p:fail("torch._tensor._rebuild_from_type_v2 is called with something else than its arguments")
  end
  if f.name == "torch._tensor._rebuild_from_type_v2" then p:fail("%s calls itself", f.name) end
  local made = f.call(p, inner)
  if kind(made) == "dtensor" then p:give_state(made, args[4]) end
  return made
end)

-- (class, dtype, sizes, strides, offset, layout, device, requires_grad)
callable("torch._utils._rebuild_wrapper_subclass", function(p, args)
  if not is_class(args[1], "DTensor") or kind(args[3]) ~= "tuple" then
    p:fail("torch._utils._rebuild_wrapper_subclass makes something else than a DTensor")
  end
  return p:object { kind = "dtensor", shape = args[3] }
end)

local function mark(p) return p:object { kind = "mark" } end
callable("torch.serialization._get_layout", mark)
callable("torch.device", mark)

-- ---- the machine ----
local methods = {}
for name, f in pairs(pickle.READER.methods) do methods[name] = f end

-- A state is a dict, or (dict or None, dict) for a class with slots.
function methods:give_state(object, state)
  local parts = { state }
  if kind(state) == "tuple" then parts = state end
  object.state = object.state or {}
  for _, part in ipairs(parts) do
    if kind(part) == "dict" then
      for key, i in pairs(part.at) do object.state[key] = part.values[i] end
    elseif kind(part) ~= "none" then
      self:fail("a state that is a %s", kind(part))
    end
  end
end

local OPS = {
  [0x81] = function(p)              -- NEWOBJ: (class, arguments)
    local args = p:pop()
    local made = p:pop()
    if kind(made) ~= "class" or kind(args) ~= "tuple" then
      p:fail("a %s is made with a %s", kind(made), kind(args))
    end
    p:push(p:object { kind = "object", class = made.name, args = args })
  end,
  [("b"):byte()] = function(p)      -- BUILD: an object's attributes; a state dict's _metadata
    local state = p:pop()
    local object = p:top()
    if kind(object) == "object" then
      p:give_state(object, state)
    elseif kind(object) ~= "dict" then
      p:fail("a %s is given a state", kind(object))
    end
  end,
}

local READER = {
  what = "data.pkl", lowest = 2, methods = methods, ops = OPS,
  globals = setmetatable(CLASSES, { __index = pickle.READER.globals }),
  refused = "only tensors, DTensors and plain containers are",
}

-- ---- what the objects say ----
local function is_whole(v) return type(v) == "number" and v >= 0 and v < 2 ^ 53 and v % 1 == 0 end

-- A tuple of whole numbers, or one of them, as a list; nil for anything else.
local function whole_list(v)
  if is_whole(v) then return { v } end
  if kind(v) ~= "tuple" then return nil end
  for i = 1, v.n do
    if not is_whole(v[i]) then return nil end
  end
  return { unpack(v, 1, v.n) }
end

local function attributes(v, name)
  if kind(v) ~= "object" or v.class ~= name then return nil end
  return v.state or {}
end

local function flat_layout(layout)
  local state = attributes(layout, "layout") or {}
  return whole_list(state.shape), whole_list(state.stride)
end

-- Sizes and strides of a layout: of the layout itself, or of its axes one after another.
local function read_layout(layout)
  local axes = (attributes(layout, "layout") or {}).axes
  if kind(axes) ~= "tuple" then return flat_layout(layout) end
  local sizes = {}
  local strides = {}
  for i = 1, axes.n do
    local size, stride = flat_layout(axes[i])
    if not size or not stride or #size ~= 1 or #stride ~= 1 then return nil end
    sizes[i] = size[1]
    strides[i] = stride[1]
  end
  return sizes, strides
end

local function read_mesh(path, name, object)
  local state = attributes(object, "DeviceMesh")
  if not state then fail(path, "tensor '%s' has no device mesh", shown(name)) end
  local mesh = { names = {}, ranks = state.mesh or state._mesh }
  if not mesh.ranks then
    mesh.ranks = state._rank_map
    mesh.sizes, mesh.strides = read_layout(state._layout)
    if not mesh.sizes or not mesh.strides or #mesh.sizes ~= #mesh.strides then mesh.ranks = nil end
  end
  if kind(mesh.ranks) ~= "tensor" then
    fail(path, "the device mesh of tensor '%s' is stored in a way that is not known: merge the "
      .. "checkpoint with its trainer's own model_merger.py", shown(name))
  end
  local names = state.mesh_dim_names or state._mesh_dim_names
  for i = 1, kind(names) == "tuple" and names.n or 0 do
    if type(names[i]) ~= "string" then fail(path, "a dimension of the mesh has no name") end
    mesh.names[i] = names[i]
  end
  return mesh
end

local function read_placements(path, name, tuple)
  if kind(tuple) ~= "tuple" and kind(tuple) ~= "list" then
    fail(path, "tensor '%s' has no placements", shown(name))
  end
  local list = {}
  for i = 1, tuple.n do
    local object = tuple[i]
    if kind(object) ~= "object" then fail(path, "tensor '%s' has no placements", shown(name)) end
    local placement = { kind = object.class }
    if object.class == "Shard" then
      local dim = (object.state or {}).dim or object.args[1]
      if not is_whole(dim) then
        fail(path, "tensor '%s' is divided along dimension %s", shown(name), shown(tostring(dim)))
      end
      placement.dim = dim
    end
    list[i] = placement
  end
  return list
end

-- meshes: {object -> mesh}, those of this file so far.
local function read_dtensor(path, name, value, meshes)
  local state = value.state or {}
  local spec = attributes(state._spec, "DTensorSpec")
  if kind(state._local_tensor) ~= "tensor" or not spec or not spec.mesh then
    fail(path, "tensor '%s' is a DTensor without a part of its own or without a spec", shown(name))
  end
  if not whole_list(value.shape) then fail(path, "tensor '%s' has no shape", shown(name)) end
  meshes[spec.mesh] = meshes[spec.mesh] or read_mesh(path, name, spec.mesh)
  return {
    name = name, tensor = state._local_tensor, shape = value.shape, mesh = meshes[spec.mesh],
    placements = read_placements(path, name, spec.placements),
  }
end

function M.list(path, text)
  local root = machine.run(path, text, READER)
  if kind(root) ~= "dict" then fail(path, "it holds a %s, not a dict of tensors", kind(root)) end
  local list = {}
  local meshes = {}
  for i, name in ipairs(root.keys) do
    local value = root.values[i]
    if type(name) ~= "string" then fail(path, "a tensor's name is a %s", kind(name)) end
    if kind(value) == "dtensor" then
      list[#list + 1] = read_dtensor(path, name, value, meshes)
    elseif kind(value) == "tensor" then
      list[#list + 1] = { name = name, tensor = value }
    else
      fail(path, "'%s' is a %s, not a tensor", shown(name), kind(value))
    end
  end
  if #list == 0 then fail(path, "it holds no tensor") end
  return list
end

return M
