"""The scripts that write a change into the mirror, and note it for every seed that is under way.

A seed builds new sets out of pages that it read some time ago, and then puts them in the place of those that every node
writes to. What such a write says is newer than the pages, or as new: so each script notes it in the log of every seed
that runs, on whatever node, in the same step in which it changes the sets. The seed applies its log to the new sets in
the step that renames them (`halo/store/mirror_seed_scripts.py`). So there is no moment at which a reader could miss
what was written before, and nothing to be agreed on between nodes. They must be idempotent, and must note before they
change: a refused change makes the node doubt the mirror, and what was noted is what Postgres has committed.

A log is a hash. The last word on each mitra stands under a letter and her id: `p` present (1 or 0), `d` deactivated
(1 or 0), `w` waiting (version and idle since; nothing for "no longer"). Under `#` stands how many changes were noted.
Read next: `halo/store/mirror.py`.
"""

from halo.store.mirror_keys import Keys
from halo.store.valkey_wire import Command

_NOTE = """
-- KEYS[1]: the set of the logs. A log that is gone belongs to a seed that is over or died.
local function note(...)
  for _, seed_log in ipairs(redis.call('SMEMBERS', KEYS[1])) do
    if redis.call('EXISTS', seed_log) == 1 then
      redis.call('HSET', seed_log, ...)
      redis.call('HINCRBY', seed_log, '#', 1)
    else
      redis.call('SREM', KEYS[1], seed_log)
    end
  end
end
"""

GO_ONLINE = f"""{_NOTE}
-- KEYS: seeding, online, heartbeat  ARGV: id, moment. The heartbeat first, and forward only.
note('p' .. ARGV[1], '1')
local last = redis.call('GET', KEYS[3])
if not last or last < ARGV[2] then redis.call('SET', KEYS[3], ARGV[2]) end
return redis.call('SADD', KEYS[2], ARGV[1])
"""

GO_OFFLINE = f"""{_NOTE}
-- KEYS: seeding, online, waiting, heartbeat  ARGV: id
note('p' .. ARGV[1], '0', 'w' .. ARGV[1], '')
redis.call('SREM', KEYS[2], ARGV[1])
redis.call('ZREM', KEYS[3], ARGV[1])
return redis.call('DEL', KEYS[4])
"""

DEACTIVATE = f"""{_NOTE}
-- KEYS: seeding, deactivated, online, waiting, heartbeat  ARGV: id
note('d' .. ARGV[1], '1', 'p' .. ARGV[1], '0', 'w' .. ARGV[1], '')
redis.call('SADD', KEYS[2], ARGV[1])
redis.call('SREM', KEYS[3], ARGV[1])
redis.call('ZREM', KEYS[4], ARGV[1])
return redis.call('DEL', KEYS[5])
"""

ACTIVATE = f"""{_NOTE}
-- KEYS: seeding, deactivated  ARGV: id
note('d' .. ARGV[1], '0')
return redis.call('SREM', KEYS[2], ARGV[1])
"""

SET_CAPACITY = f"""{_NOTE}
-- KEYS: seeding, capacity, version, online, waiting  ARGV: count, version, id, idle since or '' without room. Replies 0
-- when what is there is newer.
local have = redis.call('GET', KEYS[3])
if have and tonumber(have) > tonumber(ARGV[2]) then return 0 end
note('w' .. ARGV[3], ARGV[2] .. ' ' .. ARGV[4])
redis.call('MSET', KEYS[2], ARGV[1], KEYS[3], ARGV[2])
if ARGV[4] ~= '' and redis.call('SISMEMBER', KEYS[4], ARGV[3]) == 1 then
  redis.call('ZADD', KEYS[5], 'GT', ARGV[4], ARGV[3])
else
  redis.call('ZREM', KEYS[5], ARGV[3])
end
return 1
"""

LEAVE_UNLESS_HEARD = f"""{_NOTE}
-- KEYS: seeding, online, waiting, heartbeats…  ARGV: ids…, moments seen…  Replies the places, from 1, of those who were
-- heard of since, and when: they stay, also where a seed has read meanwhile that Postgres calls them offline. What has
-- another width is not of ours, and no sign of life.
local n, stay = #KEYS - 3, {{}}
for i = 1, n do
  local last = redis.call('GET', KEYS[i + 3])
  if last and #last == #ARGV[n + i] and last > ARGV[n + i] then
    if redis.call('SISMEMBER', KEYS[2], ARGV[i]) == 1 then note('p' .. ARGV[i], '1') end
    stay[#stay + 1] = {{i, last}}
  else
    note('p' .. ARGV[i], '0', 'w' .. ARGV[i], '')
    redis.call('SREM', KEYS[2], ARGV[i])
    redis.call('ZREM', KEYS[3], ARGV[i])
    redis.call('DEL', KEYS[i + 3])
  end
end
return stay
"""


def compose_online(keys: Keys, mitra_id: str, beat: str) -> Command:
    """She is online, and was heard of at that moment at least."""
    return ("EVAL", GO_ONLINE, 3, keys.seeding, keys.online, keys.heartbeat(mitra_id), mitra_id, beat)


def compose_offline(keys: Keys, mitra_id: str) -> Command:
    names = (keys.seeding, keys.online, keys.waiting, keys.heartbeat(mitra_id))
    return ("EVAL", GO_OFFLINE, len(names), *names, mitra_id)


def compose_deactivated(keys: Keys, mitra_id: str) -> Command:
    """And offline, in the same step."""
    names = (keys.seeding, keys.deactivated, keys.online, keys.waiting, keys.heartbeat(mitra_id))
    return ("EVAL", DEACTIVATE, len(names), *names, mitra_id)


def compose_activated(keys: Keys, mitra_id: str) -> Command:
    return ("EVAL", ACTIVATE, 2, keys.seeding, keys.deactivated, mitra_id)


def compose_capacity(keys: Keys, mitra_id: str, capacity: int, version: int, idle_since: int | None) -> Command:
    """The number of living sessions, and the mitra among those who wait for one, or, without `idle_since`, taken out."""
    names = (keys.seeding, keys.capacity(mitra_id), keys.capacity_version(mitra_id), keys.online, keys.waiting)
    waits = "" if idle_since is None else idle_since
    return ("EVAL", SET_CAPACITY, len(names), *names, capacity, version, mitra_id, waits)
