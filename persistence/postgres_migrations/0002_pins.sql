-- Rows of `shards` may hold a pin, which code of version 1 would drop when it writes the row. The tables stay as they are.

COMMENT ON COLUMN shards.row IS 'ShardRow; since version 2 with its pin';
