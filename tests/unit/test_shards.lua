-- test_shards.lua - the weights of a model that is split over shards: local shapes, slices, copies,
-- and the numbers of shards that are refused.
--
-- One process, no forward pass. Left out: what the shards compute.

local ffi = require "ffi"
local check = require "tests.support.check"
local core = require "segzero.core.ffi"
local qwen_config = require "segzero.models.qwen_vl.config"
local packing = require "segzero.inference.packing"
local ranks = require "segzero.core.ranks"
local tensor = require "segzero.core.tensor"

local C = core.C

local function message() return ffi.string(C.sz_last_error()) end

-- 4 heads of 8, 2 key-value heads, vocabulary 48.
local function json(changes)
  local t = {
    model_type = "qwen2_5_vl", hidden_size = 32, intermediate_size = 64, num_hidden_layers = 2,
    num_attention_heads = 4, num_key_value_heads = 2, vocab_size = 48, rms_norm_eps = 1e-6,
    rope_theta = 1000, rope_scaling = { type = "mrope", mrope_section = { 1, 1, 2 } },
    tie_word_embeddings = false,
    vision_config = { depth = 1, hidden_size = 16, intermediate_size = 24, num_heads = 2,
      patch_size = 14, window_size = 112, out_hidden_size = 32, fullatt_block_indexes = { 0 } },
  }
  for k, v in pairs(changes or {}) do t[k] = v end
  return t
end

local function model(shards, shard, changes)
  local config = qwen_config.parse(json(changes))
  config.shards, config.shard = shards, shard
  local c = C.sz_qwen_new(config)
  if c == nil then return nil, message() end
  return ffi.gc(c, C.sz_model_free)
end

local shape, first, copy = ffi.new "int64_t[6]", ffi.new "int64_t[1]", ffi.new "int[1]"

local function dims(count)
  local list = {}
  for k = 1, count do list[k] = tonumber(shape[k - 1]) end
  return list
end

local function weights(c)
  local list = {}
  for i = 0, C.sz_model_weight_count(c) - 1 do
    local w = { index = i, shape = dims(C.sz_model_weight_shape(c, i, shape)) }
    w.full = dims(C.sz_model_weight_full_shape(c, i, shape))
    w.dim = C.sz_model_weight_slice(c, i, first)
    w.first = tonumber(first[0])
    w.copies = C.sz_model_weight_copies(c, i, copy)
    w.copy = copy[0]
    w.part = C.sz_model_weight_gradient_is_part(c, i)
    list[ffi.string(C.sz_model_weight_name(c, i))] = w
  end
  return list
end

-- How each kind of weight is divided: dimension, and the slices that 1, 2 and 4 shards make.
local KINDS = {
  { "^visual%.", -1 }, { "norm%.weight$", -1 }, { "q_proj%.", 0 }, { "[kv]_proj%.", 0, 2 },
  { "o_proj%.weight$", 1 }, { "gate_proj%.weight$", 0 }, { "up_proj%.weight$", 0 },
  { "down_proj%.weight$", 1 }, { "embed_tokens%.weight$", 0 }, { "lm_head%.weight$", 0 },
}

local function kind_of(name)
  for _, kind in ipairs(KINDS) do if name:find(kind[1]) then return kind end end
  error("no kind for " .. name)
end

for _, shards in ipairs { 0, 1, 2, 4 } do
  check.case(("%d shards: the slices make up each weight"):format(shards), function()
    local count = math.max(shards, 1)
    local whole = weights((model(0, 0)))
    local compared = 0
    for shard = 0, count - 1 do
      for name, w in pairs(weights((model(shards, shard)))) do
        local kind = kind_of(name)
        local slices = math.min(count, kind[3] or count)
        if kind[2] < 0 or count == 1 then slices = 1 end
        local copies = count / slices
        local want = whole[name].shape
        check.equal(w.full, want, name .. ": the file's shape")
        check.equal({ w.copies, w.copy }, { copies, shard % copies }, name .. ": copies")
        local part = copies > 1 and (kind[2] >= 0 or name:find "^visual" ~= nil)
        check.equal(w.part, part and 1 or 0, name .. ": whether the gradient is a part")
        if slices == 1 then
          check.equal(w.dim, -1, name .. ": is whole")
        else
          check.equal(w.dim, kind[2], name .. ": the dimension")
          want = { unpack(want) }
          want[w.dim + 1] = want[w.dim + 1] / slices
          check.equal(w.first, want[w.dim + 1] * math.floor(shard / copies), name .. ": first")
        end
        check.equal(w.shape, want, name .. ": the local shape")
        compared = compared + 1
      end
    end
    check.equal(compared, count * 45, "weights")
  end)
end

check.case("what cannot be split is refused with the numbers that would do", function()
  local function refused(shards, changes, want)
    local c, why = model(shards, 0, changes)
    check.ok(c == nil, "refused")
    check.equal(why, want, "the message")
  end
  refused(3, {}, "config: num_attention_heads 4 cannot be split over 3 shards (1, 2 or 4 would do)")
  refused(8, {}, "config: num_attention_heads 4 cannot be split over 8 shards (1, 2 or 4 would do)")
  refused(4, { intermediate_size = 66 },
    "config: intermediate_size 66 cannot be split over 4 shards (1 or 2 would do)")
  refused(2, { vocab_size = 49 },
    "config: vocab_size 49 cannot be split over 2 shards (only 1 would do)")
  local seven = { hidden_size = 112, num_attention_heads = 28, num_key_value_heads = 4,
    rope_scaling = { type = "mrope", mrope_section = { 0, 1, 1 } }, intermediate_size = 28 * 32,
    vocab_size = 28 * 48, vision_config = { depth = 1, hidden_size = 16, num_heads = 2,
      out_hidden_size = 112 } }
  refused(7, seven,
    "config: num_key_value_heads 4 cannot be split over 7 shards (1, 2, 4 or 28 would do)")
  local c, why = model(2, 2)
  check.ok(c == nil, "a shard outside")
  check.equal(why, "config: there is no shard 2 of 2", "the message")
end)

check.case("a group must have the size of the split", function()
  local world = ranks.world().pointer
  check.equal(C.sz_comm_handle(nil), 0, "no group")
  local handle = C.sz_comm_handle(world)
  check.ok(handle >= 1, "a handle")
  check.equal(C.sz_comm_handle(world), handle, "the same handle")
  local whole = model(0, 0)
  check.equal(C.sz_model_group_set(whole, world), 0, "one rank for a whole model")
  local split = model(2, 0)
  check.equal(C.sz_model_group_set(split, world), -1, "one rank for two shards")
  check.equal(message(), "a group of 1 ranks for a model of 2 shards", "the message")
end)

-- ---- a dry run, as the plan of a run on many ranks makes it: one process, no group ----
local function meta_weights(c, m)
  for i = 0, C.sz_model_weight_count(c) - 1 do
    local t = tensor.meta(dims(C.sz_model_weight_shape(c, i, shape)), "f32")
    m[i + 1] = t
    check.equal(C.sz_model_weight_set(c, i, t.ptr), 0, "a weight")
  end
end

check.case("a dry run of a shard needs no group and has the whole model's results", function()
  local ids = packing.list { 1, 2, 3, 3, 3, 3, 5 }
  local positions = tensor.zeros({ 3, 7 }, { dtype = "i32" })
  local segments = tensor.new({ { 0, 7, 0, 7, 0, 0 } }, { dtype = "i32" })
  local grids = tensor.new({ { 1, 2, 2 }, { 1, 2, 2 }, { 1, 4, 2 } }, { dtype = "i32" })
  for shard = 0, 3 do
    local kept = {}
    local c = model(4, shard)
    meta_weights(c, kept)
    C.sz_dry_run(1)
    local pixels = tensor.empty { 16, 1176 }
    local features = tensor.wrap(core.check(C.sz_model_vision(c, pixels.ptr, grids.ptr, 0)))
    check.equal(features:shape(), { 4, 32 }, "features")
    local rows = packing.list { 2, 3, 4, 5 }
    local hidden = tensor.wrap(C.sz_model_hidden(c, ids.ptr, positions.ptr, segments.ptr, rows.ptr,
      features.ptr, nil, nil, nil, nil, 0))
    check.equal(hidden:shape(), { 7, 32 }, "hidden")
    check.equal(tensor.wrap(C.sz_model_logits(c, hidden.ptr)):shape(), { 7, 48 }, "logits")
    local pair = ffi.new "sz_tensor *[2]"
    check.equal(C.sz_model_logprob(c, hidden.ptr, ids.ptr, 1, pair, pair + 1), 0, "logprob")
    check.equal(tensor.wrap(pair[0]):shape(), { 7 }, "log-probabilities")
    tensor.wrap(pair[1]):free()
    C.sz_dry_run(0)
    check.ok(C.sz_model_vision(c, pixels.ptr, grids.ptr, 0) == nil, "outside a dry run")
    check.ok(message():find "one of 4 shards, and has no group", message())
  end
end)

-- 8 of 16 patches are one image, and any shard stands for the one that gets it.
check.case("a dry run counts the tower of the shard with the most images", function()
  local grids = tensor.new({ { 1, 2, 2 }, { 1, 2, 2 }, { 1, 4, 2 } }, { dtype = "i32" })
  local used = {}
  for shard = 0, 3 do
    local kept = {}
    local c = model(4, shard)
    meta_weights(c, kept)
    core.check(C.sz_arena_release())
    C.sz_dry_run(1)
    tensor.step(function()
      local pixels = tensor.empty { 16, 1176 }
      core.check(C.sz_model_vision(c, pixels.ptr, grids.ptr, 0))
    end)
    C.sz_dry_run(0)
    used[shard] = tonumber(C.sz_arena_used(1))
    check.ok(used[shard] > (16 + 8) * 1176 * 4, "patches: all, and those of the tower")
    check.equal(used[shard], used[0], "the memory of shard " .. shard)
  end
end)

check.finish()
