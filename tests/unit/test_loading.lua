-- test_loading.lua - model folders: many shards under both namings, used where they lie; conversions and unaligned files; every kind
-- of damage named, all of it in one error.
--
-- With SEGZERO_LARGE=1 also a folder of examples/random_checkpoint.lua at real width (0.6 GB of disk, seconds).

local ffi = require "ffi"
local cjson = require "cjson"
local check = require "tests.support.check"
local mini = require "tests.support.miniature"
local sz = require "segzero"
local files = require "segzero.core.files"
local tensor = require "segzero.core.tensor"

local C, st = sz.core.C, sz.safetensors
local place = mini.folder()
local origin = mini.write(place .. "/origin")
local weights = st.load_folder(origin)
local input = mini.input(sz.qwen_vl(origin), 1)

local function last_logits(vl)
  return tensor.no_grad(function()
    local all = vl:forward(input)
    return all:narrow(all:shape()[1] - 1, 1):totable()[1]
  end)
end

local function new_name(name)
  local vision = name:gsub("^visual%.", "model.visual.")
  return vision ~= name and vision or (name:gsub("^model%.", "model.language_model."))
end

local function cast(t, dtype)
  local out = tensor.empty(t:shape(), { dtype = dtype })
  return out:copy_(t)
end

-- A folder of some 16 shards with these tensors (name -> tensor).
local count = 0
local function folder_of(tensors, shard_bytes)
  count = count + 1
  local dir = place .. "/" .. count
  files.make_dir(dir)
  for _, name in ipairs { "config.json", "generation_config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json" } do
    files.write(dir .. "/" .. name, files.read(origin .. "/" .. name))
  end
  local total = 0
  for _, t in pairs(tensors) do total = total + t:numel() * (t:dtype() == "bf16" and 2 or 4) end
  st.save_folder(dir, tensors, { max_shard_bytes = shard_bytes or math.ceil(total / 16) })
  return dir
end

local function index_of(dir) return cjson.decode(files.read(dir .. "/model.safetensors.index.json")).weight_map end
local function write_index(dir, map) files.write(dir .. "/model.safetensors.index.json", cjson.encode { metadata = {}, weight_map = map }) end

-- ---- both namings, in place ----
local half, half_new, renamed = {}, {}, {}
for name, t in pairs(weights) do
  half[name] = cast(t, "bf16")
  half_new[new_name(name)], renamed[new_name(name)] = half[name], t
end
local want = last_logits(sz.qwen_vl(origin))
local want_half
for i, tensors in ipairs { half, half_new } do
  local dir = folder_of(tensors)
  local shards, bytes = {}, 0
  for _, shard in pairs(index_of(dir)) do shards[shard] = true end
  local n = 0
  for shard in pairs(shards) do
    n, bytes = n + 1, bytes + #files.read(dir .. "/" .. shard)
  end
  check.ok(n >= 10, n .. " shards")
  collectgarbage()
  collectgarbage()
  local before = tonumber(C.sz_live_bytes())
  local vl = sz.qwen_vl(dir, { dtype = "bf16" })
  check.equal(tonumber(C.sz_live_bytes()) - before, bytes, "bf16 is used in place: the files are mapped, nothing else is held")
  local got = last_logits(vl)
  want_half = want_half or got
  check.equal(got, want_half, ({ "the hub's names", "the newer names" })[i])
  vl:free()
  collectgarbage()
  collectgarbage()
  check.equal(tonumber(C.sz_live_bytes()), before, "freed")
end
check.equal(last_logits(sz.qwen_vl(folder_of(renamed))), want, "newer names in f32")
check.equal(last_logits(sz.qwen_vl(folder_of(weights), { dtype = "bf16" })), want_half, "f32 files for a bf16 model: rounded once")
local widened = {}
for name, t in pairs(half) do widened[name] = cast(t, "f32") end
local want_wide = last_logits(sz.qwen_vl(folder_of(widened)))
check.equal(last_logits(sz.qwen_vl(folder_of(half), { dtype = "f32" })), want_wide, "bf16 files for an f32 model")

-- One file whose data begins at an odd address: everything is copied once, the values are the same.
do
  local dir = folder_of(half, 1e9)
  local path = dir .. "/model.safetensors"
  local text = files.read(path)
  local length = 0
  for i = 8, 1, -1 do length = length * 256 + text:byte(i) end
  local longer, bytes = length + 1, {}
  for i = 1, 8 do
    bytes[i] = string.char(longer % 256)
    longer = math.floor(longer / 256)
  end
  files.write(path, table.concat(bytes) .. text:sub(9, 8 + length) .. " " .. text:sub(9 + length))
  local vl = sz.qwen_vl(dir, { dtype = "bf16" })
  check.equal(last_logits(vl), want_half, "an unaligned file")
  for _, t in pairs(vl:parameters()) do check.equal(tonumber(ffi.cast("uintptr_t", tensor.data(t)) % 2), 0, "aligned in memory") end
end

-- F16: exact in f32, rounded once in bf16.
do
  local json = '{"x":{"dtype":"F16","shape":[4],"data_offsets":[0,8]}}'
  files.make_dir(place .. "/f16")
  files.write(place .. "/f16/model.safetensors", string.char(#json) .. ("\0"):rep(7) .. json .. "\0\60\0\192\1\60\255\123")
  local folder = st.open_folder(place .. "/f16")
  check.equal(folder:tensor("x"):totable(), { 1, -2, 1 + 2 ^ -10, 65504 }, "f16 as f32")
  check.equal(folder:tensor("x", "bf16"):totable(), { 1, -2, 1, 65536 }, "f16 as bf16")
  folder:close()
end

-- Training writes to mapped weights; the files stay as they are.
do
  local dir = folder_of(half)
  local shard = dir .. "/" .. index_of(dir)["model.norm.weight"]
  local before = files.read(shard)
  local vl = sz.qwen_vl(dir, { dtype = "bf16" })
  tensor.data(vl:parameters()["model.norm.weight"])[0] = 0x4000
  check.equal(vl:parameters()["model.norm.weight"]:totable()[1], 2, "a mapped weight can be written")
  check.ok(files.read(shard) == before, "its file is as before")
end

-- ---- damage ----
local function refused(dir, patterns, what)
  local ok, why = pcall(sz.qwen_vl, dir)
  check.equal(ok, false, what .. ": refused")
  for _, pattern in ipairs(patterns) do check.ok(tostring(why):find(pattern) ~= nil, ("%s: %s in: %s"):format(what, pattern, why)) end
  return tostring(why)
end
-- A copy of the folder, changed by f(dir, map): map, the index, is written back when f returns true.
local whole = folder_of(weights)
local function damaged(f)
  count = count + 1
  local dir = mini.copy(whole, place .. "/" .. count)
  local map = index_of(dir)
  if f(dir, map) then write_index(dir, map) end
  return dir
end
local A, B = "model.layers.0.mlp.up_proj.weight", "visual.blocks.1.attn.qkv.bias"
local shards_differ = index_of(whole)[A] ~= index_of(whole)[B]
check.ok(shards_differ, "the two tensors that are tampered with lie in two shards")
local function rewrite(dir, shard, change)
  local tensors = st.load(dir .. "/" .. shard)
  change(tensors)
  st.save(dir .. "/" .. shard, tensors)
end
local function cut(path, bytes)
  local text = files.read(path)
  files.write(path, text:sub(1, bytes < 0 and #text + bytes or bytes))
end

local why = refused(damaged(function(dir, map) os.remove(dir .. "/" .. map[A]) end), { "1 weights do not fit", "No such file" }, "a missing shard")
check.ok(not why:find "missing: ", "its tensors are not listed one by one")
refused(damaged(function(dir, map) cut(dir .. "/" .. map[A], -100) end), { "data_offsets %d+ to %d+, but the file has %d+ bytes of data" }, "a truncated shard")
refused(damaged(function(dir, map) cut(dir .. "/" .. map[A], 40) end), { "header length %d+, but the file has only 40 bytes" }, "a shard cut in its header")
refused(damaged(function(dir, map) cut(dir .. "/" .. map[A], 0) end), { "0 bytes are too few" }, "an empty shard")
refused(damaged(function(_, map)
  map[A] = map[B]
  return true
end), { "'" .. A:gsub("%.", "%%.") .. "' should be in model%-%d+%-of%-%d+%.safetensors, which lacks it %(it is in model%-" }, "an index that sends to the wrong shard")
refused(damaged(function(_, map)
  map[A] = nil
  return true
end), { "'" .. A:gsub("%.", "%%.") .. "' is not in the index" }, "a tensor that the index does not name")
refused(damaged(function(_, map)
  map["model.layers.9.mlp.up_proj.weight"] = map[A]
  return true
end), { "'model%.layers%.9%.mlp%.up_proj%.weight' should be in" }, "an index that names what is not there")
refused(damaged(function(dir, map)
  rewrite(dir, map[A], function(t) t[A] = nil end)
  map[A] = nil
  return true
end), { "missing: " .. A:gsub("%.", "%%.") }, "a missing tensor")
refused(damaged(function(dir, map)
  rewrite(dir, map[A], function(t) t.extra = sz.tensor { 1 } end)
  map.extra = map[A]
  return true
end), { "unexpected: extra" }, "an extra tensor")
refused(damaged(function(dir, map) rewrite(dir, map[A], function(t) t[A] = t[A]:reshape(t[A]:numel()) end) end),
  { A:gsub("%.", "%%.") .. ": shape %[2048%], expected %[64, 32%]" }, "a wrong shape")
refused(damaged(function(dir, map) rewrite(dir, map[A], function(t) t[A] = tensor.zeros(t[A]:shape(), { dtype = "i32" }) end) end),
  { A:gsub("%.", "%%.") .. ": dtype I32" }, "integers")
refused(damaged(function(dir, map)
  rewrite(dir, map[A], function(t) t[new_name(A)] = t[A] end)
  map[new_name(A)] = map[A]
  return true
end), { "twice, under two names" }, "both namings at once")
refused(damaged(function(dir) files.write(dir .. "/model.safetensors.index.json", "{") end), { "index%.json: the header is not valid JSON" }, "an index that is no JSON")
refused(damaged(function(_, map)
  map[A] = "../" .. map[A]
  return true
end), { "is said to be in '%.%./" }, "a shard outside the folder")
why = refused(damaged(function(dir, map)
  cut(dir .. "/" .. map["model.embed_tokens.weight"], -1)
  rewrite(dir, map[B], function(t)
    t[B] = sz.tensor { 1, 2 }
    t.extra = sz.tensor { 1 }
  end)
  map.extra, map["model.nowhere.weight"] = map[B], map[B]
  return true
end), { "bytes of data", "'model%.nowhere%.weight' should be in", "unexpected: extra", "visual%.blocks%.1%.attn%.qkv%.bias: shape %[2%], expected %[96%]" }, "everything at once")
check.ok(why:find "4 weights do not fit", "one error for all: " .. why)
-- What may be there on top: a tied model's head, rotary tables of old files.
do
  local more = {}
  for name, t in pairs(weights) do more[name] = t end
  more["lm_head.weight"], more["visual.rotary_pos_emb.inv_freq"] = weights["model.embed_tokens.weight"], sz.tensor { 1 }
  check.equal(last_logits(sz.qwen_vl(folder_of(more))), want, "a tied head and rotary tables are passed over")
end

-- ---- the example ----
local status = select(2, mini.run { "examples/random_checkpoint.lua", "size=5b", "out=" .. place .. "/none" })
check.equal(status, 2, "an unknown size")
check.equal(select(2, mini.run { "examples/random_checkpoint.lua", "size=3b" }), 2, "no folder")
check.equal(select(2, mini.run { "examples/random_checkpoint.lua", "size=3b", "out=" .. origin }), 2, "a folder that holds a model")
if os.getenv "SEGZERO_LARGE" then
  local dir = place .. "/large"
  for _, names in ipairs { "hub", "new" } do
    local text, code = mini.run { "examples/random_checkpoint.lua", "size=2b", "layers=1", "v_depth=1", "shard=100000000", "names=" .. names, "out=" .. dir .. names }
    check.equal(code, 0, text)
    local vl = sz.qwen_vl(dir .. names, { dtype = "bf16" })
    local w = vl:parameters()
    check.equal(w["visual.blocks.0.norm1.weight"]:narrow(0, 3):totable(), { 1, 1, 1 }, "norms are 1")
    local t = w["model.layers.0.mlp.up_proj.weight"]:narrow(0, 1000):cast(C.SZ_F32)
    local n = t:numel()
    local mean, square = t:sum():item() / n, (t * t):sum():item() / n
    -- Standard errors of 1.5 million draws: 1.6e-5 of the mean, 1.2e-5 of the deviation; five of them, and bf16's rounding.
    check.near(mean, 0, 1e-4, "mean")
    check.near(math.sqrt(square), 0.02, 1e-4, "standard deviation")
    vl:free()
  end
  check.equal(st.load(dir .. "hub/" .. index_of(dir .. "hub")["model.norm.weight"])["model.norm.weight"]:numel(), 1536, "the hub's names")
else
  check.skip "SEGZERO_LARGE=1 (a folder of 0.6 GB)"
end

mini.remove()
check.finish()
