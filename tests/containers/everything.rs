//! Every kind of source through containers, there and back.

use crate::stack::Stack;

#[test]
fn every_source_comes_back() {
    let stack = Stack::up();
    stack.add_to_policy(SOURCES);
    let report = stack.snapshot(0);
    println!("{report:#}");
    println!("{:#}", stack.show("latest"));
}

const SOURCES: &str = r#"
[[source]]
kind = "postgres"
name = "db"
service = "db"

[[source]]
kind = "redis"
name = "queue"
service = "cache"
password_from = ".env:REDIS_PASSWORD"

[[source]]
kind = "env"
paths = [".env", "backend/.env.production"]
required = ["DB_PASSWORD"]
pattern = { ENCRYPTION_KEY = "^[0-9a-f]{64}$" }
same = [[".env:REDIS_PASSWORD", "backend/.env.production:REDIS_PASSWORD"]]

[[source]]
kind = "nginx"
paths = ["nginx"]

[[source]]
kind = "volume"
name = "uploads"
volumes = ["storage"]

[[source]]
kind = "command"
name = "report"
service = "db"
run = ["sh", "-c", 'PGPASSWORD=$POSTGRES_PASSWORD psql -XAt -U "$POSTGRES_USER" -d shop -c "select count(*) from orders"']

[[source]]
kind = "compose"
pin = "tag"
"#;
