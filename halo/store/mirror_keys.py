"""What the mirror looks like inside Valkey: the names of its keys, and the scripts that ask about several mitras at once.

Scripts are sent whole, with EVAL: a server that came back empty has forgotten the cached ones, and a batch pays for
the text once. They must be idempotent, and take every key as a KEYS argument, but for keys of the same slot whose names
they make or find themselves. Read next: `halo/store/mirror_changes.py` (the scripts that write what has changed),
`halo/store/mirror_seed_scripts.py` (those that build it all anew), `halo/store/mirror.py`.
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
    def waiting(self) -> str:
        """Who is online and has room, a sorted set by the moment since when they are idle (ms since 1970).

        Beside the keys of the specification: without it every search would have to look at everybody who is online to
        find the longest idle (10,000 of them: 36 ms in which Valkey serves nobody else); with it, at the few whom it
        asks.
        """
        return f"{self.prefix}mitras:waiting"

    @property
    def snapshot(self) -> str:
        """S05, JSON with a TTL of 10 s."""
        return f"{self.prefix}availability:snapshot"

    @property
    def snapshot_lock(self) -> str:
        """Who holds it counts for the whole cluster; the others read the old value."""
        return f"{self.prefix}availability:snapshot:lock"

    @property
    def seeded(self) -> str:
        """When the mirror was last built. Without it (flushed, restarted empty) an empty set means nothing."""
        return f"{self.prefix}mitras:seeded"

    @property
    def standing_since(self) -> str:
        """When the mirror was first built on a Valkey that had none. A seed leaves it alone, a flush takes it along."""
        return f"{self.prefix}mitras:standing:since"

    @property
    def seeding(self) -> str:
        """A set of the logs of all seeds that run, of whatever node: each change is noted in every one of them."""
        return f"{self.prefix}mitras:seeding"

    def scratch(self, name: str, token: str) -> str:
        """Where a seed builds a set before it is renamed into place, and its log."""
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

WALK_WAITING = """
-- KEYS: seeded, online, deactivated, waiting  ARGV: heartbeat's prefix, heard since, who was looked at last and since
-- when she is idle ('' at first), how many to look at, how many are wanted, excluded ids…  Replies: how many were looked
-- at, who of them is available, or their number when 0 are wanted, who was the last, and since when she is idle; nil
-- when not seeded.
-- It goes on behind somebody, not at a rank: when one leaves the line, all behind her move up, and the first of them would
-- never be looked at. When the last one herself has moved, it goes on at her place, and may look at some a second time.
-- It makes the names of the heartbeats itself, in the same slot: handing in a thousand names costs the caller 3 ms. A
-- heartbeat of another width was not written by us, and is no sign of life.
if redis.call('EXISTS', KEYS[1]) == 0 then return false end
local prefix, since, last, idle, want = ARGV[1], ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[6])
local first = 0
if last ~= '' then
  if redis.call('ZSCORE', KEYS[4], last) == idle then first = redis.call('ZRANK', KEYS[4], last) + 1
  else first = redis.call('ZCOUNT', KEYS[4], '-inf', '(' .. idle) end
end
local ids = redis.call('ZRANGE', KEYS[4], first, first + tonumber(ARGV[5]) - 1)
local n = #ids
if n == 0 then return {0, want == 0 and 0 or {}, last, idle} end
last, idle = ids[n], redis.call('ZSCORE', KEYS[4], ids[n])
local beats, skip, found, count = {}, {}, {}, 0
for i = 7, #ARGV do skip[ARGV[i]] = true end
for i = 1, n do beats[i] = prefix .. ids[i] end
beats = redis.call('MGET', unpack(beats))
local here = redis.call('SMISMEMBER', KEYS[2], unpack(ids))
local gone = redis.call('SMISMEMBER', KEYS[3], unpack(ids))
for i = 1, n do
  local beat = beats[i]
  if here[i] == 1 and gone[i] == 0 and beat and #beat == #since and beat >= since and not skip[ids[i]] then
    count = count + 1
    found[count] = ids[i]
    if count == want then return {i, found, last, idle} end
  end
end
return {n, want == 0 and count or found, last, idle}
"""

COUNT_ONLINE = """
-- KEYS: seeded, online. Replies nil when not seeded.
if redis.call('EXISTS', KEYS[1]) == 0 then return false end
return redis.call('SCARD', KEYS[2])
"""

READ_SNAPSHOT = """
-- KEYS: seeded, snapshot, lock  ARGV: token, lock's ms, ms to live below which it is old. Replies: the snapshot or '',
-- and 1 for the one caller who is to count anew; nil when not seeded. Valkey's clock alone decides what is old.
if redis.call('EXISTS', KEYS[1]) == 0 then return false end
local mine = 0
if redis.call('PTTL', KEYS[2]) < tonumber(ARGV[3]) then
  if redis.call('SET', KEYS[3], ARGV[1], 'NX', 'PX', ARGV[2]) then mine = 1 end
end
return {redis.call('GET', KEYS[2]) or '', mine}
"""

WRITE_SNAPSHOT = """
-- KEYS: snapshot, lock  ARGV: token, snapshot, ms to live. Whoever lost the lock was too slow: somebody else counts.
if redis.call('GET', KEYS[2]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
return redis.call('DEL', KEYS[2])
"""
