-- environment.lua - the variables that Hugging Face's tools read, with their meaning.
--
--   environment.endpoint()    "https://huggingface.co", or HF_ENDPOINT without a slash at its end
--   environment.cache()       HF_HUB_CACHE, HUGGINGFACE_HUB_CACHE, HF_HOME/hub,
--                             XDG_CACHE_HOME/huggingface/hub, ~/.cache/huggingface/hub
--   environment.token()       HF_TOKEN, HUGGING_FACE_HUB_TOKEN, or the token file's text; nil
--   environment.offline()     the name of the variable that says so, HF_HUB_OFFLINE or
--                             TRANSFORMERS_OFFLINE; nil
--   environment.without_network(f, ...)     f's results; offline while it runs
--   environment.etag_timeout(), environment.download_timeout()      seconds
--   environment.is_quiet()    HF_HUB_DISABLE_PROGRESS_BARS
--
-- Read at each call. libcurl itself reads https_proxy, http_proxy, all_proxy and no_proxy.
-- Leaves out: logging in, tokens for single repositories.

local files = require "segzero.core.files"

local M = {}

local DEFAULT_ENDPOINT = "https://huggingface.co"
local DEFAULT_SECONDS = 10
local TRUE = { ["1"] = true, ON = true, YES = true, TRUE = true }

-- An empty variable is none.
local function get(name)
  local value = os.getenv(name)
  if value == "" then return nil end
  return value
end

local function is_true(name)
  local value = get(name)
  return value ~= nil and TRUE[value:upper()] == true
end

-- ~ and $NAME, as Hugging Face's tools expand them.
local function expanded(path)
  local home = get "HOME" or "/root"
  path = path:gsub("^~(.?)", function(rest)
    if rest == "" or rest == "/" then return home .. rest end
    return nil
  end)
  path = path:gsub("%${([%w_]+)}", os.getenv):gsub("%$([%w_]+)", os.getenv)
  return (path:gsub("(.)/+$", "%1"))
end

local function home()
  local base = get "XDG_CACHE_HOME" or "~/.cache"
  return expanded(get "HF_HOME" or base .. "/huggingface")
end

function M.cache()
  local named = get "HF_HUB_CACHE" or get "HUGGINGFACE_HUB_CACHE"
  return named and expanded(named) or home() .. "/hub"
end

function M.endpoint()
  local value = get "HF_ENDPOINT" or DEFAULT_ENDPOINT
  value = value:gsub("/+$", "")
  if not value:find "^https?://[^%s/@]+[^%s@]*$" then
    error(("HF_ENDPOINT is '%s', expected an address such as %s"):format(
      require("segzero.core.visible").line(value), DEFAULT_ENDPOINT), 0)
  end
  return value
end

local function clean(text, where)
  if not text then return nil end
  text = text:gsub("%s", "")
  if text == "" then return nil end
  if text:find "[^\33-\126]" then error(where .. " holds no token: it has other characters", 0) end
  return text
end

function M.token()
  if is_true "HF_HUB_DISABLE_IMPLICIT_TOKEN" then return nil end
  for _, name in ipairs { "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN" } do
    local token = clean(get(name), name)
    if token then return token end
  end
  local path = get "HF_TOKEN_PATH"
  path = path and expanded(path) or home() .. "/token"
  if not files.exists(path) or files.exists(path .. "/.") then return nil end
  return clean(files.read(path), path)
end

function M.offline()
  for _, name in ipairs { "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE" } do
    if is_true(name) then return name end
  end
  return nil
end

function M.without_network(f, ...)
  local set = require("posix.stdlib").setenv
  local before = os.getenv "HF_HUB_OFFLINE"
  set("HF_HUB_OFFLINE", "1")
  local results = { pcall(f, ...) }
  set("HF_HUB_OFFLINE", before)
  if not results[1] then error(results[2], 0) end
  return unpack(results, 2, table.maxn(results))
end

local function seconds(name)
  local value = tonumber(get(name) or "")
  if not value or value < 1 or value > 1e6 then return DEFAULT_SECONDS end
  return math.floor(value)
end

function M.etag_timeout() return seconds "HF_HUB_ETAG_TIMEOUT" end

function M.download_timeout() return seconds "HF_HUB_DOWNLOAD_TIMEOUT" end

function M.is_quiet() return is_true "HF_HUB_DISABLE_PROGRESS_BARS" end

return M
