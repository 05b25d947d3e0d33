-- api.lua - what the hub is asked about a repository, and what its refusals mean to a user.
--
--   local repository = api.repository("model" | "dataset", { id =, revision = })
--   api.list(session, repository) -> { commit =, names = {path, ...} }
--   api.file(session, repository, commit, name) -> { name =, url =, etag =, size = | nil }
--   api.url(session, repository, commit, name)
--
-- Called inside a task of pool.lua. A refusal is an error of one line that says what to do. Two are
-- tables: { unreachable = text, has_begun = true once the list of files is known }, because a cache
-- may still help, and { absent = true, text = }. Names, commits and sums come from outside: those
-- that could leave the cache's folders are refused.
-- Leaves out: spaces, writing.

local cjson = require "cjson"
local names = require "segzero.hub.names"
local requests = require "segzero.hub.requests"
local visible = require "segzero.core.visible"

local M = {}

local MOST_FILES = 200000
local LIST_TRIES = 3            -- a cache may serve instead, so the user does not wait long
local KINDS = { model = { api = "models", path = "" }, dataset = { api = "datasets",
  path = "datasets/" } }

local mt = { __tostring = function(self) return self.shown end }

function M.repository(kind, named)
  local shown = named.id
  if named.revision ~= "main" then shown = shown .. "@" .. named.revision end
  return setmetatable({ kind = kind, id = named.id, revision = named.revision, shown = shown,
    api = KINDS[kind].api, path = KINDS[kind].path .. named.id }, mt)
end

-- Percent-encodes all but the letters that addresses are made of; "/" stays with keep_slash.
local function encoded(text, keep_slash)
  local pattern = "[^%w%-_.~]"
  if keep_slash then pattern = "[^%w%-_.~/]" end
  return (text:gsub(pattern, function(c) return ("%%%02X"):format(c:byte()) end))
end

function M.url(session, repository, commit, name)
  return ("%s/%s/resolve/%s/%s"):format(session.endpoint, repository.path, encoded(commit),
    encoded(name, true))
end

-- ---- refusals ----
local function page(session, repository) return session.endpoint .. "/" .. repository.path end

local function absent(session, repository)
  local cure = "set HF_TOKEN if it is a private one"
  if session.token then cure = "the token that was sent may not see it" end
  return { absent = true, text = ("%s has no %s %s, or it is private (%s)"):format(
    session.endpoint, repository.kind == "model" and "repository" or "data set", repository.id,
    cure) }
end

local function gated(session, repository)
  local cure = "then set HF_TOKEN to a token of yours"
  if session.token then cure = "with the account of the token that was sent" end
  return ("%s is gated: accept its conditions at %s, %s"):format(repository.id,
    page(session, repository), cure)
end

-- Raises what a reply refuses.
local function refuse(session, repository, reply, what)
  local code = reply.headers["x-error-code"]
  local status = reply.status
  if reply.is_local then
    error(("%s cannot be written: %s; what has come is kept. Free some space, or set HF_HOME to a "
      .. "folder on another disk"):format(what, reply.error), 0)
  end
  if reply.is_final then error(("%s: %s"):format(what, reply.error), 0) end
  if reply.error then
    error({ unreachable = ("%s: %s"):format(what, visible.line(reply.error)),
      has_begun = not what:find "^https?://" }, 0)
  end
  if code == "GatedRepo" then error(gated(session, repository), 0) end
  if code == "RevisionNotFound" then
    error(("%s has no branch, tag or commit '%s': see %s"):format(repository.id,
      repository.revision, page(session, repository)), 0)
  end
  if code == "EntryNotFound" then error(what .. ": the hub has no such file", 0) end
  if code == "RepoNotFound" or status == 401 or status == 404 then
    error(absent(session, repository), 0)
  end
  local message = reply.headers["x-error-message"]
  if status == 403 then
    local cure = "set HF_TOKEN to a token that may read it"
    error(("%s: the hub refuses it (403%s); %s"):format(what,
      message and ": " .. visible.line(message) or "", cure), 0)
  end
  error(("%s: the answer was HTTP status %d%s"):format(what, status,
    message and ": " .. visible.line(message) or ""), 0)
end

-- ---- the list of files ----
-- A name that stays inside the folder of a snapshot.
function M.is_safe(name)
  if type(name) ~= "string" or name == "" or #name > 1000 then return false end
  if name:find "[%c\\]" then return false end
  if name:sub(1, 1) == "/" or name:sub(-1) == "/" then return false end
  for part in (name .. "/"):gmatch "([^/]*)/" do
    if part == "" or part == "." or part == ".." then return false end
  end
  return true
end

function M.list(session, repository)
  local url = ("%s/api/%s/%s/revision/%s"):format(session.endpoint, repository.api, repository.id,
    encoded(repository.revision))
  local reply = session:ask("GET", url, { tries = LIST_TRIES })
  local ok = not reply.error and reply.status == 200
  if not ok then refuse(session, repository, reply, url) end
  local decoded, info = pcall(cjson.decode, reply.body)
  local is_list = decoded and type(info) == "table" and type(info.siblings) == "table"
    and names.is_commit(info.sha)
  if not is_list then
    error(("%s is not the answer of a hub: is HF_ENDPOINT or a proxy wrong?"):format(url), 0)
  end
  local paths = {}
  for _, entry in ipairs(info.siblings) do
    local name = type(entry) == "table" and entry.rfilename
    if not M.is_safe(name) then
      error(("%s: the hub lists the file %s, which is not a path inside the repository"):format(
        repository.id, visible.line(tostring(name))), 0)
    end
    paths[#paths + 1] = name
    if #paths > MOST_FILES then error(repository.id .. ": too many files", 0) end
  end
  table.sort(paths)
  return { commit = info.sha:lower(), names = paths }
end

-- ---- one file ----
-- An etag without its quotes and the mark of a weak one.
local function plain_etag(text)
  if not text then return nil end
  return (text:gsub("^W/", ""):gsub('^"(.*)"$', "%1"))
end

function M.file(session, repository, commit, name)
  local url = M.url(session, repository, commit, name)
  -- A redirect to the storage of large files is not followed: the hub has said all already.
  local function stop(reply)
    local is_elsewhere = requests.origin(reply.redirect) ~= requests.origin(reply.url)
    return is_elsewhere and reply.headers["x-linked-etag"] ~= nil
  end
  local reply = session:ask("HEAD", url, { stop = stop })
  local is_redirect = reply.status >= 300 and reply.status < 400
  local ok = not reply.error and (reply.status == 200 or is_redirect)
  if not ok then refuse(session, repository, reply, name) end
  local etag = plain_etag(reply.headers["x-linked-etag"] or reply.headers.etag)
  if not etag or not etag:find "^[%w_-][%w_.-]*$" or #etag > 128 then
    error(("%s: %s has no usable ETag: is HF_ENDPOINT or a proxy wrong?"):format(repository.id,
      name), 0)
  end
  local size = tonumber(reply.headers["x-linked-size"] or "")
  if not size and not is_redirect then size = tonumber(reply.headers["content-length"] or "") end
  if size and (size < 0 or size % 1 ~= 0 or size > 2 ^ 50) then size = nil end
  return { name = name, url = url, etag = etag, size = size }
end

-- Raises what the reply to a file's GET refuses.
function M.refuse_file(session, repository, reply, name)
  refuse(session, repository, reply, name)
end

return M
