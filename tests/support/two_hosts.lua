-- two_hosts.lua - two "hosts" on this machine: network namespaces with a cable between them, each
-- with a host name and addresses of its own. Files are shared, as on a cluster.
--
--   local hosts, why = two_hosts.open()      nil and the reason where this is not allowed
--   hosts.address.a, hosts.address.b         "10.213.7.1", ...
--   hosts:command("a", argv) -> argv         the program runs on host a, whose name is host-a
--   hosts:write_agent(path)                  a script for mpirun in place of ssh, which runs a
--                                            command on host b
--   hosts:cut(), hosts:mend()                the cable
--   hosts:close()                            the namespaces are gone
--
-- Needs root, and ip and unshare (iproute2, util-linux). Unanswered packets end a connection after
-- seconds and not after a quarter of an hour (tcp_retries2), so that mpirun itself notices the cut.
-- Left out: different clocks, users or file systems.

local process = require "tests.support.process"
local files = require "segzero.core.files"
local unistd = require "posix.unistd"

local M = {}

local methods = {}
local mt = { __index = methods }

local TIMEOUT = 20
local RETRIES = "4"

local function run(argv)
  local text, status = process.run(argv, { timeout = TIMEOUT })
  if status ~= 0 then
    return nil, ("%s: %s"):format(table.concat(argv, " "), text:gsub("\n.*", ""))
  end
  return true
end

local function words(text)
  local list = {}
  for word in text:gmatch "%S+" do list[#list + 1] = word end
  return list
end

function M.open()
  if unistd.geteuid() ~= 0 then return nil, "root, for network namespaces" end
  local pid = tostring(unistd.getpid())
  local hosts = setmetatable({ space = { a = "sza" .. pid, b = "szb" .. pid },
    cable = { a = "va" .. pid, b = "vb" .. pid },
    address = { a = "10.213.7.1", b = "10.213.7.2" } }, mt)
  local steps = { "ip netns add $sa", "ip netns add $sb",
    "ip link add $ca type veth peer name $cb",
    "ip link set $ca netns $sa", "ip link set $cb netns $sb" }
  for _, h in ipairs { "a", "b" } do
    for _, step in ipairs { "ip -n $s address add $address/30 dev $c", "ip -n $s link set lo up",
      "ip -n $s link set $c up",
      "ip netns exec $s sysctl -q -w net.ipv4.tcp_retries2=" .. RETRIES } do
      steps[#steps + 1] = step:gsub("$address", hosts.address[h]):gsub("$([sc])", "$%1" .. h)
    end
  end
  local names = { sa = hosts.space.a, sb = hosts.space.b, ca = hosts.cable.a, cb = hosts.cable.b }
  for _, step in ipairs(steps) do
    local ok, why = run(words((step:gsub("$(%w%w)", names))))
    if not ok then
      hosts:close()
      return nil, "network namespaces: " .. why
    end
  end
  return hosts
end

function methods:command(h, argv)
  local all = words(("ip netns exec %s unshare --uts sh -c"):format(self.space[h]))
  all[#all + 1] = ('hostname host-%s; exec "$@"'):format(h)
  all[#all + 1] = "sh"
  for _, word in ipairs(argv) do all[#all + 1] = word end
  return all
end

-- mpirun calls it as ssh: the host, then the words of a shell command.
function methods:write_agent(path)
  files.write(path, ("#!/bin/sh\nshift\nexec ip netns exec %s unshare --uts sh -c "
    .. "\"hostname host-b; $*\"\n"):format(self.space.b))
  assert(require("posix.sys.stat").chmod(path, 448))    -- rwx for the owner
end

function methods:cut()
  assert(run { "ip", "-n", self.space.b, "link", "set", self.cable.b, "down" })
end

function methods:mend()
  assert(run { "ip", "-n", self.space.b, "link", "set", self.cable.b, "up" })
end

function methods:close()
  for _, space in pairs(self.space) do run { "ip", "netns", "delete", space } end
end

return M
