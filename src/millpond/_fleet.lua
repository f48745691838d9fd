-- One member's renewal: it tells how things are with it, and learns how much it may have.
--
-- KEYS, all in one slot:
--   [1] book: counters, so that nobody has to add up: epoch, learning (until when), total, lacking, called
--   [2] leases: when each member's ends        [3] allowed: how many each may have
--   [4] since: since when each that lacks some has waited     [5] lacking: how many each lacks
--   [6] idle: how many each could spare        [7] called: how many each is asked to give back
--   [8] reserve: how many each goes on with if it cannot renew
--   [9] lost: until when what is reserved is kept for each that has not renewed
--   [10] got: when each was last given some    [11] about: who each is, for people
-- ARGV: [1] member  [2] limit  [3] lease  [4] for how long a reserve is kept  [5] how many it may have, as it knows
--       [6] how many of these lie idle  [7] how many it lacks  [8] for how long it has waited
--       [9] how many each member is left  [10] about it  [11] an epoch, should there be none
--       [12 ...] members that are known to be dead
-- Times are in ms, by this server's clock. A lease of 0 says goodbye.
local book, leases, allowed, since, lacking, idle, called, reserve, lost, got, about = unpack(KEYS)
local member, limit, lease, kept = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local own, spare, lacks, waited = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
local PATIENCE = 20 -- ms that a caller waits before others are asked to give: one of its own may be coming back
local TURN = 250    -- ms that a member keeps what it got, though it is in use there and others wait
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local function field(key, name)
    return tonumber(redis.call('HGET', key, name) or '0')
end

local function score(key, name)
    return tonumber(redis.call('ZSCORE', key, name) or '0')
end

local function allow(who, count)
    redis.call('HINCRBY', book, 'total', count - score(allowed, who))
    redis.call('ZADD', allowed, count, who)
end

local function call(who, count)
    redis.call('HINCRBY', book, 'called', count - field(called, who))
    if count > 0 then redis.call('HSET', called, who, count) else redis.call('HDEL', called, who) end
end

local function lack(who, count, moment)
    redis.call('HINCRBY', book, 'lacking', count - field(lacking, who))
    if count > 0 then
        redis.call('HSET', lacking, who, count)
        redis.call('ZADD', since, moment, who)
    else
        redis.call('HDEL', lacking, who)
        redis.call('ZREM', since, who)
    end
end

local function silence(who)
    call(who, 0)
    lack(who, 0, 0)
    redis.call('ZREM', idle, who)
    redis.call('ZREM', leases, who)
end

local function forget(who)
    silence(who)
    allow(who, 0)
    redis.call('ZREM', allowed, who)
    redis.call('ZREM', lost, who)
    redis.call('HDEL', reserve, who)
    redis.call('HDEL', got, who)
    redis.call('HDEL', about, who)
end

for index = 12, #ARGV do
    forget(ARGV[index])
end
if lease == 0 then
    forget(member)
    return {0, 0, 0, '', 0, 0}
end
-- Who has not renewed may live, cut off or stopped, and goes on with what is reserved for it.
for _, who in ipairs(redis.call('ZRANGEBYSCORE', leases, '-inf', now, 'LIMIT', 0, 100)) do
    silence(who)
    allow(who, math.min(score(allowed, who), field(reserve, who)))
    redis.call('ZADD', lost, now + kept, who)
end
for _, who in ipairs(redis.call('ZRANGEBYSCORE', lost, '-inf', now, 'LIMIT', 0, 100)) do
    forget(who)
end

-- A server that has just started, or a book that has just been begun, may know nothing of those who have connections:
-- for a while they tell, and none grows. Who cannot reach a server that runs tries again every second.
local epoch = redis.call('HGET', book, 'epoch')
if not epoch then
    epoch = ARGV[11]
    redis.call('HSET', book, 'epoch', epoch, 'learning', now + math.min(lease, 3000))
end
local uptime = tonumber(string.match(redis.call('INFO', 'server'), 'uptime_in_seconds:(%d+)'))
local learning = uptime * 1000 < lease or field(book, 'learning') > now

-- What it tells is true, be it more than it should have: nobody can take away what is open.
local given = math.max(0, score(allowed, member) - own)
allow(member, own)
redis.call('ZADD', leases, now + lease, member)
redis.call('ZREM', lost, member)
redis.call('ZADD', idle, spare, member)
local members = redis.call('ZCARD', leases) + redis.call('ZCARD', lost)
local floor = tonumber(ARGV[9])
if floor * members > limit then floor = 0 end
redis.call('HSET', about, member, ARGV[10])
call(member, math.max(0, math.min(field(called, member) - given, own - floor)))

local free = limit - field(book, 'total')
local moment = now - waited
if lacks > 0 and free > 0 and not learning then
    -- Those who have waited for longer come first, if they have been heard of a moment ago: they are about to ask.
    local ahead = 0
    for _, who in ipairs(redis.call('ZRANGEBYSCORE', since, '-inf', '(' .. moment, 'LIMIT', 0, 50)) do
        if who ~= member and score(leases, who) > now + lease - math.max(1000, lease / 5) then
            ahead = ahead + field(lacking, who)
        end
    end
    local grant = math.min(lacks, math.max(0, free - ahead))
    -- Nor does it take at once what others who wait will ask for a moment later.
    if field(book, 'lacking') > field(lacking, member) then
        grant = math.min(grant, math.max(1, math.floor(limit / members) - own))
    end
    own, lacks, free = own + grant, lacks - grant, free - grant
    allow(member, own)
    if grant > 0 then
        call(member, 0)
        redis.call('HSET', got, member, now)
    end
end
lack(member, lacks, moment)

-- Others are asked for what it lacks: those who have some idle, or else those who have two more than it has.
local missing = math.min(lacks, field(book, 'lacking') - math.max(0, free) - field(book, 'called'))
if missing > 0 and waited >= PATIENCE and not learning then
    for _, who in ipairs(redis.call('ZREVRANGE', idle, 0, 20)) do
        local count = math.min(missing, score(idle, who) - field(called, who))
        if who ~= member and count > 0 then
            call(who, field(called, who) + count)
            missing = missing - count
        end
    end
    for _, who in ipairs(missing > 0 and redis.call('ZREVRANGE', allowed, 0, 20) or {}) do
        local has = score(allowed, who) - field(called, who)
        local richer = has > floor and (has >= own + 2 or own == 0) and field(got, who) < now - TURN
        if who ~= member and missing > 0 and richer and redis.call('ZSCORE', leases, who) then
            call(who, field(called, who) + 1)
            missing = missing - 1
        end
    end
end
-- If there are more than there may be, whoever has some gives.
local excess = math.min(own - floor - field(called, member), -free - field(book, 'called'))
if excess > 0 and not learning then call(member, field(called, member) + excess) end

local share = math.min(own, math.max(1, math.floor(limit / members)))
redis.call('HSET', reserve, member, share)
return {own, field(called, member), members, epoch, share, field(book, 'lacking') > 0 and 1 or 0}
