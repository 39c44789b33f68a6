//! The text of `INFO`: `key:value` lines under `# Section` headings.

use super::facts::{Facts, Keys};
use std::collections::BTreeMap;

#[derive(Debug, Clone, Default)]
pub(super) struct Info {
    values: BTreeMap<String, String>,
    modules: BTreeMap<String, String>,
}

impl Info {
    pub fn parse(text: &str) -> Self {
        let mut info = Self::default();
        for (key, value) in text.lines().filter_map(|l| l.trim_end().split_once(':')) {
            // Modules are listed as several lines with the same key.
            if key == "module" {
                if let Some(name) = field(value, "name") {
                    info.modules.insert(name.to_owned(), field(value, "ver").unwrap_or_default().to_owned());
                }
            } else {
                info.values.insert(key.to_owned(), value.to_owned());
            }
        }
        info
    }

    /// Whether it is no answer of a Redis server.
    pub fn is_empty(&self) -> bool {
        self.get("redis_version").is_none() && self.get("valkey_version").is_none()
    }

    pub fn get(&self, key: &str) -> Option<&str> {
        self.values.get(key).map(String::as_str)
    }

    /// `db0:keys=3,expires=1,avg_ttl=0`.
    pub fn keyspace(&self) -> Vec<Keys> {
        let mut all: Vec<Keys> = self
            .values
            .iter()
            .filter_map(|(key, value)| {
                let database = key.strip_prefix("db")?.parse().ok()?;
                let number = |name| field(value, name)?.parse().ok();
                Some(Keys { database, keys: number("keys")?, expires: number("expires")? })
            })
            .collect();
        all.sort_by_key(|k| k.database);
        all
    }

    /// Keys of the file that it loaded last, those that had expired by then included; absent before Redis 7.
    pub fn loaded(&self) -> Option<u64> {
        let number = |name| self.get(name)?.parse::<u64>().ok();
        Some(number("rdb_last_load_keys_loaded")?.saturating_add(number("rdb_last_load_keys_expired")?))
    }

    pub fn modules(&self) -> &BTreeMap<String, String> {
        &self.modules
    }

    pub fn fill(&self, facts: &mut Facts) {
        let text = |key: &str| self.get(key).map(str::to_owned);
        facts.version = text("valkey_version").or_else(|| text("redis_version"));
        facts.mode = text("redis_mode").or_else(|| text("server_mode"));
        facts.role = text("role");
        facts.used_memory = self.get("used_memory").and_then(|v| v.parse().ok());
        facts.maxmemory = self.get("maxmemory").and_then(|v| v.parse().ok());
        facts.maxmemory_policy = text("maxmemory_policy");
        facts.modules = Some(self.modules.clone());
    }
}

/// `b` of `a=1,name=b`.
fn field<'v>(value: &'v str, name: &str) -> Option<&'v str> {
    value.split(',').find_map(|part| part.strip_prefix(name)?.strip_prefix('='))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sweep_infos() {
        let seed = "# Server\r\nredis_version:7.0.15\r\nused_memory:1\r\nmodule:name=bf,ver=20612\r\n\
                    rdb_last_load_keys_loaded:7\r\nrdb_last_load_keys_expired:1\r\ndb0:keys=7,expires=3,avg_ttl=5\r\n";
        let words = [":", ",", "=", "\r\n", "db", "module:", "name=", "keys=", "expires=", "18446744073709551616"];
        crate::base::fuzz::Fuzz::of("redis-info").seed(seed).words(&words).run(|bytes| {
            let info = Info::parse(&String::from_utf8_lossy(bytes));
            let mut facts = Facts::default();
            info.fill(&mut facts);
            let databases = info.keyspace();
            assert!(databases.is_sorted_by_key(|keys| keys.database));
            let _ = (info.is_empty(), info.loaded());
        });
    }

    #[test]
    fn keyspace_and_modules() {
        let info = Info::parse(
            "# Server\r\nredis_version:7.0.15\r\n# Modules\r\nmodule:name=bf,ver=20612,api=1\r\n# Keyspace\r\ndb10:keys=1,expires=0,avg_ttl=0\r\ndb2:keys=7,expires=3,avg_ttl=5\r\n",
        );
        assert!(!info.is_empty());
        let keys = |database, keys, expires| Keys { database, keys, expires };
        assert_eq!(info.keyspace(), [keys(2, 7, 3), keys(10, 1, 0)]);
        assert_eq!(info.modules["bf"], "20612");
    }
}
