-- names.lua - names of repositories on the Hugging Face hub.
--
--   names.is_id "Qwen/Qwen2.5-VL-3B-Instruct"        true: owner/name
--   names.model "owner/name@v1.0"     -> { id = "owner/name", revision = "v1.0" }, or nil
--   names.data "owner/name@train@v1"  -> { id =, split = "train", revision = "v1" }, or nil
--   names.is_commit(text)             40 to 64 hexadecimal digits
--   names.guess "pretrained_models/Qwen2.5-VL-7B-Instruct"  -> "Qwen/Qwen2.5-VL-7B-Instruct" | nil
--
-- The revision is a branch, a tag or a commit; without one it is "main". A data set's split may be
-- empty, owner/name@@v1, and have its folder in front, owner/name@folder/train.
-- Leaves out: whether there is such a repository.

local M = { MAIN = "main" }

-- A name that ends like a file is a file's.
local FILES = { json = true, jsonl = true, parquet = true, arrow = true, pt = true, pth = true,
  csv = true, tsv = true, txt = true, safetensors = true, bin = true, lua = true, yaml = true,
  yml = true, png = true, jpg = true, jpeg = true, zip = true, p = true }

local MOST = 96                 -- the hub's limit for the length of owner/name
local MOST_REVISION = 200

-- The hub's rules: letters, digits, "-", "_" and "."; none of the last two in front or at the end.
local function is_part(s)
  if not s:find "^[%w_][%w_.%-]*$" or s:find "[.%-]$" then return false end
  return not s:find("..", 1, true) and not s:find("--", 1, true)
end

function M.is_id(name)
  local owner, rest = name:match "^([^/]+)/([^/]+)$"
  return owner ~= nil and #name <= MOST and is_part(owner) and is_part(rest)
    and not rest:find "%.git$" and not FILES[(rest:match "%.(%w+)$" or ""):lower()]
end

-- It becomes a part of a path and of an address.
function M.is_revision(text)
  if #text > MOST_REVISION or not text:find "^[%w_][%w_./%-]*$" then return false end
  return not text:find("..", 1, true) and not text:find("//", 1, true) and not text:find "/$"
end

function M.is_commit(text)
  return type(text) == "string" and text:find "^%x+$" ~= nil and #text >= 40 and #text <= 64
end

function M.model(name)
  local id, revision = name:match "^([^@]*)@(.+)$"
  id = id or name
  if not M.is_id(id) or revision and not M.is_revision(revision) then return nil end
  return { id = id, revision = revision or M.MAIN }
end

function M.data(name)
  local id, rest = name:match "^([^@]*)@(.+)$"
  id = id or name
  if not M.is_id(id) then return nil end
  local split, revision = (rest or ""):match "^([^@]*)@?(.*)$"
  if revision ~= "" and not M.is_revision(revision) then return nil end
  if split:find "[^%w_./%-]" or split:find("..", 1, true) then return nil end
  local found = { id = id, revision = M.MAIN }
  if split ~= "" then found.split = split end
  if revision ~= "" then found.revision = revision end
  return found
end

-- ---- guesses ----
-- Who has the repositories that Seg-Zero's scripts name by a folder of their own.
local OWNERS = {
  { "^Qwen%d?", "Qwen" }, { "^Seg%-Zero", "Ricky06662" }, { "^VisionReasoner", "Ricky06662" },
  { "^TaskRouter", "Ricky06662" }, { "^sam2", "facebook" }, { "^refCOCOg", "Ricky06662" },
  { "^refcoco", "Ricky06662" }, { "^ReasonSeg", "Ricky06662" }, { "^grefcoco", "Ricky06662" },
}

function M.guess(name)
  local owner, rest = name:match "^([^/]+)/([^/]+)$"
  if not owner then rest = name:match "([^/]+)$" end
  for _, entry in ipairs(OWNERS) do
    if rest and rest:find(entry[1]) and owner ~= entry[2] then return entry[2] .. "/" .. rest end
  end
  return nil
end

return M
