-- cache_size.lua - how many rows of key-value cache a call of generate needs.
--
--   cache_size.row_bytes(vl)                   bytes of one token's keys and values in all layers
--   cache_size.rows(vl, lengths, n, max_new_tokens, bytes)
--       rows that prompts of these lengths with n answers each can use, within the limit
--   cache_size.limit(vl, opts)                 the limit in bytes: cache_gib on the CPU; on a GPU
--                                              gpu_memory_utilization of the memory that was free

local tensor = require "segzero.core.tensor"
local scheduler = require "segzero.inference.scheduler"

local M = {}

local GIB = 2 ^ 30

function M.row_bytes(vl)
  local d = vl.dims
  local heads = d.kv_heads
  if vl.shards then heads = math.max(1, heads / vl.shards.count) end
  return 2 * d.layers * heads * d.head_dim * tensor.WIDTH[vl.dtype]
end

-- The small addition lets a limit that was computed from a number of rows give that number again.
function M.rows(vl, lengths, n, max_new_tokens, bytes)
  return scheduler.rows(lengths, n, max_new_tokens, bytes / M.row_bytes(vl) + 1e-3)
end

function M.limit(vl, opts)
  if vl.device == "cpu" then return opts.cache_gib * GIB end
  return opts.gpu_memory_utilization * vl:free_device_bytes()
end

return M
