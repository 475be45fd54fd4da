-- The place of a store among the databases of its app (stripes.py). One from before there were several is alone.

ALTER TABLE meta
    ADD COLUMN stripe  integer NOT NULL DEFAULT 0,
    ADD COLUMN stripes integer NOT NULL DEFAULT 1,
    ADD COLUMN family  text    NOT NULL DEFAULT '';
