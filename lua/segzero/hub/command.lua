-- command.lua - `segzero fetch`: downloads a model or a data set into the Hugging Face cache and
-- prints its folder.
--
--   segzero fetch Qwen/Qwen2.5-VL-3B-Instruct [--revision R]
--   segzero fetch --dataset Ricky06662/refCOCOg_2k_840 [--split train]
--   segzero fetch --help
--
-- The folder goes to standard output, everything else to standard error. Exit status: 0 done, 1 it
-- could not be downloaded, 2 wrong words. Leaves out: what hub/wanted.lua leaves out.

local host = require "segzero.host"
local names = require "segzero.hub.names"
local visible = require "segzero.core.visible"

local M = {}

local HELP = [[
usage: segzero fetch OWNER/NAME [--revision R]               a model, a LoRA adapter, a SAM2
       segzero fetch --dataset OWNER/NAME [--split S] [--revision R]
  --dataset       the name is that of a data set
  --split S       of a data set, the split to download (default: train, or the only one)
  --revision R    a branch, a tag or a commit (default: main); also OWNER/NAME@R
Downloads what segzero reads into the Hugging Face cache, which Python's tools share, and prints the
folder. Files that are complete are not downloaded again; a partial one is continued.
Environment: HF_HOME, HF_HUB_CACHE, HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE, https_proxy.
docs/guide/hub.md says more.
]]

local function wrong(message, ...)
  host.fail("fetch", message:format(...) .. "; segzero fetch --help shows how", 2)
end

local VALUED = { revision = true, split = true }
local FLAGS = { dataset = true, help = true }

-- --name VALUE or --name=VALUE; returns the number of words that were taken.
local function read_option(found, args, i)
  local key, value = args[i]:match "^%-%-([%w_-]+)=?(.*)$"
  local has_value = args[i]:find("=", 1, true) ~= nil
  if FLAGS[key] and not has_value then
    found[key] = true
    return 1
  end
  if not VALUED[key] then
    local near = require "segzero.core.nearest"
    local hint = near(key or args[i], { "revision", "split", "dataset", "help" })
    wrong("unknown option '%s'%s", visible.line(args[i]),
      hint and ": did you mean --" .. hint .. "?" or "")
  end
  if has_value and value ~= "" then
    found[key] = value
    return 1
  end
  if has_value or not args[i + 1] then wrong("--%s needs a value", key) end
  found[key] = args[i + 1]
  return 2
end

local function read(args)
  local found = {}
  local i = 1
  while i <= #args do
    if args[i] == "-h" then
      found.help = true
      i = i + 1
    elseif args[i]:sub(1, 2) == "--" then
      i = i + read_option(found, args, i)
    elseif found.name then
      wrong("'%s' is a second name: fetch takes one", visible.line(args[i]))
    else
      found.name = args[i]
      i = i + 1
    end
  end
  return found
end

-- The name may carry what the options say.
local function check(o)
  if not o.name then wrong "no name is given" end
  local named
  if o.dataset then named = names.data(o.name) else named = names.model(o.name) end
  if not named then
    wrong("'%s' is not a name on the hub: write OWNER/NAME", visible.line(o.name))
  end
  if o.split and not o.dataset then wrong "--split belongs to --dataset" end
  if o.revision and not names.is_revision(o.revision) then
    wrong("--revision '%s' cannot be a branch, a tag or a commit", visible.line(o.revision))
  end
  return { id = named.id, revision = o.revision or named.revision, split = o.split or named.split,
    kind = o.dataset and "dataset" or "model" }
end

function M.main(args)
  local o = read(args)
  if o.help then
    io.write(HELP)
    return
  end
  local wanted = check(o)
  local ok, path = host.call(require("segzero.hub").fetch, wanted)
  if not ok then host.fail("fetch", path, 1) end
  -- The folder alone, without the split.
  if wanted.kind == "dataset" then path = path:gsub("@[^@/]+/?[^@/]*$", "") end
  print(path)
end

return M
