alter table documents add column language text not null default 'de';
-- down
alter table documents drop column language;
