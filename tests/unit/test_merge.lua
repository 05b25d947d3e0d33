-- test_merge.lua - checkpoints of Seg-Zero and EasyR1 merged (tests/golden/make_dtensor.py made
-- those in tests/golden/dtensor): every bit of the weights, transformers' logits, uneven shards,
-- and one line for each kind of damage.
--
--   ./segzero tests/unit/test_merge.lua

local ffi = require "ffi"
local archive = require "tests.support.torch_archive"
local check = require "tests.support.check"
local golden = require "tests.support.qwen_golden"
local sz = require "segzero"
local files = require "segzero.core.files"
local folders = require "segzero.core.folders"
local merge = require "segzero.merge"
local shards = require "segzero.merge.shards"
local tensor = require "segzero.core.tensor"

local GOLDEN = "tests/golden/dtensor/"

local dir = os.tmpname()
os.remove(dir)
assert(os.execute("mkdir " .. dir))

local made = 0

local function new_path()
  made = made + 1
  return ("%s/%d"):format(dir, made)
end

local function bits_of(t)
  return ffi.string(tensor.data(t), t:numel() * tensor.WIDTH[t:dtype()])
end

-- Compares a merged folder with what the whole model had; the number of its tensors.
local function check_weights(folder, case)
  local want = sz.safetensors.load(GOLDEN .. case .. "/expected.safetensors")
  local got = sz.safetensors.load_folder(folder)
  local count = 0
  for name, t in pairs(want) do
    count = count + 1
    local found = got[name]
    if check.ok(found, case .. " has " .. name) then
      check.equal({ found:dtype(), found:shape() }, { "bf16", t:shape() }, case .. " " .. name)
      check.ok(bits_of(found) == bits_of(t), case .. ": the bits of " .. name)
    end
  end
  for name in pairs(got) do check.ok(want[name], case .. ": only the model's: " .. name) end
  return count
end

-- ---- whole checkpoints ----
local EXPECTED = {
  { case = "seg_zero", tensors = 57, mesh = "fsdp 3", adapters = 0 },     -- an lm_head of its own
  { case = "one", tensors = 56, mesh = "", adapters = 0 },                -- plain tensors
  { case = "easyr1", tensors = 56, mesh = "ddp 2 x fsdp 2", adapters = 0 },
  { case = "lora", tensors = 56, mesh = "fsdp 2", adapters = 14 },
}

for _, want in ipairs(EXPECTED) do
  local case = want.case
  check.case("merged weights and logits: " .. case, function()
    local out = new_path()
    local result = merge.run { dir = GOLDEN .. case .. "/actor", out = out }
    check.equal({ result.mesh, result.adapters, result.tensors }, { want.mesh, want.adapters,
      want.tensors }, case .. ": mesh, adapters, tensors")
    check.equal(check_weights(out, case), want.tensors, case .. ": tensors compared")

    local t = sz.safetensors.load(GOLDEN .. case .. "/case.safetensors")
    local input = golden.input_of({ prefix = "s0.", images = {} }, t)
    input.pixel_values = t["s0.pixel_values"]
    local vl = sz.qwen_vl(out, { dtype = "f32" })
    local logits = vl:forward(input)
    local difference = golden.relative(golden.flat(logits), golden.flat(t["s0.logits"]))
    check.ok(difference < golden.LOGITS_TOL, ("%s: logits differ by %g"):format(case, difference))
    vl:free()
  end)
end

check.case("a shard limit, f32, and what happens to config.json", function()
  local out = new_path()
  local result = merge.run { dir = GOLDEN .. "seg_zero/actor", out = out, shard = 6000 }
  check.ok(#result.files > 2, "several files")
  check_weights(out, "seg_zero")
  check.ok(files.read(out .. "/config.json"):find('"torch_dtype": "bfloat16"', 1, true),
    "config.json says bfloat16, as save_pretrained writes it")
  local original = files.read(GOLDEN .. "seg_zero/actor/huggingface/config.json")
  check.ok(original:find('"float32"', 1, true), "the checkpoint's own says float32")

  local exact = new_path()
  merge.run { dir = GOLDEN .. "seg_zero/actor", out = exact, dtype = "f32" }
  local t = sz.safetensors.load(exact .. "/model.safetensors")["model.norm.weight"]
  check.equal(t:dtype(), "f32", "f32 keeps the run's own numbers")
  local rounded = sz.safetensors.load(out .. "/" .. result.files[2])
  check.ok(next(rounded), "the second file holds tensors")
end)

-- ---- shards made here ----
local INT = "IntStorage"
local MOST_RANKS = 8
local SHARD = "torch.distributed.tensor.placement_types\nShard\n"
local REPLICATE = "torch.distributed.tensor.placement_types\nReplicate\n"
local OLD_SHARD = "torch.distributed._tensor.placement_types\nShard\n"

local function shard(dim, class)
  return archive.object(class or SHARD, { { "dim", archive.int(dim) } })
end

local function replicate() return archive.object(REPLICATE, {}) end

local function tuple(parts) return "(" .. table.concat(parts) .. "t" end

local function strides_of(shape)
  local strides = {}
  local n = 1
  for i = #shape, 1, -1 do
    strides[i] = n
    n = n * shape[i]
  end
  return strides
end

-- The ranks 0 .. n - 1 in storage "mesh", as torch 2.6 stores them. names: one for each size.
local function mesh(sizes, names)
  local count = 1
  for _, size in ipairs(sizes) do count = count * size end
  local texts = {}
  for i, name in ipairs(names) do texts[i] = archive.text(name) end
  return archive.object("torch.distributed.device_mesh\nDeviceMesh\n", {
    { "mesh", archive.tensor("mesh", count, 0, sizes, strides_of(sizes), INT) },
    { "mesh_dim_names", tuple(texts) },
  })
end

local function dtensor(shape, part, placements, a_mesh)
  local spec = archive.object("torch.distributed.tensor._dtensor_spec\nDTensorSpec\n", {
    { "mesh", a_mesh }, { "placements", tuple(placements) },
  })
  local class = "ctorch.distributed.tensor\nDTensor\n"
  local inner = tuple { class, "ctorch\nfloat32\n", archive.ints(shape),
    archive.ints(strides_of(shape)), archive.int(0), "N", "N", "\137" }
  local state = "N}" .. archive.text "_local_tensor" .. part .. "s" .. archive.text "_spec" .. spec
    .. "s\134"
  return "ctorch._tensor\n_rebuild_from_type_v2\n"
    .. tuple { "ctorch._utils\n_rebuild_wrapper_subclass\n", class, inner, state } .. "R"
end

local function bytes_of(c_type, values)
  local data = ffi.new(c_type .. "[?]", math.max(#values, 1), values)
  return ffi.string(data, ffi.sizeof(c_type) * #values)
end

local function range(n)
  local list = {}
  for i = 1, n do list[i] = i - 1 end
  return list
end

-- Writes the file of a rank. tensors: {{name, value, storage key, its numbers}, ...}.
local function rank_file(folder, world, rank, tensors)
  local pairs_of = {}
  local entries = { { "a/data/mesh", bytes_of("int32_t", range(MOST_RANKS)) } }
  for i, t in ipairs(tensors) do
    pairs_of[i] = { t[1], t[2] }
    entries[#entries + 1] = { "a/data/" .. t[3], bytes_of("float", t[4]) }
  end
  table.insert(entries, 1, { "a/data.pkl", archive.dict(pairs_of) })
  files.write(("%s/model_world_size_%d_rank_%d.pt"):format(folder, world, rank),
    archive.zip(entries))
end

-- A part with these numbers in a storage of its own.
local function part(key, shape, values)
  return archive.tensor(key, #values, 0, shape, strides_of(shape))
end

local function folder_of(ranks)
  local folder = new_path()
  files.make_dir(folder)
  for i, tensors in ipairs(ranks) do rank_file(folder, #ranks, i - 1, tensors) end
  return folder
end

-- {"w", a DTensor} of one rank on a mesh of its own.
local function entry(shape, part_shape, values, placements, a_mesh)
  return { "w", dtensor(shape, part("0", part_shape, values), placements, a_mesh), "0", values }
end

-- The whole tensor "w" of a folder as a list. shape: as for set:settle.
local function read_whole(folder, shape)
  local set = shards.open(folder)
  local t = set.tensors.w
  if shape then set:settle(t, shape) end
  local out = {}
  set:stream(t, function(piece, count)
    local values = piece:totable()
    check.equal(#values, count, "the piece has the size that was said")
    for _, v in ipairs(values) do out[#out + 1] = v end
  end)
  set:close()
  return out, t.shape
end

local function fsdp(n) return mesh({ n }, { "fsdp" }) end

check.case("torch's chunks: uneven, and a rank with nothing", function()
  local folder = folder_of {
    { entry({ 4, 2 }, { 2, 2 }, { 1, 2, 3, 4 }, { shard(0) }, fsdp(3)) },
    { entry({ 4, 2 }, { 2, 2 }, { 5, 6, 7, 8 }, { shard(0) }, fsdp(3)) },
    { entry({ 4, 2 }, { 0, 2 }, {}, { shard(0) }, fsdp(3)) },
  }
  check.equal(read_whole(folder), { 1, 2, 3, 4, 5, 6, 7, 8 }, "4 rows on 3 ranks")
end)

check.case("divided along dimension 1, with the names before torch 2.5", function()
  local folder = folder_of {
    { entry({ 2, 3 }, { 2, 2 }, { 1, 2, 4, 5 }, { shard(1, OLD_SHARD) }, fsdp(2)) },
    { entry({ 2, 3 }, { 2, 1 }, { 3, 6 }, { shard(1, OLD_SHARD) }, fsdp(2)) },
  }
  check.equal(read_whole(folder), { 1, 2, 3, 4, 5, 6 }, "columns side by side")
end)

check.case("replicated tensors are read once", function()
  local both = mesh({ 2, 2 }, { "ddp", "fsdp" })
  local ranks = {}
  for i, values in ipairs { { 1, 2 }, { 3, 4 } } do
    ranks[i] = { entry({ 4 }, { 2 }, values, { replicate(), shard(0) }, both) }
  end
  local folder = new_path()
  files.make_dir(folder)
  for i = 1, 2 do rank_file(folder, 4, i - 1, ranks[i]) end
  check.equal(read_whole(folder), { 1, 2, 3, 4 }, "two files of four are the first copy")

  local whole = folder_of {
    { entry({ 2 }, { 2 }, { 7, 8 }, { replicate() }, fsdp(2)) },
    { entry({ 2 }, { 2 }, { 7, 8 }, { replicate() }, fsdp(2)) },
  }
  check.equal(read_whole(whole), { 7, 8 }, "replicated over all ranks")
end)

check.case("plain tensors: copies, or parts where the model's shape says so", function()
  local function plain(values) return { { "w", part("0", { #values }, values), "0", values } } end
  local copies = folder_of { plain { 1, 2 }, plain { 1, 2 } }
  check.equal(read_whole(copies, { 2 }), { 1, 2 }, "equal copies are one tensor")
  local parts = folder_of { plain { 1, 2 }, plain { 3 } }
  check.equal(read_whole(parts, { 3 }), { 1, 2, 3 }, "parts of a tensor of three")
  check.raises(function() read_whole(folder_of { plain { 1, 2 }, plain { 1, 5 } }, { 2 }) end,
    "rank_1%.pt: tensor 'w' is stored whole on every rank, and differs from rank 0's",
    "copies that differ")
end)

-- ---- what is refused ----
local function refused(name, pattern, folder)
  local ok, why = pcall(read_whole, folder)
  why = tostring(why)
  local good = not ok and why:find(pattern) and not why:find "\n" and why:find(folder, 1, true)
  check.ok(good, ("%s: wants '%s', got '%s'"):format(name, pattern, why))
end

local function good_rank(rank)
  return { entry({ 4 }, { 2 }, { 2 * rank + 1, 2 * rank + 2 }, { shard(0) }, fsdp(2)) }
end

check.case("a checkpoint that is not whole", function()
  local folder = folder_of { good_rank(0), good_rank(1) }
  check.equal(read_whole(folder), { 1, 2, 3, 4 }, "the files before they are damaged")
  local second = folder .. "/model_world_size_2_rank_1.pt"
  local bytes = files.read(second)

  files.write(second, bytes:sub(1, #bytes - 40))
  refused("half written", "rank_1%.pt: the archive does not end as one", folder)
  files.write(second, "")
  refused("empty", "rank_1%.pt: the file is empty", folder)
  files.write(second, bytes:gsub("_local_tensor", "_other_tensor"))
  refused("no part", "rank_1%.pt: tensor 'w' is a DTensor without a part of its own", folder)
  os.remove(second)
  refused("missing", "lacks model_world_size_2_rank_1%.pt: every node of a run writes", folder)
  rank_file(folder, 4, 3, good_rank(1))
  refused("two runs", "holds the shards of two runs, with %d and with %d ranks", folder)
  os.remove(folder .. "/model_world_size_4_rank_3.pt")
  files.write(folder .. "/model_world_size_2_rank_2.pt", bytes)
  refused("a rank too many", "a run of 2 ranks has no rank 2", folder)
  local empty = new_path()
  files.make_dir(empty)
  refused("nothing", "holds no model_world_size_W_rank_R%.pt", empty)
end)

check.case("ranks that do not agree", function()
  local function second(...) return folder_of { good_rank(0), { entry(...) } } end
  local placed = { shard(0) }
  refused("another size", "rank_1%.pt: tensor 'w' is %[5%], on rank 0 %[4%]",
    second({ 5 }, { 2 }, { 3, 4 }, placed, fsdp(2)))
  refused("a wrong part", "the part of tensor 'w' %[4%] is %[3%]; part 2 of 2 has %[2%]",
    second({ 4 }, { 3 }, { 3, 4, 5 }, placed, fsdp(2)))
  refused("another placement", "is placed in another way than on rank 0",
    second({ 4 }, { 4 }, { 3, 4, 5, 6 }, { replicate() }, fsdp(2)))
  refused("plain here", "a plain tensor on the other",
    folder_of { good_rank(0), { { "w", part("0", { 2 }, { 3, 4 }), "0", { 3, 4 } } } })
  refused("missing there", "rank_1%.pt: there is no tensor 'w', which rank 0 has",
    folder_of { good_rank(0), { { "v", part("0", { 2 }, { 3, 4 }), "0", { 3, 4 } } } })
  local more = good_rank(1)
  more[2] = { "v", part("1", { 2 }, { 3, 4 }), "1", { 3, 4 } }
  refused("too many there", "rank 1 has a tensor 'v' that rank 0 lacks",
    folder_of { good_rank(0), more })
end)

check.case("placements and meshes that are not read", function()
  local function alone(placements, a_mesh)
    return folder_of { { entry({ 2 }, { 2 }, { 1, 2 }, placements, a_mesh) } }
  end
  local partial = archive.object("torch.distributed.tensor.placement_types\nPartial\n",
    { { "reduce_op", archive.text "sum" } })
  refused("Partial", "tensor 'w' is placed as Partial on the mesh %(fsdp 1%)",
    alone({ partial }, fsdp(1)))
  local strided = archive.object("torch.distributed.tensor.placement_types\n_StridedShard\n",
    { { "dim", archive.int(0) }, { "split_factor", archive.int(2) } })
  refused("_StridedShard", "placed as _StridedShard", alone({ strided }, fsdp(1)))
  refused("tensor parallelism", "divided along two dimensions of the mesh %(fsdp 1 x tp 1%)",
    alone({ shard(0), shard(0) }, mesh({ 1, 1 }, { "fsdp", "tp" })))
  refused("dimensions", "1 placements on a mesh of 2 dimensions",
    alone({ shard(0) }, mesh({ 1, 1 }, { "ddp", "fsdp" })))
  refused("a dimension that is not there", "with 1 dimensions is divided along dimension 3",
    alone({ shard(3) }, fsdp(1)))
  refused("a larger mesh", "the device mesh of tensor 'w' has 2 ranks, the run had 1",
    alone({ shard(0) }, fsdp(2)))
  local strange = archive.object("torch.distributed.device_mesh\nDeviceMesh\n", {})
  refused("an unknown mesh", "is stored in a way that is not known", alone({ shard(0) }, strange))
end)

check.case("a pickle that names something else is not run", function()
  local function named(value)
    return folder_of { { { "w", value, "0", {} } } }
  end
  local mark = new_path()
  refused("a command", "the file calls posix%.system, which is not read",
    named("cposix\nsystem\n(" .. archive.text("touch " .. mark) .. "tR"))
  refused("an import of ours", "the file calls torch%.distributed%.tensor%.Evil",
    named "ctorch.distributed.tensor\nEvil\n)R")
  refused("a class that is called", "a class is called",
    named("c" .. SHARD .. ")R"))
  refused("another wrapper", "makes something else than a DTensor",
    named("ctorch._utils\n_rebuild_wrapper_subclass\n"
      .. tuple { "c" .. SHARD, "N", archive.ints {} } .. "R"))
  local itself = "ctorch._tensor\n_rebuild_from_type_v2\n"
  refused("a call of itself", "calls itself",
    named(itself .. tuple { itself, "ctorch\nTensor\n", tuple {}, "N" } .. "R"))
  refused("a number", "'w' is a number, not a tensor", named(archive.int(7)))
  check.equal(folders.kind(mark), nil, "nothing was run")
end)

-- ---- the model's config ----
local function copy_of(case)
  local folder = new_path()
  assert(os.execute(("cp -r %s%s/actor %s"):format(GOLDEN, case, folder)))
  return folder
end

local function merge_refused(name, pattern, folder)
  local before = #folders.list(folder .. "/huggingface")
  local ok, why = pcall(merge.run, { dir = folder })
  why = tostring(why)
  local good = not ok and why:find(pattern)
  check.ok(good, ("%s: wants '%s', got '%s'"):format(name, pattern, why))
  check.equal(#folders.list(folder .. "/huggingface"), before, name .. ": nothing was written")
end

check.case("weights that do not fit config.json", function()
  local folder = copy_of "seg_zero"
  local path = folder .. "/huggingface/config.json"
  local text = files.read(path)
  files.write(path, (text:gsub('"vocab_size": 67', '"vocab_size": 68')))
  merge_refused("another vocabulary", "lm_head%.weight: shape %[67, 16%], expected %[68, 16%]",
    folder)
  files.write(path, (text:gsub('"num_hidden_layers": 2', '"num_hidden_layers": 3')))
  merge_refused("another depth", "missing: model%.layers%.2", folder)
  os.remove(path)
  merge_refused("no config", "config%.json is missing: the trainer writes it", folder)
end)

check.case("a model that segzero does not know keeps its names", function()
  local folder = copy_of "seg_zero"
  local path = folder .. "/huggingface/config.json"
  local text = files.read(path)
  files.write(path, (text:gsub('"model_type": "qwen2_5_vl"', '"model_type": "other_vl"')))
  local result = merge.run { dir = folder }
  check.equal(#result.notes, 1, "a note")
  check.equal(check_weights(folder .. "/huggingface", "seg_zero"), 57, "all tensors")
end)

check.case("adapters without their settings", function()
  local folder = copy_of "lora"
  os.remove(folder .. "/lora_adapter/adapter_config.json")
  merge_refused("no config", "hold LoRA adapters, but there is no .*adapter_config%.json", folder)
  folder = copy_of "lora"
  local path = folder .. "/lora_adapter/adapter_config.json"
  files.write(path, (files.read(path):gsub('"r": 3', '"r": 4')))
  merge_refused("another rank", "the rank of the tensors is 3, adapter_config%.json says 4", folder)
end)

check.case("a tied head that differs from the embedding is kept", function()
  local folder = copy_of "one"
  local path = folder .. "/huggingface/config.json"
  -- Its own storage: the file of the untied model, called tied.
  assert(os.execute(("cp %sseg_zero/actor/*.pt %s && rm %s/model_world_size_1_rank_0.pt"):format(
    GOLDEN, folder, folder)))
  local result = merge.run { dir = folder }
  check.equal(#result.notes, 1, "a note")
  check.ok(files.read(path):find('"tie_word_embeddings": false', 1, true), "config.json says so")
  check.equal(check_weights(folder .. "/huggingface", "seg_zero"), 57, "the head is in it")
end)

check.finish()
