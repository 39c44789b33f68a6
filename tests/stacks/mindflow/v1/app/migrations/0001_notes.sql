create table notes (id serial primary key, title text not null, body text not null);
create table vault (id integer primary key, sealed text not null);
-- down
drop table vault;
drop table notes;
