-- hub: what a name of a model or a data set means: a path, or a repository on the Hugging Face hub.
--
--   hub.model("Qwen/Qwen2.5-VL-3B-Instruct", "model_path")      the folder with its files
--   hub.model("facebook/sam2-hiera-large@main")                 the same; a .pt file if it is one
--   hub.model(name, label, { weights = false })                 the small files alone
--   hub.complete(path)                     fetches the weights of such a folder if they are missing
--   hub.data("Ricky06662/refCOCOg_2k_840@train", { label =, purpose = "train" | "heldout" })
--                                          a folder with the files of this split, and @train
--   hub.fetch{ id =, kind = "model" | "dataset", revision =, split = } -> folder
--                                          asks the hub for the newest commit
--
-- A path that exists wins, and a name that cannot be a repository's is returned unchanged: the
-- reader that opens it says what is wrong. Otherwise the Hugging Face cache is asked. If it lacks
-- any of the files that segzero reads, they are downloaded there. label: the setting's name, which
-- begins the messages. Errors are one line without a position. Leaves out: writing to the hub.

local api = require "segzero.hub.api"
local cache = require "segzero.hub.cache"
local core = require "segzero.core.ffi"
local environment = require "segzero.hub.environment"
local files = require "segzero.core.files"
local hints = require "segzero.core.path_hints"
local names = require "segzero.hub.names"
local visible = require "segzero.core.visible"
local wanted = require "segzero.hub.wanted"

local M = {}

-- ---- what is taken of a repository ----
-- select(names) -> { files =, path = | nil, split = | nil }, of all names of the repository.
-- guess(names): the same of the names in a cache that has no list; nil if files may be missing.
-- usable(names): the same, or nil if a file that is always needed is missing.
-- has_readme: select and guess take the text of the README as well, nil if there is none.
local MODEL = {
  select = wanted.model,
  guess = function(present)
    if wanted.is_whole(present) then return wanted.model(present) end
    return nil
  end,
  usable = function(present)
    if wanted.has_weights(present) then return wanted.model(present) end
    return nil
  end,
}

-- The same without weights, where they are files of their own.
local DESCRIPTION = {
  select = function(list)
    local found = wanted.model(list)
    if found.weights ~= "safetensors" then return found end
    return { files = found.texts }
  end,
  guess = MODEL.guess,
  usable = function(present)
    for _, name in ipairs(present) do
      if name == "config.json" then return {} end
    end
    return MODEL.usable(present)
  end,
}

local function data_kind(options)
  local function select(list, readme) return wanted.data(list, options, readme) end
  local function guess(present, readme)
    local ok, found = pcall(select, present, readme)
    if ok and #found.files > 0 and wanted.are_tables_whole(found.files) then return found end
    return nil
  end
  return { select = select, guess = guess, usable = guess, has_readme = true }
end

-- ---- the cache ----
local function path_of(cached, commit, found)
  local path = cached:snapshot(commit)
  if found.path then return path .. "/" .. found.path end
  if found.folder then path = path .. "/" .. found.folder end
  if found.split then return path .. "@" .. found.split end
  return path
end

local function has_all(cached, commit, list)
  for _, name in ipairs(list) do
    if not cached:has(commit, name) then return false end
  end
  return #list > 0
end

-- The text of a data set's README that the cache has, or nil.
local function readme_of(cached, commit, kind)
  if not kind.has_readme then return nil end
  return (files.read(cached:snapshot(commit) .. "/README.md"))
end

-- The path, if the cache has all files.
local function from_cache(cached, commit, kind)
  local listing = cached:listing(commit)
  local readme = readme_of(cached, commit, kind)
  if listing then
    local found = kind.select(listing, readme)
    return has_all(cached, commit, found.files) and path_of(cached, commit, found) or nil
  end
  if cached:is_unfinished() then return nil end
  local found = kind.guess(cached:present(commit), readme)
  return found and path_of(cached, commit, found)
end

-- ---- the hub ----
local function download(repository, cached, kind)
  local pool = require "segzero.hub.pool"
  local session = require("segzero.hub.requests").new()
  session.say = require("segzero.hub.progress").say
  local listing
  pool.run { function() listing = api.list(session, repository) end }
  local function get(list)
    require("segzero.hub.download").get(session, repository, cached, listing, list)
  end
  -- It may say which files are wanted.
  if kind.has_readme and wanted.has_card(listing.names) then get { "README.md" } end
  local found = kind.select(listing.names, readme_of(cached, listing.commit, kind))
  local lack
  if #found.files == 0 then lack = "no files that segzero reads" end
  if kind == MODEL and not found.weights then lack = wanted.lack_of_weights(listing.names) end
  if lack then error(("%s has %s"):format(repository.shown, lack), 0) end
  get(found.files)
  cached:note_listing(listing.commit, listing.names)
  cached:note_commit(listing.commit)
  return path_of(cached, listing.commit, found)
end

-- ---- failures ----
local function front(label, name)
  if not label then return name .. ": " end
  return ("%s: %s: "):format(label, name)
end

local function what(kind)
  return kind == "model" and "file or folder" or "file, folder or built-in data set"
end

-- What the user may have meant: something here, or a repository of another owner; or nil.
local function meant(name)
  local plain = name:gsub("@.*$", "")
  local similar = hints.similar(plain)
  if similar and similar:find("/", 1, true) then return similar end
  return names.guess(plain)
end

-- "SETTING: NAME: there is no such file or folder here (did you mean OTHER?)"
local function absent_here(label, name, kind)
  local guess = meant(name)
  local question = ""
  if guess then question = (" (did you mean %s?)"):format(guess) end
  return ("%sthere is no such %s here%s"):format(front(label, name), what(kind), question)
end

-- Whether the hub has a repository of the other kind under the name.
local function is_other_kind(repository)
  local other = "model"
  if repository.kind == "model" then other = "dataset" end
  local session = require("segzero.hub.requests").new()
  local asked = api.repository(other, repository)
  local ok, why = pcall(require("segzero.hub.pool").run,
    { function() api.list(session, asked) end })
  if not ok and core.is_interrupt(why) then error(why, 0) end
  return ok
end

-- There is no such repository.
local function absent_text(label, name, repository, why)
  local kind = repository.kind
  if is_other_kind(repository) then
    local text = "%s%s is a data set on the hub, and a model is needed here"
    if kind == "dataset" then text = "%s%s is a model on the hub, and a data set is needed here" end
    return text:format(label and label .. ": " or "", name)
  end
  local cure = "name a folder, or a repository as owner/name"
  if kind == "dataset" then cure = "name a folder or file, or a repository as owner/name" end
  return ("%s, and %s; %s"):format(absent_here(label, name, kind), why, cure)
end

local function offline_text(label, name, kind, cached, variable)
  local text = "%s, the cache %s does not have all of its files, and %s is set, so nothing is "
    .. "downloaded: unset it, or name a folder"
  return text:format(absent_here(label, name, kind), cached.root, variable)
end

-- Nothing could be asked, or a download broke off.
local function unreachable_text(label, name, kind, cached, failure)
  local why = failure.unreachable
  if failure.has_begun then
    return ("%sthe download broke off at %s; what has come is kept, so start again to continue it")
      :format(front(label, name), why)
  end
  local text = "%s, the cache %s does not have all of its files, and they could not be downloaded: "
    .. "%s. %s"
  local cure = "Check the network, https_proxy and HF_ENDPOINT, or name a folder"
  if why:find("certificate", 1, true) then
    cure = "Install ca-certificates, or name your proxy's file of certificates with SSL_CERT_FILE"
  end
  return text:format(absent_here(label, name, kind), cached.root, why, cure)
end

-- ---- both ----
-- ", and 3 of its 12 files are missing"; "" if none is, or if nobody noted what there is.
local function lack_text(cached, commit, kind)
  local listing = cached:listing(commit)
  local list = listing and kind.select(listing).files or {}
  local absent = 0
  for _, name in ipairs(list) do
    if not cached:has(commit, name) then absent = absent + 1 end
  end
  if absent == 0 then return "" end
  return (", and %d of its %d files are missing"):format(absent, #list)
end

-- The path of files that may not be all or not the newest, with a note; nil if they are no use.
local function fallback(cached, commit, kind, repository, why)
  local found = commit and kind.usable(cached:present(commit))
  if not found then return nil end
  require("segzero.core.notes").say(("%s: the cached files are used, because %s%s"):format(
    repository.shown, why, lack_text(cached, commit, kind)))
  return path_of(cached, commit, found)
end

-- refresh: ask the hub also when the cache has everything.
local function obtain(name, repository, kind, label, refresh)
  local cached = cache.open(repository)
  local commit = cached:commit()
  local offline = environment.offline()
  if commit and (offline or not refresh) then
    local path = from_cache(cached, commit, kind)
    if path then return path end
  end
  if offline then
    local path = fallback(cached, commit, kind, repository, offline .. " is set")
    if path then return path end
    error(offline_text(label, name, repository.kind, cached, offline), 0)
  end

  -- Ask the hub.
  local ok, path = pcall(download, repository, cached, kind)
  if ok then return path end
  local why = path
  if core.is_interrupt(why) then error(why, 0) end
  if type(why) ~= "table" then
    error((label and label .. ": " or "") .. core.plain(why), 0)
  end
  if why.absent then error(absent_text(label, name, repository, why.text), 0) end
  path = fallback(cached, commit, kind, repository, "the hub did not answer: " .. why.unreachable)
  if path then return path end
  error(unreachable_text(label, name, repository.kind, cached, why), 0)
end

function M.model(name, label, options)
  if type(name) ~= "string" or name == "" or files.exists(name) then return name end
  local named = names.model((name:gsub("/$", "")))
  if not named then return name end
  local kind = MODEL
  if options and options.weights == false then kind = DESCRIPTION end
  return obtain(visible.line(name), api.repository("model", named), kind, label)
end

function M.complete(path)
  local root, folder, commit = path:match "^(.*)/models%-%-([^/]+)/snapshots/(%x+)/*$"
  if not root or root ~= environment.cache() then return end
  local id = folder:gsub("%-%-", "/")
  local repository = api.repository("model", { id = id, revision = commit })
  repository.shown = id
  local cached = cache.open(repository)
  local present = cached:present(commit)
  if wanted.has_weights(present) or wanted.has_other_weights(present) then return end
  obtain(id, repository, MODEL, nil)
end

function M.data(name, options)
  options = options or {}
  if type(name) ~= "string" or name == "" or files.exists(name) then return name end
  local path = name:match "^([^@]*)@"
  if path and files.exists(path) then return name end
  local named = names.data((name:gsub("/$", "")))
  if not named then return name end
  local repository = api.repository("dataset", named)
  local kind = data_kind { split = named.split, purpose = options.purpose,
    shown = repository.shown }
  return obtain(visible.line(name), repository, kind, options.label)
end

function M.fetch(options)
  local named = { id = options.id, revision = options.revision or names.MAIN }
  local repository = api.repository(options.kind or "model", named)
  local kind = MODEL
  if repository.kind == "dataset" then
    kind = data_kind { split = options.split, purpose = "train", shown = repository.shown }
  end
  return obtain(options.id, repository, kind, nil, true)
end

return M
