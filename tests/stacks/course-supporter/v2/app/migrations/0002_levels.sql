alter table courses add column level integer not null default 1;
-- down
alter table courses drop column level;
