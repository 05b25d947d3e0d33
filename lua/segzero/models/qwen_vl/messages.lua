-- messages.lua - checks chat messages, renders them with Qwen-VL's chat template, and lists their
-- images.
--
--   messages = {{role = "user", content = "text" | {item, ...}}, ...}
--       item: {type = "text", text =} or {type = "image", image = path or image object};
--       image_url is another name for image. An image may have min_pixels and max_pixels, or
--       resized_height and resized_width, as for qwen_vl_utils
--
--   messages.render(list, {add_generation_prompt =, add_vision_id =}, system) -> prompt text
--       system: the default system message; false for none, nil for Qwen-VL's
--   messages.images(list)
--       -> {{where = text for errors, source = path, data URL or image object,
--            limits = {min_pixels =, ...} or nil}, ...}
--
-- The template of Qwen2-VL and Qwen2.5-VL is written out here, because Jinja is not interpreted.
-- Errors have no position. Leaves out: tools, video (rendered, but no processor reads it).

local core = require "segzero.core.ffi"
local options = require "segzero.core.options"
local image = require "segzero.formats.image"

local M = {}

local VISION = {
  image = "<|vision_start|><|image_pad|><|vision_end|>",
  video = "<|vision_start|><|video_pad|><|vision_end|>",
}
local LABEL = { image = "Picture ", video = "Video " }      -- the template's own words

local MESSAGE = options.set { "role", "content" }
local LIMITS = { "min_pixels", "max_pixels", "resized_height", "resized_width" }
local ITEM = options.set { "type", "text", "image", "image_url", "video", unpack(LIMITS) }
local RENDER = options.set { "add_generation_prompt", "add_vision_id" }

-- Raises options.check's message without a position.
local function check_fields(where, t, known)
  local ok, why = pcall(options.check, where, t, known, 1)
  if not ok then error(core.plain(why), 0) end
end

-- What one item of a content list is: "image", "video" or "text"; nil for anything else.
local function item_kind(item)
  if item.type == "image" or item.image ~= nil or item.image_url ~= nil then return "image" end
  if item.type == "video" or item.video ~= nil then return "video" end
  if type(item.text) == "string" then return "text" end
end

-- ---- rendering ----
local function render_item(out, seen, item, where, opts)
  local kind
  if type(item) == "table" then
    check_fields(where, item, ITEM)
    kind = item_kind(item)
  end
  if not kind then error(where .. " is neither text nor image", 0) end
  if kind == "text" then
    out[#out + 1] = item.text
    return
  end
  seen[kind] = seen[kind] + 1
  if opts.add_vision_id then out[#out + 1] = LABEL[kind] .. seen[kind] .. ": " end
  out[#out + 1] = VISION[kind]
end

local function render_message(out, seen, message, where, opts)
  if type(message) ~= "table" or type(message.role) ~= "string" then
    error(where .. " has no role", 0)
  end
  check_fields(where, message, MESSAGE)
  out[#out + 1] = "<|im_start|>" .. message.role .. "\n"
  local content = message.content
  if type(content) == "string" then
    out[#out + 1] = content
  elseif type(content) == "table" then
    for k, item in ipairs(content) do
      render_item(out, seen, item, where .. ", item " .. k, opts)
    end
  else
    error(where .. ": content is a " .. type(content) .. ", not a string or a list", 0)
  end
  out[#out + 1] = "<|im_end|>\n"
end

function M.render(list, opts, system)
  check_fields("chat", opts, RENDER)
  opts = opts or {}
  if type(list) ~= "table" then error("chat: messages is a " .. type(list) .. ", not a list", 0) end
  if list.role ~= nil then
    error("chat: messages is one message, not a list of them: write {{role =, content =}}", 0)
  end
  if system == nil then system = "You are a helpful assistant." end
  local out = {}
  local seen = { image = 0, video = 0 }
  for i, message in ipairs(list) do
    if i == 1 and system and type(message) == "table" and message.role ~= "system" then
      out[#out + 1] = "<|im_start|>system\n" .. system .. "<|im_end|>\n"
    end
    render_message(out, seen, message, "chat: message " .. i, opts)
  end
  if opts.add_generation_prompt then out[#out + 1] = "<|im_start|>assistant\n" end
  return table.concat(out)
end

-- ---- images ----
local MOST_PIXELS = 2 ^ 40

local function source_of(item, where)
  local source = item.image or item.image_url
  if type(source) == "table" and not image.is_image(source) then source = source.url end
  if type(source) == "string" then
    if source:find "^%a+://" and not source:find "^file://" then
      error(("%s: %s is not a file, and nothing is downloaded: save it and name the file"):format(
        where, source:sub(1, 80)), 0)
    end
    return (source:gsub("^file://", ""))
  end
  if not image.is_image(source) then error(where .. ": neither a file name nor an image", 0) end
  return source
end

-- The limits of an item, checked; nil without any.
local function limits_of(item, where)
  local out
  for _, key in ipairs(LIMITS) do
    local v = item[key]
    if v ~= nil then
      if type(v) ~= "number" or v % 1 ~= 0 or v < 1 or v > MOST_PIXELS then
        error(("%s: %s is %s, expected a whole number from 1 to %.0f"):format(where, key,
          tostring(v), MOST_PIXELS), 0)
      end
      out = out or {}
      out[key] = v
    end
  end
  if out and (out.resized_height == nil) ~= (out.resized_width == nil) then
    error(where .. ": resized_height and resized_width come together", 0)
  end
  return out
end

function M.images(list)
  local found = {}
  for i, message in ipairs(list) do
    local content = type(message) == "table" and message.content
    for k, item in ipairs(type(content) == "table" and content or {}) do
      local kind = type(item) == "table" and item_kind(item)
      local where = ("message %d, item %d"):format(i, k)
      if kind == "video" then error(where .. ": video is not handled", 0) end
      if kind == "image" then
        where = ("%s (image %d)"):format(where, #found + 1)
        found[#found + 1] = { where = where, source = source_of(item, where),
          limits = limits_of(item, where) }
      end
    end
  end
  return found
end

return M
