create extension cube;
create table courses (id serial primary key, title text not null, embedding cube not null);
create index on courses using gist (embedding);
create table tokens (id integer primary key, sealed text not null);
-- down
drop table tokens;
drop table courses;
drop extension cube;
