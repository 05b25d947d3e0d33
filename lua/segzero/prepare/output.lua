-- output.lua - the folder of prepared rows: Parquet as the hub has it, or data.jsonl with images.
--
--   local out = output.open(cfg, state)     state: a text; the same state means the same rows
--   out.folder, out.found                   the folder, and how many parts were there already
--   out:has(k), out:kept()                  whether part k is done; how many are
--   out:begin(k)  out:row(row)  out:finish_part()
--   local n = out:cancel()                  drops the part that was begun, and without any part
--                                           the folder; how many parts are kept
--   local n = out:finish()                  rows in all; the set appears under its name now
--
-- cfg: the settings of recipes/prepare_data.lua; cfg.parts = how many parts there are. row: {id =,
-- problem =, solution =, png = text, width =, height = of the image before it was resized, index =
-- its number, for the image's name}.
--
-- Until the end the parts are in FOLDER/.partial, which no reader looks into:
--   parquet   train-00000-of-00003.parquet, ...; finish() renames .partial to `data`
--   jsonl     rows-00000.jsonl, ...; finish() writes data.jsonl. Images are in images/
-- FOLDER/.prepare.json holds the state: a later run with the same one goes on, another one is
-- refused. A run holds a lock on it, so two never write to one folder. A part is written under
-- another name and renamed, so it is whole or not there.
-- Leaves out: dividing the parts among several runs.

local files = require "segzero.core.files"
local folders = require "segzero.core.folders"
local parquet = require "segzero.formats.parquet"
local parquet_writer = require "segzero.formats.parquet_writer"

local M = {}

local methods = {}
local mt = { __index = methods }

local STATE = ".prepare.json"
local PARTIAL = ".partial"
local COLUMNS = { { "id", "string" }, { "problem", "string" }, { "solution", "string" },
  { "image", "image" }, { "img_height", "int64" }, { "img_width", "int64" } }

-- The card that tells `datasets` which files are which split.
local CARD = [[
---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train-*
---
]]

local function fail(message, ...) error(message:format(...), 0) end

-- ---- the folder ----
local function is_finished(folder)
  return files.exists(folder .. "/data") or files.exists(folder .. "/data.jsonl")
end

-- Whether the folder may be used: true, or nil and why not.
local function usable(folder, state)
  local names = folders.list(folder) or {}
  if #names == 0 or (#names == 1 and names[1] == PARTIAL) then return true end
  if is_finished(folder) then return nil, "it holds a finished set already" end
  local found = files.read(folder .. "/" .. STATE)
  if not found then return nil, "it holds other files" end
  if found ~= state and found ~= "" then
    return nil, "it holds a part of other rows: the settings, the data or segzero were others"
  end
  return true
end

-- Writes the state into its file, which is empty and locked. It must keep its place on the disk.
local function put_state(descriptor, path, state)
  local unistd = require "posix.unistd"
  local written, why = unistd.write(descriptor, state)
  if written == #state and unistd.fsync(descriptor) then return end
  unistd.close(descriptor)
  folders.remove_file(path)
  fail("output: cannot write %s: %s", path, why or "the disk is full")
end

-- Locks the state's file, which is made if there is none: its descriptor; or nil and why not.
local function lock(folder, state)
  local path = folder .. "/" .. STATE
  folders.create(path, "", "output")
  local descriptor, why = folders.lock(path)
  if descriptor == nil then fail("output: %s: %s", path, why) end
  if not descriptor then return nil, "another run is writing there" end

  -- Another run may have finished, or taken the folder for other rows, a moment ago.
  local good, reason = usable(folder, state)
  if good and files.exists(path) then
    if files.read(path) == "" then put_state(descriptor, path, state) end
    return descriptor
  end
  require("posix.unistd").close(descriptor)
  return nil, reason or "another run was writing there"
end

-- The folder and the descriptor of its lock.
local function choose(cfg, state)
  local folder = cfg.output
  local n = 1
  while true do
    local good, why = usable(folder, state)
    if good then
      files.make_dir(folder .. "/" .. PARTIAL)
      good, why = lock(folder, state)
    end
    if good then return folder, good end
    if cfg.named_output then fail("output=%s: %s; name another folder", folder, why) end
    n = n + 1
    folder = ("%s-%d"):format(cfg.output, n)
  end
end

function M.open(cfg, state)
  folders.check(cfg.output, "output")
  local folder, descriptor = choose(cfg, state)
  local self = setmetatable({ folder = folder, partial = folder .. "/" .. PARTIAL,
    format = cfg.format, parts = cfg.parts, found = 0, descriptor = descriptor }, mt)
  if self.format == "jsonl" then files.make_dir(folder .. "/images") end
  self.found = self:kept()
  return self
end

-- Lets another run take the folder.
local function unlock(self)
  if self.descriptor then require("posix.unistd").close(self.descriptor) end
  self.descriptor = nil
end

-- ---- parts ----
local function path_of(self, k)
  if self.format == "jsonl" then return ("%s/rows-%05d.jsonl"):format(self.partial, k - 1) end
  return ("%s/train-%05d-of-%05d.parquet"):format(self.partial, k - 1, self.parts)
end

function methods:has(k) return files.exists(path_of(self, k)) end

function methods:kept()
  local count = 0
  for k = 1, self.parts do
    if self:has(k) then count = count + 1 end
  end
  return count
end

function methods:begin(k)
  self.part = k
  if self.format == "jsonl" then
    self.lines = {}
  else
    self.writer = parquet_writer.create(path_of(self, k), COLUMNS)
  end
end

local function jsonl_row(self, row)
  local name = ("images/%07d.png"):format(row.index)
  files.write(self.folder .. "/" .. name, row.png)
  self.lines[#self.lines + 1] = files.json {
    id = row.id, problem = row.problem, solution = row.solution, image = name,
    img_height = row.height, img_width = row.width,
  } .. "\n"
end

function methods:row(row)
  if self.format == "jsonl" then return jsonl_row(self, row) end
  self.writer:row {
    id = row.id, problem = row.problem, solution = row.solution, image = { bytes = row.png },
    img_height = row.height, img_width = row.width,
  }
end

function methods:finish_part()
  if self.writer then
    self.writer:finish()
  else
    files.write(path_of(self, self.part), table.concat(self.lines))
  end
  self.writer = nil
  self.lines = nil
end

-- Removes the folder of a run that wrote nothing.
local function leave(self)
  -- Images that were written are written again by the next run, which the state lets in.
  local images = self.folder .. "/images"
  if self.format == "jsonl" and not folders.remove_empty(images) then return end
  folders.remove_empty(self.partial)
  folders.remove_file(self.folder .. "/" .. STATE)
  folders.remove_empty(self.folder)
end

function methods:cancel()
  if self.writer then self.writer:cancel() end
  self.writer = nil
  self.lines = nil
  local kept = self:kept()
  if kept == 0 then leave(self) end
  unlock(self)
  return kept
end

-- ---- the end ----
local function finish_jsonl(self)
  local list = {}
  local count = 0
  for k = 1, self.parts do
    list[k] = files.read(path_of(self, k))
    local _, lines = list[k]:gsub("\n", "")
    count = count + lines
  end
  if count > 0 then files.write(self.folder .. "/data.jsonl", table.concat(list)) end
  return count
end

local function remove_parts(self)
  for k = 1, self.parts do folders.remove_file(path_of(self, k)) end
  folders.remove_empty(self.partial)
end

local function count_rows(self)
  local count = 0
  for k = 1, self.parts do
    local file = parquet.open(path_of(self, k))
    count = count + file.count
    file:close()
  end
  return count
end

local function finish_parquet(self)
  local count = count_rows(self)
  if count == 0 then return 0 end
  files.write(self.folder .. "/README.md", CARD)
  local ok, why = os.rename(self.partial, self.folder .. "/data")
  if not ok then fail("cannot rename %s: %s", self.partial, why) end
  folders.sync(self.folder)
  return count
end

function methods:finish()
  local finish = self.format == "jsonl" and finish_jsonl or finish_parquet
  local count = finish(self)
  if count == 0 or self.format == "jsonl" then remove_parts(self) end
  folders.remove_file(self.folder .. "/" .. STATE)
  unlock(self)
  return count
end

return M
