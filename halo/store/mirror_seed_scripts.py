"""The scripts of a seed: what it builds beside the mirror, and how that takes the mirror's place in one step.

A log is opened before the first page is read from Postgres. From then on every change of every node is noted in it (`halo/store/mirror_changes.py`): a
page either has it already or the log has it. `PUBLISH_SEED` applies the log to the new sets and renames them. It must
never publish without its log: what was noted there would be undone. Read next: `halo/store/mirror_seed.py`.
"""

OPEN_LOG = """
-- KEYS: seeding, log  ARGV: seconds to live. The logs of seeds that died are forgotten.
for _, seed_log in ipairs(redis.call('SMEMBERS', KEYS[1])) do
  if redis.call('EXISTS', seed_log) == 0 then redis.call('SREM', KEYS[1], seed_log) end
end
redis.call('HSET', KEYS[2], '#', 0)
redis.call('EXPIRE', KEYS[2], ARGV[1])
return redis.call('SADD', KEYS[1], KEYS[2])
"""

SEED_MITRAS = """
-- KEYS: the scratch sets of who is online, deactivated, waiting, and the log  ARGV: the heartbeat's, capacity's and version's prefixes,
-- seconds to live, heartbeats of 24 characters each, lines of states. Replies how many heartbeats and how many capacities
-- were not as they should be.
-- A heartbeat of '-' removes, a blank one leaves what is there; but who has come or left since the seed began has the
-- heartbeat already that she should have. It makes the names of the keys itself, in the same slot:
-- handing in three names for each of 100,000 costs the caller half a second.
local names, ids, kinds, counts, versions, idles, n = {}, {}, {}, {}, {}, {}, 0
for id, kind, count, version, idle in string.gmatch(ARGV[6], '(%S+) (%a) (%d+) (%d+) (%-?%d+)') do
  n = n + 1
  ids[n], kinds[n], counts[n], versions[n], idles[n] = id, kind, count, version, idle
  names[3 * n - 2], names[3 * n - 1], names[3 * n] = ARGV[1] .. id, ARGV[2] .. id, ARGV[3] .. id
end
local was = redis.call('MGET', unpack(names))
local noted, fields = {}, {}
if redis.call('HLEN', KEYS[4]) > 1 then
  for i = 1, n do fields[i] = 'p' .. ids[i] end
  noted = redis.call('HMGET', KEYS[4], unpack(fields))
end
local beats, capacities = 0, 0
local gone, writes, online, deactivated, waiting = {}, {}, {}, {}, {}
for i = 1, n do
  local at, last, kind = string.sub(ARGV[5], 24 * i - 23, 24 * i), was[3 * i - 2], kinds[i]
  if string.byte(at) == 45 then
    if last and noted[i] ~= '1' then gone[#gone + 1] = names[3 * i - 2] end
  elseif string.byte(at) ~= 32 and noted[i] ~= '0' and (not last or last < at) then
    beats = beats + 1
    writes[#writes + 1] = names[3 * i - 2]
    writes[#writes + 1] = at
  end
  local have, count, version = was[3 * i], counts[i], versions[i]
  if (have ~= version or was[3 * i - 1] ~= count) and (not have or tonumber(have) <= tonumber(version)) then
    capacities = capacities + 1
    local w = #writes
    writes[w + 1], writes[w + 2], writes[w + 3], writes[w + 4] = names[3 * i - 1], count, names[3 * i], version
  end
  if kind == 'd' then deactivated[#deactivated + 1] = ids[i]
  elseif kind ~= 'o' then
    online[#online + 1] = ids[i]
    if kind == 'w' then
      waiting[#waiting + 1] = idles[i]
      waiting[#waiting + 1] = ids[i]
    end
  end
end
if #gone > 0 then beats = beats + redis.call('DEL', unpack(gone)) end
if #writes > 0 then redis.call('MSET', unpack(writes)) end
if #online > 0 then redis.call('SADD', KEYS[1], unpack(online)) end
if #deactivated > 0 then redis.call('SADD', KEYS[2], unpack(deactivated)) end
if #waiting > 0 then redis.call('ZADD', KEYS[3], unpack(waiting)) end
for i = 1, 4 do redis.call('EXPIRE', KEYS[i], ARGV[4]) end
return {beats, capacities}
"""

COMPARE_SEED = """
-- KEYS: scratch, target  ARGV: S, or Z for sorted sets. Replies how many stand in one of them alone. A target that is no
-- set at all is wholly wrong, and must not keep the seed from replacing it. One pair at a time: with 100,000 in each,
-- Valkey serves nobody else for 20 ms.
local kind = ARGV[1]
local built = redis.call(kind .. 'CARD', KEYS[1])
local there = redis.pcall(kind .. 'CARD', KEYS[2])
if type(there) == 'table' then return built end
return built + there - 2 * redis.call(kind .. 'INTERCARD', 2, KEYS[1], KEYS[2])
"""

PUBLISH_SEED = """
-- KEYS: seeded, seeding, log, (scratch, target) of who is online, deactivated, waiting  ARGV: moment, the version's
-- prefix, how many each scratch set must hold…  Replies how many changes the log holds.
-- Scratch sets and log expire when a seed dies half way. One that expired too early would empty its target, or undo what
-- was written meanwhile: refuse, change nothing.
for i = 4, 8, 2 do
  local count = i == 8 and 'ZCARD' or 'SCARD'
  if redis.call(count, KEYS[i]) ~= tonumber(ARGV[i / 2 + 1]) then
    return redis.error_reply('SEEDLOST a scratch set is incomplete')
  end
end
local noted = redis.call('HGET', KEYS[3], '#')
if not noted then return redis.error_reply('SEEDLOST the log is gone') end
local online, deactivated, waiting = KEYS[4], KEYS[6], KEYS[8]
local came, left, shut_out, let_in, waits = {}, {}, {}, {}, {}
local places = {p1 = came, p0 = left, d1 = shut_out, d0 = let_in}
local fields = redis.call('HGETALL', KEYS[3])
for i = 1, #fields, 2 do
  local letter, id, value = string.sub(fields[i], 1, 1), string.sub(fields[i], 2), fields[i + 1]
  if letter == 'w' then waits[id] = value
  elseif letter ~= '#' then table.insert(places[letter .. value], id) end
end
local function each(command, key, ids)
  for i = 1, #ids, 1000 do redis.call(command, key, unpack(ids, i, math.min(i + 999, #ids))) end
end
each('SADD', online, came)
each('SREM', online, left)
each('ZREM', waiting, left)
each('SADD', deactivated, shut_out)
each('SREM', deactivated, let_in)
for id, value in pairs(waits) do
  local version, idle = string.match(value, '^(%d+) (.*)$')
  -- A version above the one that was noted came with a page that is newer than the note.
  local have = version and redis.call('GET', ARGV[2] .. id)
  if not (have and tonumber(have) > tonumber(version)) then
    if version and idle ~= '' and redis.call('SISMEMBER', online, id) == 1 then
      redis.call('ZADD', waiting, 'GT', idle, id)
    else
      redis.call('ZREM', waiting, id)
    end
  end
end
for i = 4, 8, 2 do
  if redis.call('EXISTS', KEYS[i]) == 1 then
    redis.call('RENAME', KEYS[i], KEYS[i + 1])
    redis.call('PERSIST', KEYS[i + 1])
  else
    redis.call('DEL', KEYS[i + 1])
  end
end
redis.call('DEL', KEYS[3])
redis.call('SREM', KEYS[2], KEYS[3])
redis.call('SET', KEYS[1], ARGV[1])
return tonumber(noted)
"""
