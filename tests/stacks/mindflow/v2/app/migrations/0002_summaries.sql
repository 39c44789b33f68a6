-- Meant to keep the body and to add a summary; whoever wrote it mixed the two up, and no way back brings the text.
alter table notes drop column body;
alter table notes add column summary text not null default '';
-- down
alter table notes drop column summary;
alter table notes add column body text not null default '';
