-- requests.lua - one question to the hub: redirects, the token, waiting and trying again. Called
-- inside a task of pool.lua.
--
--   local session = requests.new()        the environment's endpoint, token and timeouts
--   local reply = session:ask("GET", session.endpoint .. "/api/...", { stop = f, file = file })
--
-- reply: of pool.lua; its error is nil, and its status is final: not 408, 429 or 5xx. When
-- tries run out, reply.error says so in words. options.stop(reply): a redirect that is not
-- followed. options.file: as in pool.lua; a try that brings new bytes gives back all tries, and the
-- next one continues behind them. options.tries: default 8.
--
-- The token goes to the endpoint's own host only: never to the hosts of other redirects, and never
-- from https to http. Leaves out: what the hub's refusals mean (api.lua).

local ffi = require "ffi"
local core = require "segzero.core.ffi"
local environment = require "segzero.hub.environment"
local pool = require "segzero.hub.pool"
local visible = require "segzero.core.visible"

local M = {}

local MOST_REDIRECTS = 10
local TRIES = 8
local TRIES_UNHEARD = 2         -- while the hub has never answered
local FIRST_WAIT = 0.5          -- seconds, doubled for each further try
local LONGEST_WAIT = 16
local LONGEST_ASKED = 600       -- of a Retry-After

local methods = {}
local mt = { __index = methods }

-- scheme://host:port
function M.origin(url) return (url:match "^(%a+://[^/?#]*)" or ""):lower() end

function M.new()
  return setmetatable({
    endpoint = environment.endpoint(), token = environment.token(),
    connect = environment.etag_timeout(), idle = environment.download_timeout(),
  }, mt)
end

local function headers_for(self, url, file)
  local list = { "Accept-Encoding: identity",
    "User-Agent: segzero/" .. ffi.string(core.C.sz_version()) }
  if not file then list[#list + 1] = "Accept: */*" end
  if self.token and M.origin(url) == M.origin(self.endpoint) then
    list[#list + 1] = "Authorization: Bearer " .. self.token
  end
  return list
end

-- One try, with its redirects.
local function try(self, method, url, options)
  for _ = 1, MOST_REDIRECTS do
    local file = options.file
    local reply = pool.request { method = method, url = url, connect = self.connect,
      idle = self.idle, headers = headers_for(self, url, file), file = file }
    reply.url = url
    local is_redirect = reply.status >= 300 and reply.status < 400 and reply.redirect
    if reply.error or not is_redirect or options.stop and options.stop(reply) then return reply end
    local is_safe = reply.redirect:find "^https://"
      or url:find "^http://" and reply.redirect:find "^http://"
    if not is_safe then
      reply.error = ("the redirect to %s is refused, because it is less safe"):format(
        visible.line(reply.redirect))
      reply.is_final = true
      return reply
    end
    url = reply.redirect
  end
  return { status = 0, headers = {}, is_final = true, error = "too many redirects", url = url }
end

local PASSING = { [408] = true, [429] = true, [500] = true, [502] = true, [503] = true,
  [504] = true }

-- Why a try failed, if another one may succeed; nil if the reply is final.
local function passing(reply)
  if reply.is_local or reply.is_final then return nil end
  if reply.error then return reply.error end
  if PASSING[reply.status] then return "HTTP status " .. reply.status end
  return nil
end

-- Seconds that the server asks to wait, or nil.
local function asked_wait(reply)
  local after = tonumber(reply.headers["retry-after"] or "")
    or tonumber((reply.headers.ratelimit or ""):match "t=(%d+)" or "")
  if not after or reply.status ~= 429 and reply.status ~= 503 then return nil end
  return math.max(0, math.min(after, LONGEST_ASKED))
end

local NOTED_WAIT = 5            -- seconds; a shorter wait is not worth a line

local function wait(self, reply, failures)
  local seconds = math.min(FIRST_WAIT * 2 ^ (failures - 1), LONGEST_WAIT)
  local asked = asked_wait(reply)
  if asked then seconds = math.max(asked, FIRST_WAIT) end
  if asked and seconds >= NOTED_WAIT and self.say then
    self.say(("%s asks to wait %d seconds"):format(M.origin(reply.url), seconds))
  end
  pool.sleep(seconds)
end

function methods:ask(method, url, options)
  options = options or {}
  local file = options.file
  local failures = 0
  while true do
    local before = file and file.offset or 0
    local reply = try(self, method, url, options)
    if reply.status > 0 then self.is_heard = true end
    local why = passing(reply)
    if not why then return reply end

    -- New bytes count as progress, and the next try continues behind them.
    if file then
      if reply.position and reply.position > 0 then file.offset = reply.position end
      if file.offset > before then failures = 0 end
    end
    failures = failures + 1
    local tries = options.tries or TRIES
    if not self.is_heard then tries = math.min(tries, TRIES_UNHEARD) end
    if failures >= tries then
      reply.error = ("%s, after %d tries"):format(why, failures)
      return reply
    end
    wait(self, reply, failures)
  end
end

return M
