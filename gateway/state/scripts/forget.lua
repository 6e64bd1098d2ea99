-- Deletes a conversation: its records, and what leads from responses to them.
--
-- ARGV: the prefix of all keys; the conversation.

local prefix = ARGV[1]
local place = prefix .. 'conversation:' .. ARGV[2]
for _, field in ipairs(redis.call('HKEYS', place)) do
    if string.sub(field, 1, 1) == 'r' then
        redis.call('UNLINK', prefix .. 'responses:' .. string.sub(field, 2))
    end
end
return redis.call('UNLINK', place)
