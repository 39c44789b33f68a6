create extension cube;
create table documents (id serial primary key, name text not null unique, sha256 text not null, embedding cube);
create index on documents using gist (embedding);
create table messages (id integer primary key, sealed text not null);
-- down
drop table messages;
drop table documents;
drop extension cube;
