create role metachat login
alter database metachat owner to metachat
