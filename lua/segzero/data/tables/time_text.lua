-- time_text.lua - a date or time of a table as the text that Python's str() gives.
--
--   time_text.of(value, time) -> text       value: a whole number, or its digits beyond 2^53
--   time_text.is_named(zone)                whether the zone's offset is not known here
--
-- time: {form = "date" | "time" | "datetime", digits = of a second after the point: 0, 3, 6 or 9;
-- nil: a date in days, zone = of a datetime: "UTC", "+02:00", "Europe/Berlin", nil}. A datetime
-- counts from 1970-01-01 00:00 UTC, and may be negative.
-- The texts are 2024-01-31, 12:00:00.500000, 2024-01-31 12:00:00+00:00. Parts of a second have six
-- digits, or none if they are 0; nine in a datetime with nanoseconds, as in pandas' Timestamp. A
-- time has six, as in pyarrow.
-- Leaves out: offsets of named zones, which change with the date: such a datetime is in UTC;
-- durations.

local M = {}

local DAY = 86400
local FIRST_DAY = -719162       -- 0001-01-01, Python's first
local LAST_DAY = 2932896        -- 9999-12-31
local ERA = 146097              -- days of 400 years
local ERA_START = 719468        -- days from 0000-03-01 to 1970-01-01
local UTC = { ["UTC"] = true, ["Etc/UTC"] = true, ["GMT"] = true, ["Etc/GMT"] = true }

-- The offset of a zone in seconds; nil for a name.
local function offset_of(zone)
  if UTC[zone] then return 0 end
  local sign, hours, minutes = zone:match "^([+-])(%d%d):(%d%d)$"
  if not sign then return nil end
  local seconds = hours * 3600 + minutes * 60
  if sign == "-" then seconds = -seconds end
  return seconds
end

function M.is_named(zone) return zone ~= nil and offset_of(zone) == nil end

-- Whole seconds, rounded down, and the rest in nanoseconds.
local function split(value, digits)
  local unit = 10 ^ digits
  local seconds
  local rest
  if type(value) == "number" then
    rest = math.fmod(value, unit)
    seconds = (value - rest) / unit
  else
    local sign, figures = value:match "^(-?)(%d+)$"
    seconds = tonumber(figures:sub(1, -digits - 1))
    rest = digits == 0 and 0 or tonumber(figures:sub(-digits))
    if sign == "-" then
      seconds = -seconds
      rest = -rest
    end
  end
  if rest < 0 then
    rest = rest + unit
    seconds = seconds - 1
  end
  return seconds, rest * 10 ^ (9 - digits)
end

-- The calendar's day. Years start in March here, so that a leap day is the last one.
local function date(days)
  if not (days >= FIRST_DAY and days <= LAST_DAY) then
    error(("a date %.0f days from 1970, outside of the years 1 to 9999"):format(days), 0)
  end
  local shifted = days + ERA_START
  local era = math.floor(shifted / ERA)
  local day = shifted - era * ERA
  local leaps = math.floor(day / 1460) - math.floor(day / 36524) + math.floor(day / 146096)
  local year = math.floor((day - leaps) / 365)
  day = day - (365 * year + math.floor(year / 4) - math.floor(year / 100))
  local month = math.floor((5 * day + 2) / 153)
  day = day - math.floor((153 * month + 2) / 5) + 1
  month = month + 3
  year = year + era * 400
  if month > 12 then
    month = month - 12
    year = year + 1
  end
  return ("%04d-%02d-%02d"):format(year, month, day)
end

local function clock(seconds, nanoseconds, has_nanoseconds)
  local text = ("%02d:%02d:%02d"):format(math.floor(seconds / 3600),
    math.floor(seconds / 60) % 60, seconds % 60)
  if has_nanoseconds and nanoseconds % 1000 ~= 0 then
    return ("%s.%09d"):format(text, nanoseconds)
  end
  local microseconds = math.floor(nanoseconds / 1000)
  if microseconds == 0 then return text end
  return ("%s.%06d"):format(text, microseconds)
end

local function offset_text(offset)
  local sign = offset < 0 and "-" or "+"
  local minutes = math.abs(offset) / 60
  return ("%s%02d:%02d"):format(sign, math.floor(minutes / 60), minutes % 60)
end

function M.of(value, time)
  if not time.digits then return date(tonumber(value)) end
  local seconds, nanoseconds = split(value, time.digits)
  local offset = 0
  if time.zone then offset = offset_of(time.zone) or 0 end
  seconds = seconds + offset
  local days = math.floor(seconds / DAY)
  if time.form == "date" then return date(days) end
  local of_day = seconds - days * DAY
  if time.form == "time" then return clock(of_day, nanoseconds, false) end
  local text = date(days) .. " " .. clock(of_day, nanoseconds, true)
  if time.zone then text = text .. offset_text(offset) end
  return text
end

return M
