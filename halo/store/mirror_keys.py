"""What the mirror looks like inside Valkey: the names of its keys, and the scripts that touch several of them at once.

Scripts are sent whole, with EVAL: a server that came back empty has forgotten the cached ones, and a batch pays for
the text once. They must be idempotent, and take every key as a KEYS argument. Read next: `halo/store/mirror.py`.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Keys:
    """S01 to S05 behind the prefix, and what the mirror keeps beside them."""

    prefix: str = ""

    @property
    def online(self) -> str:
        """S01, a set of mitra ids."""
        return f"{self.prefix}mitras:online"

    @property
    def deactivated(self) -> str:
        """S02, a set of mitra ids."""
        return f"{self.prefix}mitras:deactivated"

    def capacity(self, mitra_id: str) -> str:
        """S03, the number of living sessions."""
        return f"{self.prefix}mitra:capacity:{mitra_id}"

    def capacity_version(self, mitra_id: str) -> str:
        """The version that S03 was computed from."""
        return f"{self.prefix}mitra:capacity:version:{mitra_id}"

    def heartbeat(self, mitra_id: str) -> str:
        """S04, RFC 3339 with milliseconds: of one width, so that the order of the texts is the order of time."""
        return f"{self.prefix}mitra:heartbeat:{mitra_id}"

    @property
    def snapshot(self) -> str:
        """S05, JSON with a TTL of 10 s."""
        return f"{self.prefix}availability:snapshot"

    @property
    def seeded(self) -> str:
        """When the mirror was last built. Without it (flushed, restarted empty) an empty set means nothing."""
        return f"{self.prefix}mitras:seeded"

    def scratch(self, name: str, token: str) -> str:
        """Where a seed builds a set before it is renamed into place."""
        return f"{self.prefix}mitras:seed:{token}:{name}"


TAKEN, NOT_ONLINE, NOT_ACTIVE = 0, 1, 2
"""What HEARTBEATS says of each ping."""

HEARTBEATS = """
-- KEYS: seeded, deactivated, online, heartbeats…  ARGV: ids…, moments…  Replies: a verdict for each, or nil when not
-- seeded.
if redis.call('EXISTS', KEYS[1]) == 0 then return false end
local n, ids, beats = #KEYS - 3, {}, {}
for i = 1, n do ids[i] = ARGV[i]; beats[i] = KEYS[3 + i] end
local gone = redis.call('SMISMEMBER', KEYS[2], unpack(ids))
local here = redis.call('SMISMEMBER', KEYS[3], unpack(ids))
local was = redis.call('MGET', unpack(beats))
local verdicts, newest, writes = {}, {}, {}
for i = 1, n do
  if gone[i] == 1 then verdicts[i] = 2
  elseif here[i] == 0 then verdicts[i] = 1
  else
    verdicts[i] = 0
    local key, at = beats[i], ARGV[n + i]
    local last = newest[key] or was[i]
    if not last or last < at then
      newest[key] = at
      writes[#writes + 1] = key
      writes[#writes + 1] = at
    end
  end
end
if #writes > 0 then redis.call('MSET', unpack(writes)) end
return verdicts
"""

PRESENCES = """
-- KEYS: seeded, deactivated, online, heartbeats…  ARGV: ids…  Replies: {deactivated…}, {online…}, {heartbeat…}, or
-- nil when not seeded.
if redis.call('EXISTS', KEYS[1]) == 0 then return false end
local beats = {}
for i = 4, #KEYS do beats[i - 3] = KEYS[i] end
return {
  redis.call('SMISMEMBER', KEYS[2], unpack(ARGV)),
  redis.call('SMISMEMBER', KEYS[3], unpack(ARGV)),
  redis.call('MGET', unpack(beats)),
}
"""

GO_ONLINE = """
-- KEYS: online, heartbeat  ARGV: id, moment. The heartbeat first, and forward only.
local last = redis.call('GET', KEYS[2])
if not last or last < ARGV[2] then redis.call('SET', KEYS[2], ARGV[2]) end
return redis.call('SADD', KEYS[1], ARGV[1])
"""

SET_CAPACITY = """
-- KEYS: capacity, version  ARGV: count, version. Replies 0 when what is there is newer.
local have = redis.call('GET', KEYS[2])
if have and tonumber(have) > tonumber(ARGV[2]) then return 0 end
redis.call('MSET', KEYS[1], ARGV[1], KEYS[2], ARGV[2])
return 1
"""

SEED_MITRAS = """
-- KEYS: (heartbeat, capacity, version)…  ARGV: (moment, count, version)…; a moment '-' removes, an empty one leaves
-- what is there.
for i = 1, #KEYS, 3 do
  local at = ARGV[i]
  if at == '-' then redis.call('DEL', KEYS[i])
  elseif at ~= '' then
    local last = redis.call('GET', KEYS[i])
    if not last or last < at then redis.call('SET', KEYS[i], at) end
  end
  local have = redis.call('GET', KEYS[i + 2])
  if not have or tonumber(have) <= tonumber(ARGV[i + 2]) then
    redis.call('MSET', KEYS[i + 1], ARGV[i + 1], KEYS[i + 2], ARGV[i + 2])
  end
end
return #KEYS / 3
"""

PUBLISH_SEED = """
-- KEYS: seeded, (scratch, target)…  ARGV: moment, how many each scratch set must hold…
-- Scratch sets expire when a seed dies half way. One that expired too early would empty its target: refuse, change
-- nothing.
for i = 2, #KEYS, 2 do
  if redis.call('SCARD', KEYS[i]) ~= tonumber(ARGV[i / 2 + 1]) then
    return redis.error_reply('SEEDLOST a scratch set is incomplete')
  end
end
for i = 2, #KEYS, 2 do
  if redis.call('EXISTS', KEYS[i]) == 1 then
    redis.call('RENAME', KEYS[i], KEYS[i + 1])
    redis.call('PERSIST', KEYS[i + 1])
  else
    redis.call('DEL', KEYS[i + 1])
  end
end
return redis.call('SET', KEYS[1], ARGV[1])
"""
